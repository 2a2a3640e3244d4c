//! `cuda/gather_rows.cu`: rows gathered by a table.

use kernel_core::{DType, Gpu, Kernel, KernelArg, LaunchConfig};

use super::{load, overlapped};
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
const WARPS: u64 = THREADS as u64 / 32;
const BLOCKS_PER_SM: u32 = 8;
/// In the table: no row, zeros.
pub(crate) const NONE: u32 = u32::MAX;

/// `GatherParams` of the kernel. Strides in elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatherParams {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) rows: u64,
    pub(crate) from_stride: u64,
    pub(crate) to_stride: u64,
    pub(crate) count: u64,
    pub(crate) dim: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for GatherParams {}
const _: () = assert!(size_of::<GatherParams>() == 56 && std::mem::offset_of!(GatherParams, dim) == 48);

pub(crate) struct GatherRows {
    kernel: Kernel,
}

impl GatherRows {
    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::gather_rows(dtype))? })
    }

    /// # Safety
    /// `rows` must hold `count` numbers of rows of `from` or [`NONE`], and `to` have `count` rows, all live memory.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, params: &GatherParams) -> Result<()> {
        let most = u64::from(gpu.info().sm_count * BLOCKS_PER_SM);
        let blocks = params.count.div_ceil(WARPS).clamp(1, most) as u32;
        let config = overlapped(gpu.info(), LaunchConfig::linear(blocks, THREADS));
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &config, &[params]) }?)
    }
}
