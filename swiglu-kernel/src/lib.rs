//! SwiGLU and its kin on NVIDIA GPUs: both projections and the gate as one GEMM, forward and backward.
//!
//! With x `[M, K]` and N gate and N up columns of weights, z = act(x·W_gate + b_gate) ⊙ (x·W_up + b_up), `[M, N]`
//! ([arXiv 2002.05202](https://arxiv.org/abs/2002.05202)).
//!
//! * [`Plan`]: the gated layer. [`Plan::forward`], optionally saving the pre-activations, and [`Plan::backward`] from saved or recomputed ones.
//! * [`MlpPlan`]: the same with the down projection, y = z·W_down.
//! * [`Problem`], [`Layout`], [`Gate`]: what is computed; [`Options`] with [`Route`] and [`Mode`]: how, and with how much memory.
//! * [`cpu`]: the same calls on host memory.
//!
//! A plan is made once for a problem and called many times. Calls neither allocate device memory nor wait for the device, and give the same bits on
//! every run. Mistakes are [`Error`] values that name the argument, what was found and what was expected.
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

/// The README's examples, compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
