//! The one error type of the crate.

/// `Result` with [`enum@Error`] as its error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Every message names what was wrong and what was expected; the inputs are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// On the way to or on the GPU: shapes, dtypes, devices, memory, libraries.
    #[error(transparent)]
    Gpu(#[from] kernel_core::Error),
    /// In the CPU version.
    #[error(transparent)]
    Cpu(#[from] reference_cpu::Error),
}
