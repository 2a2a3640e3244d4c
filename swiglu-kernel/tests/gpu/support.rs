//! What all GPU tests share.

use kernel_core::cudarc::driver::CudaSlice;
use swiglu_kernel::kernel_core::{self, Element};
use swiglu_kernel::{Gpu, MatrixView, MatrixViewMut};

pub(crate) use gpu_testing::say;

/// Element types of both sides.
pub(crate) trait Number: Element + reference_cpu::Element {
    fn rounded(value: f32) -> Self {
        <Self as Element>::from_f32(value)
    }
    fn widened(self) -> f64 {
        f64::from(<Self as Element>::to_f32(self))
    }
}
impl<T: Element + reference_cpu::Element> Number for T {}

/// The first GPU with a stream of its own, or a printed reason.
pub(crate) fn gpu() -> Option<Gpu> {
    gpu_testing::gpu(&[])
}

/// Deterministic values, spread evenly in `-scale..scale`.
pub(crate) fn noise<T: Number>(len: usize, seed: u64, scale: f32) -> Vec<T> {
    gpu_testing::noise(len, seed).into_iter().map(|value| T::rounded(value * scale)).collect()
}

/// A host and a device copy of one matrix; the device's rows are `gap` elements further apart than they need to be.
pub(crate) struct Matrix<T> {
    pub(crate) host: Vec<T>,
    pub(crate) device: CudaSlice<T>,
    pub(crate) shape: [usize; 2],
    gap: usize,
}

impl<T: Number> Matrix<T> {
    pub(crate) fn new(gpu: &Gpu, host: Vec<T>, shape: [usize; 2], gap: usize) -> Self {
        assert_eq!(host.len(), shape[0] * shape[1]);
        let mut spread = vec![T::rounded(f32::NAN); shape[0] * (shape[1] + gap)];
        for (to, from) in spread.chunks_mut(shape[1] + gap).zip(host.chunks(shape[1])) {
            to[..shape[1]].copy_from_slice(from);
        }
        let device = gpu.upload(&spread).expect("device memory");
        Self { host, device, shape, gap }
    }

    pub(crate) fn noise(gpu: &Gpu, shape: [usize; 2], gap: usize, seed: u64, scale: f32) -> Self {
        Self::new(gpu, noise(shape[0] * shape[1], seed, scale), shape, gap)
    }

    /// NaN everywhere, so that an element that is not written is found.
    pub(crate) fn poison(gpu: &Gpu, shape: [usize; 2], gap: usize) -> Self {
        Self::new(gpu, vec![T::rounded(f32::NAN); shape[0] * shape[1]], shape, gap)
    }

    pub(crate) fn view(&self, what: &'static str) -> MatrixView<'_, T> {
        MatrixView::with_row_stride(what, &self.device, self.shape, self.shape[1] + self.gap).expect("a view")
    }

    pub(crate) fn view_mut(&mut self, what: &'static str) -> MatrixViewMut<'_, T> {
        MatrixViewMut::with_row_stride(what, &mut self.device, self.shape, self.shape[1] + self.gap).expect("a view")
    }

    /// What the device holds, dense. The gaps must be as they were.
    pub(crate) fn download(&self, gpu: &Gpu) -> Vec<T> {
        let spread = gpu.download(&self.device).expect("a copy");
        let mut dense = Vec::with_capacity(self.host.len());
        for row in spread.chunks(self.shape[1] + self.gap) {
            dense.extend_from_slice(&row[..self.shape[1]]);
            assert!(row[self.shape[1]..].iter().all(|value| value.widened().is_nan()), "a gap was written");
        }
        dense
    }
}

/// |found - truth| / |truth| in the 2-norm. NaN counts as infinitely far.
pub(crate) fn error<A: Number, B: Number>(found: &[A], truth: &[B]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let (mut difference, mut size) = (0.0, 0.0);
    for (found, truth) in found.iter().zip(truth) {
        difference += (found.widened() - truth.widened()).powi(2);
        size += truth.widened().powi(2);
    }
    let error = (difference / f64::max(size, 1e-30)).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}

/// A few roundings of the dtype, in the 2-norm.
pub(crate) fn tolerance<T: Number>() -> f64 {
    match <T as Element>::DTYPE {
        kernel_core::DType::F32 => 3e-6,
        kernel_core::DType::F16 => 7e-4,
        kernel_core::DType::Bf16 => 5e-3,
    }
}
