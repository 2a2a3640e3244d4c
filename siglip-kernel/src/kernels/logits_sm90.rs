//! `cuda/logits_sm90.cu`: the logit GEMM on Hopper with the pair loss and its gradient in the epilogue.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{CONSUMER_WARPS, GemmShape, TILE, launch_config};
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, ScalarArg, TensorMap};

use super::load;
use crate::error::Result;
use crate::programs;

/// `LogitsParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LogitsParams {
    pub(crate) log_temp: ScalarArg,
    pub(crate) bias: ScalarArg,
    /// 1: this launch opens the sums.
    pub(crate) first: u32,
    /// Column minus row of a positive pair, relative to the block.
    pub(crate) diagonal: i64,
    pub(crate) sums: u64,
    /// Null unless the operands are e4m3.
    pub(crate) exponents: u64,
    pub(crate) positives: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for LogitsParams {}

pub(crate) struct LogitsSm90 {
    kernel: Kernel,
    cluster: u32,
    tile: [usize; 2],
}

impl LogitsSm90 {
    /// `fp8`: the operands are e4m3. `columns`: of a tile.
    pub(crate) fn new(gpu: &Gpu, dtype: DType, gradient: bool, fp8: bool, columns: usize) -> Result<Self> {
        let kernel = load(gpu, &programs::logits_sm90(dtype, gradient, fp8, columns))?;
        Ok(Self { kernel, cluster: programs::logits_cluster(gradient), tile: [TILE, columns] })
    }

    /// Of a tile.
    pub(crate) fn columns(&self) -> usize {
        self.tile[1]
    }

    /// Rows of a box of text: what a block of a cluster loads of a tile.
    pub(crate) fn text_rows(&self) -> usize {
        self.tile[1] / self.cluster as usize
    }

    /// Gives the number of slots it writes.
    ///
    /// # Safety
    /// The maps and `params.sums` must describe live memory of the shapes that the block has; `g` is not used without gradients.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        [img, txt, g]: [&TensorMap; 3],
        shape: GemmShape,
        params: LogitsParams,
    ) -> Result<usize> {
        let config = launch_config(info, shape.tiles_of(self.tile), self.cluster);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        unsafe { self.kernel.launch(stream, &config, &[img, txt, g, &shape, &params]) }?;
        Ok(config.grid[0] as usize * CONSUMER_WARPS)
    }
}
