//! `cuda/logits_split.cu`: the logit product on Hopper at f32 accuracy with the pair loss and its gradient in the epilogue.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{CONSUMER_WARPS, GemmShape, SplitPlanes, launch_config};
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, ScalarArg, TensorMap};

use super::load;
use crate::error::Result;
use crate::programs;

/// `Loop::TILE_M` and `Loop::TILE_N` of the kernel.
const TILE: [usize; 2] = [128, 192];

/// `LogitsSplitParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LogitsSplitParams {
    pub(crate) log_temp: ScalarArg,
    pub(crate) bias: ScalarArg,
    pub(crate) img_inverse: u64,
    pub(crate) txt_inverse: u64,
    pub(crate) g: u64,
    pub(crate) g_stride: u64,
    pub(crate) g_plane: u64,
    pub(crate) g_inverse: u64,
    pub(crate) g_inverse_stride: u64,
    /// By row of the block.
    pub(crate) positive: u64,
    pub(crate) first: u32,
    /// Column minus row of a positive pair, relative to the block.
    pub(crate) diagonal: i64,
    pub(crate) sums: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for LogitsSplitParams {}

pub(crate) struct LogitsSplit {
    kernel: Kernel,
}

impl LogitsSplit {
    pub(crate) fn new(gpu: &Gpu, gradient: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::logits_split(gradient))? })
    }

    /// Gives the number of slots it writes. `shape` is `rows` × `cols` pairs.
    ///
    /// # Safety
    /// The maps and the addresses in `params` must describe live memory of the shapes that the block has; `g` and its scales are not used without gradients.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        [img, txt]: [&TensorMap; 2],
        shape: GemmShape,
        planes: SplitPlanes,
        params: LogitsSplitParams,
    ) -> Result<usize> {
        let config = launch_config(info, shape.tiles_of(TILE), 1);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        unsafe { self.kernel.launch(stream, &config, &[img, txt, &shape, &planes, &params]) }?;
        Ok(config.grid[0] as usize * CONSUMER_WARPS)
    }
}
