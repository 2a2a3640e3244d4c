//! `cuda/settle.cu`: the choices that a Hopper launch leaves open where the best similarity is NaN.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig};

use super::{ItemsArg, TextsArg, load, overlapped};
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;

/// `SettleParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct SettleParams {
    pub(crate) items: ItemsArg,
    pub(crate) queries: TextsArg,
    pub(crate) docs: TextsArg,
    pub(crate) dim: u32,
    pub(crate) slots: u32,
    pub(crate) argmax: u64,
    pub(crate) epoch: u32,
    pub(crate) nan_epoch: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for SettleParams {}

pub(crate) struct Settle {
    kernel: Kernel,
}

impl Settle {
    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::settle(dtype))? })
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says.
    pub(crate) unsafe fn launch(&self, stream: &CudaStream, info: &DeviceInfo, params: &SettleParams) -> Result<()> {
        let config = overlapped(info, LaunchConfig::linear(info.sm_count, THREADS));
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[params]) }?)
    }
}
