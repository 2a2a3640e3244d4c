//! Tests that need a GPU. Without one each says so and passes; `KERNELS_REQUIRE_GPU=1` turns that into a failure.

mod case;
mod errors;
mod graph;
mod large;
mod layer;
mod mlp;
mod support;
