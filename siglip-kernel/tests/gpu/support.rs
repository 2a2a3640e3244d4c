//! Devices and numbers that all GPU tests share.

use std::io::Write;

use siglip_kernel::cpu::Element;
use siglip_kernel::kernel_core::cudarc::driver::CudaContext;
use siglip_kernel::kernel_core::probe::{Library, ensure};
use siglip_kernel::{Gpu, Route};

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
        ensure(Library::CublasLt)?;
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

/// The routes that a dtype has on this GPU. Before Hopper `Chunked` and `Portable` are the same kernels.
pub(crate) fn routes<T: Element>(gpu: &Gpu) -> &'static [Route] {
    match T::NAME {
        "f32" => &[Route::Chunked, Route::Portable, Route::LowMemory],
        _ if gpu.info().arch().has_wgmma() => {
            &[Route::Chunked, Route::Portable, Route::LowMemory, Route::Fp8, Route::Int8]
        }
        _ => &[Route::Chunked, Route::Portable, Route::LowMemory],
    }
}

pub(crate) fn rounded<T: Element>(value: f32) -> T {
    siglip_kernel::kernel_core::Element::from_f32(value)
}

pub(crate) fn wide<T: Element>(value: T) -> f64 {
    f64::from(siglip_kernel::kernel_core::Element::to_f32(value))
}

/// The 2-norm; a NaN in it stays one.
pub(crate) fn l2(of: impl Iterator<Item = f64>) -> f64 {
    of.map(|x| x * x).sum::<f64>().sqrt()
}

/// The bits of a value; widening is exact, so they tell any two values of one type apart.
pub(crate) fn bits<T: Element>(value: T) -> u32 {
    siglip_kernel::kernel_core::Element::to_f32(value).to_bits()
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

/// Makes tests `name::f32`, `name::f16` and `name::bf16` of a generic function.
macro_rules! per_dtype {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn f32() {
                super::$name::<f32>();
            }
            #[test]
            fn f16() {
                super::$name::<siglip_kernel::kernel_core::half::f16>();
            }
            #[test]
            fn bf16() {
                super::$name::<siglip_kernel::kernel_core::half::bf16>();
            }
        }
    )*};
}
pub(crate) use per_dtype;
