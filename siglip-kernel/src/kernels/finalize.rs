//! `cuda/finalize.cu`: scalars from per-warp sums, gradients from accumulators to outputs, padded copies of inputs.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig, ScalarArg};

use super::load;
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
const WARPS: u32 = THREADS / 32;
const BLOCKS_PER_SM: u32 = 8;
const REDUCE_THREADS: u32 = 1024;

/// `GradientFactor` of `factor.cuh`: exp(log_temp) · upstream · inverse.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GradientFactor {
    pub(crate) log_temp: ScalarArg,
    pub(crate) upstream: ScalarArg,
    /// 1 / (batch · gain).
    pub(crate) inverse: f64,
}

/// `ReduceParams` of `scalars.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ReduceParams {
    /// 0: nothing is asked for.
    pub(crate) sums: u64,
    pub(crate) slots: u32,
    pub(crate) gradient: u32,
    pub(crate) inverse_batch: f64,
    pub(crate) log_temp: ScalarArg,
    pub(crate) upstream: ScalarArg,
    pub(crate) loss: u64,
    pub(crate) d_log_temp: u64,
    pub(crate) d_bias: u64,
}

/// `ScaleParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ScaleParams {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) from_stride: u64,
    pub(crate) to_stride: u64,
    pub(crate) rows: u64,
    /// Elements between parts of the sums, which are added up.
    pub(crate) part_stride: u64,
    pub(crate) parts: u32,
    pub(crate) cols: u32,
    pub(crate) factor: GradientFactor,
    pub(crate) positives: PositivePairs,
    /// f32, what 1 is worth in each column of the sums, on route int8; else null.
    pub(crate) units: u64,
}

/// The part of `ScaleParams` about pairs that were kept out of the sums; all zero when there are none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct PositivePairs {
    /// q by image row.
    pub(crate) positive: u64,
    /// The rows of the other side.
    pub(crate) other: u64,
    pub(crate) other_stride: u64,
    /// Other side's row minus this side's.
    pub(crate) shift: i64,
    pub(crate) other_rows: i64,
    /// 1: the other side's rows are the images.
    pub(crate) by_other: u32,
}

/// `PadParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PadParams {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) from_stride: u64,
    pub(crate) to_stride: u64,
    pub(crate) rows: u64,
    pub(crate) cols: u32,
    pub(crate) padded_cols: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for ReduceParams {}
// SAFETY: as above.
unsafe impl KernelArg for ScaleParams {}
// SAFETY: as above.
unsafe impl KernelArg for PadParams {}

pub(crate) struct Finalize {
    reduce: Kernel,
    scale: Kernel,
    pad: Kernel,
}

impl Finalize {
    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        let kernel = |entry| load(gpu, &programs::finalize(dtype, entry));
        Ok(Self { reduce: kernel("siglip_reduce")?, scale: kernel("siglip_scale")?, pad: kernel("siglip_pad")? })
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that they say.
    pub(crate) unsafe fn reduce(&self, stream: &CudaStream, info: &DeviceInfo, params: ReduceParams) -> Result<()> {
        let config = LaunchConfig::linear(1, REDUCE_THREADS).with_programmatic(info.compute_capability >= (9, 0));
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.reduce.launch(stream, &config, &[&params]) }?)
    }

    /// # Safety
    /// As [`Finalize::reduce`].
    pub(crate) unsafe fn scale(&self, stream: &CudaStream, info: &DeviceInfo, params: ScaleParams) -> Result<()> {
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.scale.launch(stream, &by_rows(info, params.rows), &[&params]) }?)
    }

    /// # Safety
    /// As [`Finalize::reduce`].
    pub(crate) unsafe fn pad(&self, stream: &CudaStream, info: &DeviceInfo, params: PadParams) -> Result<()> {
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.pad.launch(stream, &by_rows(info, params.rows), &[&params]) }?)
    }
}

/// A warp a row, no more blocks than are resident. Kernels of one stream may overlap their ends on Hopper.
fn by_rows(info: &DeviceInfo, rows: u64) -> LaunchConfig {
    let blocks = rows.div_ceil(u64::from(WARPS)).min(u64::from(info.sm_count * BLOCKS_PER_SM)) as u32;
    LaunchConfig::linear(blocks, THREADS).with_programmatic(info.compute_capability >= (9, 0))
}
