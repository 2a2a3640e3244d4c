//! `cuda/quantize_fp8.cu`: e4m3 copies of the inputs and the exact dot products of the positive pairs.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg};

use super::load;
use super::rows::{by_rows, most_blocks};
use crate::error::Result;
use crate::programs;

/// Of images, of texts.
pub(crate) const EXPONENTS: usize = 2;

/// `QuantizeParams::Side` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct QuantizeSide {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) from_stride: u64,
    pub(crate) to_stride: u64,
    pub(crate) rows: u32,
}

/// `QuantizeParams` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct QuantizeParams {
    /// Images, texts.
    pub(crate) sides: [QuantizeSide; 2],
    /// Features, padded to a multiple of 8.
    pub(crate) cols: u32,
    /// f32, [`QuantizeFp8::peaks`] of them.
    pub(crate) peaks: u64,
    /// i32, [`EXPONENTS`] of them.
    pub(crate) exponents: u64,
    /// f32, one an image row.
    pub(crate) positives: u64,
    pub(crate) offset: i64,
}

// SAFETY: plain data, laid out as the kernels' struct.
unsafe impl KernelArg for QuantizeParams {}

pub(crate) struct QuantizeFp8 {
    peaks: Kernel,
    quantize: Kernel,
    positives: Kernel,
}

impl QuantizeFp8 {
    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        let kernel = |entry| load(gpu, &programs::quantize_fp8(dtype, entry));
        Ok(Self {
            peaks: kernel("siglip_fp8_peaks")?,
            quantize: kernel("siglip_fp8_quantize")?,
            positives: kernel("siglip_fp8_positives")?,
        })
    }

    /// Elements of `peaks` that a launch on this device writes, at most.
    pub(crate) fn peaks(info: &DeviceInfo) -> usize {
        EXPONENTS * most_blocks(info) as usize
    }

    /// Queues copies, exponents and positives.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that they say.
    pub(crate) unsafe fn launch(&self, stream: &CudaStream, info: &DeviceInfo, params: QuantizeParams) -> Result<()> {
        let rows = params.sides[0].rows.max(params.sides[1].rows);
        let [images, both] = [1, 2].map(|sides| by_rows(info, rows, sides));
        // SAFETY: the argument matches the kernels' parameter; the memory is the caller's promise.
        unsafe {
            self.peaks.launch(stream, &both, &[&params])?;
            self.quantize.launch(stream, &both, &[&params])?;
            self.positives.launch(stream, &images, &[&params])?;
        }
        Ok(())
    }
}
