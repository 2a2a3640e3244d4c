//! `cuda/gradient_sm90.cu`: the gradient GEMMs on Hopper, accumulated in f32 over blocks or finished at once.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, TILE, launch_config};
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, TensorMap};

use super::{GradientFactor, ReduceParams, gradient_tiles, load};
use crate::error::Result;
use crate::programs;

/// `GradientParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GradientParams {
    /// Of sums, 1: overwrite them.
    pub(crate) first: u32,
    /// Row of the output where the block begins.
    pub(crate) row: u32,
    /// Of finished gradients.
    pub(crate) factor: GradientFactor,
    /// The sums over earlier blocks that finished gradients begin with, from the block's first row on; 0 for none.
    pub(crate) before: u64,
    pub(crate) before_stride: u64,
    /// What the last product of a step computes beside its gradient.
    pub(crate) scalars: ReduceParams,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for GradientParams {}

pub(crate) struct GradientSm90 {
    kernel: Kernel,
    /// Of a tile.
    columns: usize,
}

impl GradientSm90 {
    /// `transposed`: the product Gᵀ · img; otherwise G · txt. `direct`: the output is the gradient itself, else its sums. `output`: rows and
    /// columns of a block's.
    pub(crate) fn new(gpu: &Gpu, dtype: DType, transposed: bool, direct: bool, output: [usize; 2]) -> Result<Self> {
        // Both products of B = 8,192, D = 768 on an H200: 0.263 ms with the wide tiles that this takes, 0.285 with narrow ones; the step 3% less sustained.
        let columns = columns(output, gpu.info().sm_count as usize);
        Ok(Self { kernel: load(gpu, &programs::gradient_sm90(dtype, transposed, direct, columns))?, columns })
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
        let config = launch_config(info, shape.tiles_of([TILE, self.columns]), 1);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[a, b, out, &shape, &params]) }?)
    }
}

/// Columns of the tiles of a product with such an output (rows, columns).
pub(crate) fn columns(output: [usize; 2], sms: usize) -> usize {
    gradient_tiles::columns(output, 0, sms)
}
