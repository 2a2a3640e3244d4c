//! What all GPU tests share.

use std::io::Write;

use kernel_core::Gpu;
use kernel_core::cudarc::driver::CudaContext;

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
    match Gpu::new(0) {
        Ok(gpu) => Some(gpu.fork().expect("a new stream")),
        Err(error) => {
            skip(&format!("no GPU ({error})"));
            None
        }
    }
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

/// The first GPU through a context object of its own, whose settings no other test sees; events between streams are off in it.
pub(crate) fn gpu_without_events() -> Option<Gpu> {
    gpu()?;
    // A context of its own: the primary one is shared with the other tests, which rely on its events.
    let context = CudaContext::new_non_primary(0, 0).expect("a context");
    // SAFETY: the test orders its streams itself.
    unsafe { context.disable_event_tracking() };
    Some(Gpu::from_stream(context.new_stream().expect("a stream")).expect("its gpu"))
}

/// Deterministic values in [-1, 1), spread evenly.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        // xorshift64*: the upper 24 bits become the fraction.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
