//! SwiGLU and its kin on NVIDIA GPUs: both projections and the gate as one GEMM, forward and backward.
#![deny(missing_docs)]

mod at;
pub mod cpu;
mod engine;
mod error;
mod gemms;
mod io;
mod kernels;
mod mlp;
mod plan;
mod problem;
mod programs;
mod route;
mod workspace;

pub use kernel_core;
pub use kernel_core::{DType, Gpu, MatrixView, MatrixViewMut, VectorView, VectorViewMut};

pub use error::{Error, Result};
pub use io::{Gradients, Inputs, Preactivations, Weights, WeightsMut};
pub use mlp::{MlpGradients, MlpPlan, MlpProblem, mlp_workspace_bytes};
pub use plan::{Plan, workspace_bytes};
pub use problem::{Gate, Layout, Mode, Options, Order, Problem, Route};
pub use programs::variants;
