//! `cuda/quantize_fp8.cu`: e4m3 copies of the inputs (on route fp8-all the texts less their mean) and of the same transposed, and what stays exact: the mean's terms and
//! the dot products of the positive pairs.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig};

use super::load;
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
const ROWS_PER_BLOCK: u32 = THREADS / 32;
const BLOCKS_PER_SM: u32 = 8;
/// Of the sums that the texts' mean is made of.
pub(crate) const MEAN_SLICES: u32 = 128;
/// Of images, of texts less their mean, of texts.
pub(crate) const EXPONENTS: usize = 3;
/// What a block transposes.
const TRANSPOSED_ROWS: u32 = 128;
const TRANSPOSED_COLS: u32 = 64;

/// `QuantizeParams::Side` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct QuantizeSide {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) from_stride: u64,
    pub(crate) to_stride: u64,
    pub(crate) transposed: u64,
    pub(crate) transposed_stride: u64,
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
    /// f32, [`MEAN_SLICES`] · `cols` of them.
    pub(crate) partial_sums: u64,
    /// f32, `cols` of them.
    pub(crate) mean: u64,
    /// f32, [`QuantizeFp8::peaks`] of them.
    pub(crate) peaks: u64,
    /// i32, [`EXPONENTS`] of them.
    pub(crate) exponents: u64,
    /// f32, one an image row.
    pub(crate) terms: u64,
    /// f32, one an image row.
    pub(crate) positives: u64,
    pub(crate) offset: i64,
}

// SAFETY: plain data, laid out as the kernels' struct.
unsafe impl KernelArg for QuantizeParams {}

pub(crate) struct QuantizeFp8 {
    sums: Kernel,
    mean: Kernel,
    peaks: Kernel,
    quantize: Kernel,
    transpose: Kernel,
    terms: Kernel,
}

impl QuantizeFp8 {
    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        let kernel = |entry| load(gpu, &programs::quantize_fp8(dtype, entry));
        Ok(Self {
            sums: kernel("siglip_fp8_sums")?,
            mean: kernel("siglip_fp8_mean")?,
            peaks: kernel("siglip_fp8_peaks")?,
            quantize: kernel("siglip_fp8_quantize")?,
            transpose: kernel("siglip_fp8_transpose")?,
            terms: kernel("siglip_fp8_terms")?,
        })
    }

    /// Elements of `peaks` that a launch on this device writes, at most.
    pub(crate) fn peaks(info: &DeviceInfo) -> usize {
        EXPONENTS * (info.sm_count * BLOCKS_PER_SM) as usize
    }

    /// Queues copies, exponents and positives; where there is room for a mean, that and the terms too, and with gradients the transposed copies.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that they say.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        params: QuantizeParams,
        gradient: bool,
    ) -> Result<()> {
        let all = params.mean != 0;
        let rows = params.sides[0].rows.max(params.sides[1].rows);
        let blocks = rows.div_ceil(ROWS_PER_BLOCK).min(info.sm_count * BLOCKS_PER_SM);
        let images = LaunchConfig::linear(blocks, THREADS).with_programmatic(true);
        let both = LaunchConfig { grid: [blocks, 2, 1], ..images };
        // A grid is no wider in y: blocks go on by as many columns.
        let [tall, wide] = [rows.div_ceil(TRANSPOSED_ROWS), params.cols.div_ceil(TRANSPOSED_COLS).min(65_535)];
        let tiles = LaunchConfig { grid: [tall, wide, 2], ..images };
        let columns = LaunchConfig { grid: [params.cols.div_ceil(THREADS), 1, 1], ..images };
        let slices = LaunchConfig { grid: [columns.grid[0], MEAN_SLICES, 1], ..images };
        // SAFETY: the argument matches the kernels' parameter; the memory is the caller's promise.
        unsafe {
            if all {
                self.sums.launch(stream, &slices, &[&params])?;
                self.mean.launch(stream, &columns, &[&params])?;
            }
            self.peaks.launch(stream, &both, &[&params])?;
            self.quantize.launch(stream, &both, &[&params])?;
            if all && gradient {
                self.transpose.launch(stream, &tiles, &[&params])?;
            }
            self.terms.launch(stream, &images, &[&params])?;
        }
        Ok(())
    }
}
