//! Devices that all GPU tests share.

use std::io::Write;

use maxsim_kernel::Gpu;
use maxsim_kernel::kernel_core::cudarc::driver::CudaContext;
use maxsim_kernel::kernel_core::probe::{Library, ensure};

fn required() -> bool {
    std::env::var("KERNELS_REQUIRE_GPU").is_ok_and(|value| value == "1")
}

/// Says why a check does not run, or fails when a GPU is required.
pub(crate) fn skip(reason: &str) {
    assert!(!required(), "KERNELS_REQUIRE_GPU=1, but: {reason}");
    say(&format!("skipped: {reason}"));
}

/// To stderr itself: `eprintln` is kept by the test harness when a test passes.
pub(crate) fn say(line: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    std::io::stderr().write_all(format!("{test}: {line}\n").as_bytes()).expect("writing to stderr");
}

/// The first GPU with a stream of its own, or a printed reason.
pub(crate) fn gpu() -> Option<Gpu> {
    let found = Gpu::new(0).and_then(|gpu| {
        ensure(Library::Nvrtc)?;
        gpu.fork()
    });
    match found {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            skip(&format!("no GPU ({error})"));
            None
        }
    }
}

/// The first GPU through a context of its own, whose settings no other test sees; events between streams are off in it.
pub(crate) fn gpu_without_events() -> Option<Gpu> {
    gpu()?;
    let context = CudaContext::new_non_primary(0, 0).expect("a second context");
    // SAFETY: the test orders its streams itself.
    unsafe { context.disable_event_tracking() };
    Some(Gpu::from_stream(context.new_stream().expect("a stream")).expect("its gpu"))
}

/// Whether so many bytes of device memory are free; says so where not, which is not a missing GPU, and no failure.
pub(crate) fn has_memory(gpu: &Gpu, needed: usize) -> bool {
    let (free, _) = gpu.memory_info().expect("memory");
    if free < needed {
        say(&format!("skipped: needs {needed} bytes of device memory, {free} are free"));
    }
    free >= needed
}
