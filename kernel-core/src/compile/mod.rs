//! CUDA sources in memory → NVRTC → CUBIN for a real architecture, kept on disk.
//!
//! [`compile()`] is the way in. The result is cached under everything it depends on: source, headers, flags, macros,
//! architecture and the compiler's version. A cache that cannot be read or written, or holds damaged files, costs a
//! compilation and nothing else.

mod cache;
mod log;
mod nvrtc;
mod pipeline;

pub use cache::CubinCache;
pub use log::{CompileReport, CompileWarning, ResourceUsage};
pub use nvrtc::nvrtc_version;
pub use pipeline::{Cubin, compile, compile_all_in, compile_in, compile_with_report_in};
