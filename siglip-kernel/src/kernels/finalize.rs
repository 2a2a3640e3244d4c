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

/// `ReduceParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ReduceParams {
    pub(crate) sums: u64,
    /// 0 without gradients.
    pub(crate) products: u64,
    pub(crate) slots: u32,
    pub(crate) product_slots: u32,
    pub(crate) inverse_batch: f64,
    pub(crate) inverse_gain: f64,
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
    pub(crate) from_stride: u64,
    pub(crate) to_stride: u64,
    pub(crate) to: u64,
    /// Image rows for the products, or 0.
    pub(crate) img: u64,
    pub(crate) img_stride: u64,
    pub(crate) products: u64,
    pub(crate) rows: u64,
    pub(crate) cols: u32,
    pub(crate) first: u32,
    pub(crate) factor: f64,
    pub(crate) log_temp: ScalarArg,
    pub(crate) upstream: ScalarArg,
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

    /// Per-warp products that [`Finalize::scale`] writes.
    pub(crate) fn product_slots(info: &DeviceInfo) -> usize {
        (info.sm_count * BLOCKS_PER_SM * WARPS) as usize
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that they say.
    pub(crate) unsafe fn reduce(&self, stream: &CudaStream, params: ReduceParams) -> Result<()> {
        let config = LaunchConfig::linear(1, REDUCE_THREADS);
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.reduce.launch(stream, &config, &[&params]) }?)
    }

    /// The grid does not depend on the rows, so that every launch writes every product slot.
    ///
    /// # Safety
    /// As [`Finalize::reduce`].
    pub(crate) unsafe fn scale(&self, stream: &CudaStream, info: &DeviceInfo, params: ScaleParams) -> Result<()> {
        let config = LaunchConfig::linear(info.sm_count * BLOCKS_PER_SM, THREADS);
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.scale.launch(stream, &config, &[&params]) }?)
    }

    /// # Safety
    /// As [`Finalize::reduce`].
    pub(crate) unsafe fn pad(&self, stream: &CudaStream, info: &DeviceInfo, params: PadParams) -> Result<()> {
        let blocks = params.rows.div_ceil(u64::from(WARPS)).min(u64::from(info.sm_count * BLOCKS_PER_SM)) as u32;
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.pad.launch(stream, &LaunchConfig::linear(blocks, THREADS), &[&params]) }?)
    }
}
