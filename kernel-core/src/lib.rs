//! Compile, cache, tune and launch CUDA kernels from Rust.
//!
//! `kernel-core` holds everything of the kernel families (`siglip-kernel`, `swiglu-kernel`, `maxsim-kernel`) that is not a formula:
//!
//! * [`Gpu`]: a device, its context and a stream; allocation; the kernels loaded on it.
//! * [`TensorView`] and [`TensorViewMut`]: borrowed, typed, strided views of device memory, checked when they are made.
//! * [`compile`] and [`Program`]: CUDA sources in memory to a CUBIN through NVRTC, kept on disk.
//! * [`Kernel`] and [`LaunchConfig`]: plain, cluster and programmatic launches; [`TensorMap`] for the TMA unit.
//! * [`GemmPlan`]: row-major matrix products through cuBLASLt.
//! * [`Workspace`] and [`Layout`]: one sized-ahead allocation per plan.
//! * [`autotune`]: a persistent cache of measured choices.
//!
//! Building needs no CUDA. At run time the driver, NVRTC and cuBLASLt are looked for only when they are used, and an absent
//! one is an [`Error`] that says what to install. Nothing here prints, and nothing panics on input.

#![deny(missing_docs)]

pub mod arch;
pub mod autotune;
pub mod cache_dir;
pub mod compile;
pub mod cuda;
pub mod dtype;
pub mod error;
mod extent;
pub mod gemm;
pub mod gpu;
pub mod kernel;
pub mod launch;
pub mod probe;
pub mod program;
pub mod scalar;
pub mod sm90;
pub mod tensor;
pub mod tma;
pub mod variant;
pub mod workspace;

pub use cudarc;
pub use half;

pub use arch::Arch;
pub use autotune::{AutotuneCache, AutotuneMode, TuneKey};
pub use compile::{Cubin, CubinCache};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use gemm::{GemmCandidate, GemmPlan, GemmSpec, MatrixSpec};
pub use gpu::{DeviceInfo, Gpu};
pub use kernel::{Kernel, KernelAttributes};
pub use launch::{KernelArg, LaunchConfig};
pub use probe::Library;
pub use program::{Program, source_hash};
pub use scalar::{Scalar, ScalarArg};
pub use tensor::{MatrixView, MatrixViewMut, TensorView, TensorViewMut, VectorView, VectorViewMut, check_disjoint};
pub use tma::{LastMaps, MapType, Swizzle, TensorMap, TiledMap};
pub use variant::Variant;
pub use workspace::{Layout, Region, Workspace};

/// The README's example, compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
