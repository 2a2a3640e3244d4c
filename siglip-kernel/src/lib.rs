//! The SigLIP sigmoid contrastive loss with all gradients on NVIDIA GPUs, never holding B × B.
#![deny(missing_docs)]

mod blocks;
pub mod cpu;
mod engines;
mod error;
mod io;
mod kernels;
mod plan;
mod problem;
mod programs;
mod simple;
mod workspace;

pub use kernel_core;
pub use kernel_core::{DType, Gpu, MatrixView, MatrixViewMut, Scalar, VectorViewMut};

pub use error::{Error, Result};
pub use io::{Inputs, Outputs};
pub use plan::{Plan, workspace_bytes};
pub use problem::{Chunk, Options, Positives, Problem, Route};
pub use programs::variants;
pub use simple::{Gradients, forward, forward_backward};
