//! Tests that need a GPU. Without one each says so and passes; `KERNELS_REQUIRE_GPU=1` turns that into a failure.

mod accuracy;
mod case;
mod compare;
mod compiled;
mod errors;
mod extremes;
mod fused;
mod huge;
mod large;
mod memory_errors;
mod repeat;
mod simple;
mod support;
mod tune;
