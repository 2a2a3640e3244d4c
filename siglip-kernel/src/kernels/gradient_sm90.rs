//! `cuda/gradient_sm90.cu`: the gradient GEMMs on Hopper, accumulated in f32 over blocks or finished at once.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, launch_config};
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, TensorMap};

use super::{GradientFactor, load};
use crate::error::Result;
use crate::programs;

/// `GradientParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GradientParams {
    /// Of finished gradients.
    pub(crate) factor: GradientFactor,
    /// 1: overwrite the accumulators.
    pub(crate) first: u32,
    /// Row of the output where the block begins.
    pub(crate) row: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for GradientParams {}

pub(crate) struct GradientSm90 {
    kernel: Kernel,
}

impl GradientSm90 {
    /// `transposed`: the product Gᵀ · img; otherwise G · txt. `direct`: the output is the gradient itself, else its accumulators.
    pub(crate) fn new(gpu: &Gpu, dtype: DType, transposed: bool, direct: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::gradient_sm90(dtype, transposed, direct))? })
    }

    /// # Safety
    /// The maps must describe live memory of the shapes that the block has.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        [a, b, out]: [&TensorMap; 3],
        shape: GemmShape,
        params: GradientParams,
    ) -> Result<()> {
        let config = launch_config(info, shape.tiles(), programs::GRADIENT_CLUSTER);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[a, b, out, &shape, &params]) }?)
    }
}
