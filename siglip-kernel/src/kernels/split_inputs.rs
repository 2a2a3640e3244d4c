//! `cuda/split_inputs.cu`: f32 rows as two f16 planes.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{Gpu, Kernel, KernelArg, LaunchConfig};

use super::load;
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 1024;
/// Rows that share a scale; a block takes them.
pub(crate) const SCALE_ROWS: usize = 64;

/// `SplitSide` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SplitSide {
    pub(crate) from: u64,
    pub(crate) from_stride: u64,
    pub(crate) rows: u64,
    pub(crate) high: u64,
    pub(crate) plane_rows: u64,
    pub(crate) inverse: u64,
}

/// `SplitInputsParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SplitInputsParams {
    pub(crate) img: SplitSide,
    pub(crate) txt: SplitSide,
    pub(crate) cols: u32,
    pub(crate) plane_cols: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for SplitInputsParams {}

pub(crate) struct SplitInputs {
    kernel: Kernel,
}

impl SplitInputs {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::split_inputs())? })
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that they say: two planes and a scale of every 64 rows a side.
    pub(crate) unsafe fn launch(&self, stream: &CudaStream, params: SplitInputsParams) -> Result<()> {
        let blocks = (params.img.plane_rows + params.txt.plane_rows) / SCALE_ROWS as u64;
        let config = LaunchConfig::linear(blocks as u32, THREADS).with_programmatic(true);
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[&params]) }?)
    }
}
