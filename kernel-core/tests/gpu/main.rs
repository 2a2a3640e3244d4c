//! Tests that need a GPU. Without one each says so and passes; `KERNELS_REQUIRE_GPU=1` turns that into a failure.

mod gemm;
mod graph;
mod launch;
mod mainloop;
mod memory;
mod programs;
mod support;
mod tma;
