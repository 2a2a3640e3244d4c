//! `cuda/forward_portable.cu`: scores on the CUDA cores.

use kernel_core::{DType, DeviceInfo, Gpu, Kernel, LaunchConfig};

use super::{ForwardParams, load, overlapped};
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
/// Blocks that are resident on an SM.
const BLOCKS_PER_SM: u32 = 2;

pub(crate) struct ForwardPortable {
    kernel: Kernel,
}

impl ForwardPortable {
    /// Query tiles of a block.
    pub(crate) const TILES: usize = 1;

    pub(crate) fn new(gpu: &Gpu, dtype: DType, argmax: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::forward_portable(dtype, argmax))? })
    }

    pub(crate) fn most_blocks(info: &DeviceInfo) -> usize {
        (info.sm_count * BLOCKS_PER_SM) as usize
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says; `blocks` as the division has it.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, blocks: usize, params: &ForwardParams) -> Result<()> {
        let config = overlapped(gpu.info(), LaunchConfig::linear(blocks as u32, THREADS));
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &config, &[params]) }?)
    }
}
