//! `cuda/pairs_f32.cu`: the pair loss and its gradient over a block of f32 dot products in memory, in place.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig, ScalarArg};

use super::load;
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
const WARPS: usize = THREADS as usize / 32;
/// Blocks that are resident on an SM; a block takes whole rows, so this also bounds the slots of sums.
const BLOCKS_PER_SM: u32 = 8;

/// `PairsF32Params` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PairsF32Params {
    pub(crate) log_temp: ScalarArg,
    pub(crate) bias: ScalarArg,
    pub(crate) x: u64,
    pub(crate) x_stride: u64,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) first: u32,
    pub(crate) diagonal: i64,
    /// By row of the block.
    pub(crate) positive: u64,
    pub(crate) sums: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for PairsF32Params {}

pub(crate) struct PairsF32 {
    kernel: Kernel,
}

impl PairsF32 {
    pub(crate) fn new(gpu: &Gpu, gradient: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::pairs_f32(gradient))? })
    }

    /// Per-warp slots of sums that launches on this device write, at most.
    pub(crate) fn slots(info: &DeviceInfo) -> usize {
        (info.sm_count * BLOCKS_PER_SM) as usize * WARPS
    }

    /// Gives the number of slots it writes.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the shapes that they say.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        params: PairsF32Params,
    ) -> Result<usize> {
        let config = LaunchConfig::linear(params.rows.min(info.sm_count * BLOCKS_PER_SM), THREADS);
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        unsafe { self.kernel.launch(stream, &config, &[&params]) }?;
        Ok(config.grid[0] as usize * WARPS)
    }
}
