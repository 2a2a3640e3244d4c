//! Late-interaction scores (MaxSim) on NVIDIA GPUs, forward and backward, and top-k search.
//!
//! A [`Problem`] says which texts there are ([`Spans`]), which of them meet ([`Pairing`]) and how tokens are compared; a [`Plan`] computes it on a
//! device, [`cpu::Plan`] without one, and [`TopK`] ranks documents. Every layout is a list of (query, document) items for the same kernels.
//! Errors name the argument, what was found and what was expected; nothing panics on input.
#![deny(missing_docs)]

mod backward;
pub mod cpu;
mod design;
mod error;
mod io;
mod kernels;
mod packing;
mod plan;
mod problem;
mod programs;
mod ranking;
mod rows;
mod scorer;
mod spans;
mod tables;
mod tiles;
mod top_k;
mod workspace;

pub use kernel_core;
pub use kernel_core::{DType, Gpu, MatrixView, MatrixViewMut, VectorView, VectorViewMut};

pub use design::workspace_bytes;
pub use error::{Error, Result};
pub use io::{Gradients, Inputs};
pub use packing::{Packing, packed_spans};
pub use plan::{Plan, argmax_offset};
pub use problem::{BackwardRoute, MAX_DIM, Options, Pairing, Problem, Route};
pub use programs::variants;
pub use ranking::Ranking;
pub use spans::{MAX_TOKENS, Spans};
pub use top_k::TopK;

/// The README's example, compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
