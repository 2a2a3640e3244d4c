//! `cuda/finish_gradients.cu`: from f32 sums to gradients.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig, Variant};

use super::{TextsArg, load, overlapped};
use crate::error::Result;
use crate::programs;
use crate::rows::RowAccess;

const WARPS: u64 = 8;
const BLOCKS_PER_SM: u32 = 8;

/// `FinishParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct FinishParams {
    pub(crate) texts: TextsArg,
    pub(crate) tokens: u64,
    pub(crate) dim: u32,
    pub(crate) splits: u32,
    pub(crate) scratch: u64,
    pub(crate) gradient: u64,
    pub(crate) gradient_stride: u64,
}

/// `ClearParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ClearParams {
    values: u64,
    count: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for FinishParams {}
// SAFETY: as above.
unsafe impl KernelArg for ClearParams {}

pub(crate) struct FinishGradients {
    finish: Kernel,
    clear: Kernel,
}

impl FinishGradients {
    const ENTRIES: [&str; 2] = ["maxsim_finish", "maxsim_clear"];

    /// What [`FinishGradients::new`] loads.
    pub(crate) fn variants(dtype: DType, access: RowAccess) -> impl Iterator<Item = Variant> {
        Self::ENTRIES.into_iter().map(move |entry| programs::finish_gradients(dtype, access, entry))
    }

    pub(crate) fn new(gpu: &Gpu, dtype: DType, access: RowAccess) -> Result<Self> {
        let [finish, clear] = Self::ENTRIES.map(|entry| load(gpu, &programs::finish_gradients(dtype, access, entry)));
        Ok(Self { finish: finish?, clear: clear? })
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that they say.
    pub(crate) unsafe fn finish(&self, stream: &CudaStream, info: &DeviceInfo, params: &FinishParams) -> Result<()> {
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.finish.launch(stream, &spread(info, params.tokens.div_ceil(WARPS)), &[params]) }?)
    }

    /// Sets `count` f32 at `values` to 0.
    ///
    /// # Safety
    /// They must be live memory.
    pub(crate) unsafe fn clear(&self, stream: &CudaStream, info: &DeviceInfo, values: u64, count: u64) -> Result<()> {
        // SAFETY: as in `finish`.
        Ok(unsafe {
            self.clear.launch(stream, &spread(info, count.div_ceil(1024)), &[&ClearParams { values, count }])
        }?)
    }
}

fn spread(info: &DeviceInfo, blocks: u64) -> LaunchConfig {
    overlapped(
        info,
        LaunchConfig::linear(blocks.clamp(1, u64::from(info.sm_count * BLOCKS_PER_SM)) as u32, WARPS as u32 * 32),
    )
}
