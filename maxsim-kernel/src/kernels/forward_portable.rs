//! `cuda/forward_portable.cu`: scores on the CUDA cores.

use kernel_core::{DType, Gpu, Kernel, LaunchConfig};

use super::{ForwardParams, load, overlapped};
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;

pub(crate) struct ForwardPortable {
    kernel: Kernel,
}

impl ForwardPortable {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, argmax: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::forward_portable(dtype, argmax))? })
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says; `blocks` as the division has it.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, blocks: usize, params: &ForwardParams) -> Result<()> {
        let config = overlapped(gpu.info(), LaunchConfig::linear(blocks as u32, THREADS));
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &config, &[params]) }?)
    }
}
