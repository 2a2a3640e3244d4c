//! `cuda/gradient_fp8.cu`: both gradient GEMMs of route fp8-all, accumulated in f32 over blocks.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, TILE, launch_config};
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, TensorMap};

use super::gradient_sm90::columns;
use super::load;
use crate::error::Result;
use crate::programs;

/// `GradientFp8Params` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GradientFp8Params {
    /// 1: overwrite the accumulators.
    pub(crate) first: u32,
    /// Row of the output where the block begins.
    pub(crate) row: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for GradientFp8Params {}

pub(crate) struct GradientFp8 {
    kernel: Kernel,
    columns: usize,
}

impl GradientFp8 {
    /// `rows`: of a block's output, which is `dim` wide.
    pub(crate) fn new(gpu: &Gpu, [rows, dim]: [usize; 2]) -> Result<Self> {
        let columns = columns(rows, dim, gpu.info().sm_count as usize);
        Ok(Self { kernel: load(gpu, &programs::gradient_fp8(columns))?, columns })
    }

    /// Of a tile.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// # Safety
    /// The maps must describe live memory of the shapes that the block has.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        [a, b, out]: [&TensorMap; 3],
        shape: GemmShape,
        params: GradientFp8Params,
    ) -> Result<()> {
        let config = launch_config(info, shape.tiles_of([TILE, self.columns]), 1);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[a, b, out, &shape, &params]) }?)
    }
}
