//! What all GPU tests share.

use kernel_core::Gpu;

pub(crate) use gpu_testing::{noise, say, skip};

/// The first GPU with a stream of its own, or a printed reason.
pub(crate) fn gpu() -> Option<Gpu> {
    gpu_testing::gpu(&[])
}

/// The first GPU if it is sm_90 or newer.
pub(crate) fn hopper() -> Option<Gpu> {
    let gpu = gpu()?;
    if gpu.info().compute_capability < (9, 0) {
        // Not a missing GPU, so not a failure either.
        say(&format!("skipped: needs compute capability 9.0, found {:?}", gpu.info().compute_capability));
        return None;
    }
    Some(gpu)
}

/// The first GPU with a context of its own, in which there are no events between streams.
pub(crate) fn gpu_without_events() -> Option<Gpu> {
    gpu_testing::gpu_without_events(&[])
}
