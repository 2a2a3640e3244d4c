//! Rayon-parallel f32 references of three operations on the CPU, forward and backward: the [SigLIP loss](siglip), the
//! [gated projections](swiglu) of SwiGLU and its kin, and [MaxSim](maxsim) late-interaction scores.
//!
//! They are the answer that GPU kernels are tested against, and fast enough to be what runs where there is no GPU: blocked,
//! vectorised, their products through the [`gemm`](https://docs.rs/gemm) crate, and no intermediate the size of a product of two batch axes.
//! Elements are f32, [`struct@f16`] or [`bf16`]; arithmetic and sums are f32 (scalars' sums f64), rounded once at the end. Results have the
//! same bits on every run and with every number of threads of the surrounding rayon pool. On another processor they may differ in the last
//! bits, since products use the vector units that there are.
//!
//! Arguments are borrowed views, [`HostMatrix`], [`HostMatrixMut`] and [`HostTensor`], with a row stride. What does not fit gives an
//! [`Error`] that names it, before any output is written; nothing panics. [`naive`] holds the same operations written plainly in f64.
//!
//! ```
//! use reference_cpu::siglip::{self, SiglipParams};
//! use reference_cpu::{HostMatrix, bf16};
//!
//! let embeddings: Vec<bf16> = (0..6).map(|i| bf16::from_f32(i as f32 * 0.25)).collect();
//! let view = HostMatrix::new("embeddings", &embeddings, 2, 3)?;
//! let loss = siglip::forward(view, view, &SiglipParams::square(2, 1.0, -1.0))?;
//! assert!(loss > 0.0);
//! # Ok::<(), reference_cpu::Error>(())
//! ```
#![deny(missing_docs)]

mod element;
mod error;
mod host;
pub mod maxsim;
pub mod naive;
mod product;
pub mod siglip;
pub mod swiglu;
mod tiles;
mod vector;

pub use element::Element;
pub use error::{Error, Result};
pub use half::{bf16, f16};
pub use host::{HostMatrix, HostMatrixMut, HostTensor};

/// Compiles and runs the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
