//! Tests that need a GPU. Without one each says so and passes; `KERNELS_REQUIRE_GPU=1` turns that into a failure. Those of `huge` run only when
//! asked for: `cargo test --release -p maxsim-kernel --test gpu -- --ignored`.

mod case;
mod errors;
mod exact;
mod huge;
mod not_finite;
mod packing;
mod repeat;
mod search;
mod support;
mod top_k;
