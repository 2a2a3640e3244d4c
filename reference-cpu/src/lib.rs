//! SigLIP's loss, SwiGLU and MaxSim on the CPU, forward and backward.
#![deny(missing_docs)]

mod element;
mod error;
mod host;
pub mod naive;
mod product;
pub mod siglip;
mod vector;

pub use element::Element;
pub use error::{Error, Result};
pub use half::{bf16, f16};
pub use host::{HostMatrix, HostMatrixMut, HostTensor};
