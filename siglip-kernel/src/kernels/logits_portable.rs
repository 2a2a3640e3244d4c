//! `cuda/logits_portable.cu`: the logit GEMM with the pair loss and its gradient in the epilogue, by `mma.sync`.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig, ScalarArg};

use super::load;
use crate::blocks::TILE;
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
const WARPS: usize = THREADS as usize / 32;
/// `PortableMainloop::SHARED_BYTES`: four stages of two operands of 128 rows × 64 bytes.
const SHARED_BYTES: u32 = 4 * 2 * 128 * 64;
/// Blocks that are resident on an SM.
const BLOCKS_PER_SM: u32 = 2;

/// `PortableMainloop::Operand` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub(crate) data: u64,
    pub(crate) row_stride: u64,
    pub(crate) rows: u32,
}

/// `LogitsPortableParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LogitsPortableParams {
    pub(crate) log_temp: ScalarArg,
    pub(crate) bias: ScalarArg,
    pub(crate) img: Operand,
    pub(crate) txt: Operand,
    /// Features, padded to a multiple of 8.
    pub(crate) k: u32,
    pub(crate) first: u32,
    pub(crate) diagonal: i64,
    pub(crate) g: u64,
    pub(crate) g_stride: u64,
    pub(crate) sums: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for LogitsPortableParams {}

pub(crate) struct LogitsPortable {
    kernel: Kernel,
}

impl LogitsPortable {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, gradient: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::logits_portable(dtype, gradient))? })
    }

    /// Per-warp slots of sums that launches on this device write, at most.
    pub(crate) fn slots(info: &DeviceInfo) -> usize {
        (info.sm_count * BLOCKS_PER_SM) as usize * WARPS
    }

    /// Gives the number of slots it writes.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the shapes that they say; rows of `g` and columns up to whole tiles are written.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        params: LogitsPortableParams,
    ) -> Result<usize> {
        let tiles = (params.img.rows as usize).div_ceil(TILE) * (params.txt.rows as usize).div_ceil(TILE);
        let blocks = (tiles as u32).min(info.sm_count * BLOCKS_PER_SM);
        let config = LaunchConfig::linear(blocks, THREADS).with_shared(SHARED_BYTES);
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        unsafe { self.kernel.launch(stream, &config, &[&params]) }?;
        Ok(config.grid[0] as usize * WARPS)
    }
}
