//! `cuda/quantize_int8.cu`: copies of the inputs in 8-bit integers (of the texts less their mean) and of the same transposed, and what stays exact: the mean's terms
//! and the dot products of the positive pairs.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig};

use super::load;
use super::rows::{THREADS, by_rows};
use crate::error::Result;
use crate::programs;

/// Of the sums and the largest magnitudes of columns.
pub(crate) const SLICES: u32 = 128;
/// What a block transposes.
const TRANSPOSED_ROWS: u32 = 128;
const TRANSPOSED_COLS: u32 = 64;

/// `QuantizeInt8Params::Side` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct QuantizeInt8Side {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) from_stride: u64,
    pub(crate) to_stride: u64,
    pub(crate) transposed: u64,
    pub(crate) transposed_stride: u64,
    /// f32, one a row, and one more behind an odd number of them.
    pub(crate) row_scales: u64,
    /// f32, one a column.
    pub(crate) col_scales: u64,
    /// u32, [`SLICES`] · `cols` of them.
    pub(crate) partial_peaks: u64,
    pub(crate) rows: u32,
}

/// `QuantizeInt8Params` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct QuantizeInt8Params {
    /// Images, texts.
    pub(crate) sides: [QuantizeInt8Side; 2],
    /// Features, padded to a multiple of 8.
    pub(crate) cols: u32,
    /// f32, [`SLICES`] · `cols` of them.
    pub(crate) partial_sums: u64,
    /// f32, `cols` of them.
    pub(crate) mean: u64,
    /// f32, one an image row.
    pub(crate) terms: u64,
    /// f32, one an image row.
    pub(crate) positives: u64,
    pub(crate) offset: i64,
}

// SAFETY: plain data, laid out as the kernels' struct.
unsafe impl KernelArg for QuantizeInt8Params {}

pub(crate) struct QuantizeInt8 {
    columns: Kernel,
    means: Kernel,
    rows: Kernel,
    transpose: Kernel,
}

impl QuantizeInt8 {
    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        let kernel = |entry| load(gpu, &programs::quantize_int8(dtype, entry));
        Ok(Self {
            columns: kernel("siglip_int8_columns")?,
            means: kernel("siglip_int8_means")?,
            rows: kernel("siglip_int8_rows")?,
            transpose: kernel("siglip_int8_transpose")?,
        })
    }

    /// Queues copies, scales, terms and positives; with gradients the transposed copies too.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that they say.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        params: QuantizeInt8Params,
        gradient: bool,
    ) -> Result<()> {
        let rows = params.sides[0].rows.max(params.sides[1].rows);
        let columns = LaunchConfig::linear(params.cols.div_ceil(THREADS), THREADS).with_programmatic(true);
        let slices = LaunchConfig { grid: [columns.grid[0], SLICES, 2], ..columns };
        // A grid is no wider in y: blocks go on by as many columns.
        let [tall, wide] = [rows.div_ceil(TRANSPOSED_ROWS), params.cols.div_ceil(TRANSPOSED_COLS).min(65_535)];
        let tiles = LaunchConfig { grid: [tall, wide, 2], ..columns };
        // SAFETY: the argument matches the kernels' parameter; the memory is the caller's promise.
        unsafe {
            self.columns.launch(stream, &slices, &[&params])?;
            self.means.launch(stream, &columns, &[&params])?;
            self.rows.launch(stream, &by_rows(info, rows, 2), &[&params])?;
            if gradient {
                self.transpose.launch(stream, &tiles, &[&params])?;
            }
        }
        Ok(())
    }
}
