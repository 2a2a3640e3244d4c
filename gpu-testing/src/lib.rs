//! What the GPU tests of all crates share: devices, skips that are seen, and numbers.

use std::io::Write;
use std::mem::ManuallyDrop;

use kernel_core::Gpu;
use kernel_core::cudarc::driver::{CudaContext, CudaSlice, DevicePtr, DeviceRepr};
use kernel_core::probe::{Library, ensure};

fn required() -> bool {
    std::env::var("KERNELS_REQUIRE_GPU").is_ok_and(|value| value == "1")
}

/// Says why a check does not run, or fails when a GPU is required.
pub fn skip(reason: &str) {
    assert!(!required(), "KERNELS_REQUIRE_GPU=1, but: {reason}");
    say(&format!("skipped: {reason}"));
}

/// To stderr itself: `eprintln` is kept by the test harness when a test passes.
pub fn say(line: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    std::io::stderr().write_all(format!("{test}: {line}\n").as_bytes()).expect("writing to stderr");
}

/// The first GPU with a stream of its own, if `libraries` are here too, or a printed reason.
pub fn gpu(libraries: &[Library]) -> Option<Gpu> {
    let found = Gpu::new(0).and_then(|gpu| {
        libraries.iter().try_for_each(|library| ensure(*library))?;
        Ok(gpu)
    });
    match found {
        Ok(gpu) => Some(gpu.fork().expect("a new stream")),
        Err(error) => {
            skip(&format!("no GPU ({error})"));
            None
        }
    }
}

/// The first GPU, as [`gpu`], through a context of its own, whose settings no other test sees; events between streams are off in it.
pub fn gpu_without_events(libraries: &[Library]) -> Option<Gpu> {
    gpu(libraries)?;
    // The primary context is shared with the other tests, which rely on its events.
    let context = CudaContext::new_non_primary(0, 0).expect("a second context");
    // SAFETY: the test orders its streams itself.
    unsafe { context.disable_event_tracking() };
    Some(Gpu::from_stream(context.new_stream().expect("a stream")).expect("its gpu"))
}

/// The first `len` elements of a slice under a second owner that does not free them: what a caller can do only with `unsafe`. To be given to calls that
/// refuse it.
pub fn alias<T: DeviceRepr>(gpu: &Gpu, of: &CudaSlice<T>, len: usize) -> ManuallyDrop<CudaSlice<T>> {
    assert!(len <= of.len());
    let (address, _guard) = of.device_ptr(gpu.stream());
    // SAFETY: the memory is live and long enough; the second owner is never dropped, and the calls it is given to are refused.
    ManuallyDrop::new(unsafe { gpu.stream().upgrade_device_ptr(address, len) })
}

/// Fails with the error when it is not of the pattern.
#[macro_export]
macro_rules! assert_kind {
    ($error:expr, $pattern:pat) => {{
        let error = $error;
        assert!(matches!(&error, $pattern), "{error:?}");
    }};
}

/// Deterministic values in [-1, 1), spread evenly.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
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
