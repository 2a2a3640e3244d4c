//! `cuda/logits_fp8.cu`: the logit GEMM of route fp8-all with the pair loss and its gradient in the epilogue.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{CONSUMER_WARPS, GemmShape, TILE, launch_config};
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, ScalarArg, TensorMap};

use super::load;
use crate::error::Result;
use crate::programs;

/// `LogitsFp8Params` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LogitsFp8Params {
    pub(crate) log_temp: ScalarArg,
    pub(crate) bias: ScalarArg,
    /// 1: this launch opens the sums.
    pub(crate) first: u32,
    /// Column minus row of a positive pair, relative to the block.
    pub(crate) diagonal: i64,
    pub(crate) sums: u64,
    pub(crate) exponents: u64,
    pub(crate) terms: u64,
    pub(crate) positives: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for LogitsFp8Params {}

pub(crate) struct LogitsFp8 {
    kernel: Kernel,
    cluster: u32,
    columns: usize,
}

impl LogitsFp8 {
    /// `columns`: of a tile.
    pub(crate) fn new(gpu: &Gpu, gradient: bool, columns: usize) -> Result<Self> {
        let kernel = load(gpu, &programs::logits_fp8(gradient, columns))?;
        Ok(Self { kernel, cluster: programs::logits_cluster(gradient), columns })
    }

    /// Of a tile.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Rows of a box of text: what a block of a cluster loads of a tile.
    pub(crate) fn text_rows(&self) -> usize {
        self.columns / self.cluster as usize
    }

    /// Gives the number of slots it writes.
    ///
    /// # Safety
    /// The maps and `params` must describe live memory of the shapes that the block has; `g` and its transpose are not used without gradients.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        [img, txt, g, transpose]: [&TensorMap; 4],
        shape: GemmShape,
        params: LogitsFp8Params,
    ) -> Result<usize> {
        let config = launch_config(info, shape.tiles_of([TILE, self.columns]), self.cluster);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        unsafe { self.kernel.launch(stream, &config, &[img, txt, g, transpose, &shape, &params]) }?;
        Ok(config.grid[0] as usize * CONSUMER_WARPS)
    }
}
