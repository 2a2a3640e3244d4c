//! Late-interaction scores (MaxSim) on NVIDIA GPUs, forward and backward.
#![deny(missing_docs)]

mod backward;
pub mod cpu;
mod error;
mod io;
mod kernels;
mod plan;
mod problem;
mod programs;
mod rows;
mod scorer;
mod tables;
mod tiles;
mod top_k;
mod workspace;

pub use kernel_core;
pub use kernel_core::{DType, Gpu, MatrixView, MatrixViewMut, VectorView, VectorViewMut};

pub use error::{Error, Result};
pub use io::{Gradients, Inputs};
pub use plan::{Plan, argmax_offset, packed_spans, workspace_bytes};
pub use problem::{BackwardRoute, MAX_DIM, MAX_TOKENS, Options, Pairing, Problem, Route, Spans};
pub use programs::variants;
pub use top_k::{Ranking, TopK};
