//! `cuda/logits_int8.cu`: the logit GEMM of route int8 with the pair loss and its gradient in the epilogue.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{CONSUMER_WARPS, GemmShape, TILE, launch_config};
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, ScalarArg, TensorMap};

use super::load;
use crate::error::Result;
use crate::programs;

/// `LogitsInt8Params` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LogitsInt8Params {
    pub(crate) log_temp: ScalarArg,
    pub(crate) bias: ScalarArg,
    /// 1: this launch opens the sums.
    pub(crate) first: u32,
    /// Column minus row of a positive pair, relative to the block.
    pub(crate) diagonal: i64,
    pub(crate) sums: u64,
    /// Of the rows of images and of texts, from the block's first ones on.
    pub(crate) scales: [u64; 2],
    pub(crate) terms: u64,
    pub(crate) positives: u64,
    /// Of G and of its transpose: f32, for every 128 columns and rows one a row and a column.
    pub(crate) g_scales: [u64; 2],
    /// How many rows and columns they have room for.
    pub(crate) g_strides: [u32; 2],
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for LogitsInt8Params {}

pub(crate) struct LogitsInt8 {
    kernel: Kernel,
    cluster: u32,
}

impl LogitsInt8 {
    pub(crate) fn new(gpu: &Gpu, gradient: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::logits_int8(gradient))?, cluster: programs::logits_cluster(gradient) })
    }

    /// Rows of a box of text: what a block of a cluster loads of a tile.
    pub(crate) fn text_rows(&self) -> usize {
        TILE / self.cluster as usize
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
        params: LogitsInt8Params,
    ) -> Result<usize> {
        let config = launch_config(info, shape.tiles_of([TILE, TILE]), self.cluster);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        unsafe { self.kernel.launch(stream, &config, &[img, txt, g, transpose, &shape, &params]) }?;
        Ok(config.grid[0] as usize * CONSUMER_WARPS)
    }
}
