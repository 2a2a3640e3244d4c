//! Devices and numbers that all GPU tests share.

use siglip_kernel::cpu::Element;
use siglip_kernel::kernel_core::probe::Library;
use siglip_kernel::{Gpu, Route};

pub(crate) use gpu_testing::{noise, say};

const NEEDS: &[Library] = &[Library::Nvrtc, Library::CublasLt];

/// The first GPU with a stream of its own, or a printed reason.
pub(crate) fn gpu() -> Option<Gpu> {
    gpu_testing::gpu(NEEDS)
}

/// The first GPU with a context of its own, in which there are no events between streams.
pub(crate) fn gpu_without_events() -> Option<Gpu> {
    gpu_testing::gpu_without_events(NEEDS)
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
