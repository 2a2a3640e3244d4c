//! Devices that all GPU tests share.

use maxsim_kernel::Gpu;
use maxsim_kernel::kernel_core::probe::Library;

pub(crate) use gpu_testing::say;

const NEEDS: &[Library] = &[Library::Nvrtc];

/// The first GPU with a stream of its own, or a printed reason.
pub(crate) fn gpu() -> Option<Gpu> {
    gpu_testing::gpu(NEEDS)
}

/// The first GPU with a context of its own, in which there are no events between streams.
pub(crate) fn gpu_without_events() -> Option<Gpu> {
    gpu_testing::gpu_without_events(NEEDS)
}

/// Whether so many bytes of device memory are free; says so where not, which is not a missing GPU, and no failure.
pub(crate) fn has_memory(gpu: &Gpu, needed: usize) -> bool {
    let (free, _) = gpu.memory_info().expect("memory");
    if free < needed {
        say(&format!("skipped: needs {needed} bytes of device memory, {free} are free"));
    }
    free >= needed
}
