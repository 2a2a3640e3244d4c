//! Row-major matrix products through cuBLASLt: plain products are the library's, only what it cannot fuse is written by hand.

mod descriptor;
mod plan;
mod spec;

pub(crate) use descriptor::LtHandle;
pub use plan::{GemmCandidate, GemmPlan};
pub use spec::{GemmSpec, MatrixSpec};
