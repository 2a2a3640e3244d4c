//! `cuda/gradient_split.cu`: the gradient products on Hopper at f32 accuracy, into the gradients themselves.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, SplitPlanes, launch_config};
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, TensorMap};

use super::{GradientFactor, PositivePairs, load};
use crate::error::Result;
use crate::programs;

/// `GradientSplitParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GradientSplitParams {
    pub(crate) factor: GradientFactor,
    pub(crate) g_inverse: u64,
    pub(crate) other_inverse: u64,
    /// Elements of `g_inverse` from one 64 of the output's rows to the next, and from one 64 of the sum to the next.
    pub(crate) g_inverse_m: u32,
    pub(crate) g_inverse_k: u32,
    /// The first row of the block.
    pub(crate) out: u64,
    pub(crate) out_stride: u64,
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) positives: PositivePairs,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for GradientSplitParams {}

pub(crate) struct GradientSplit {
    kernel: Kernel,
    tile: [usize; 2],
}

impl GradientSplit {
    /// `transposed`: the product Gᵀ · img; otherwise G · txt. The wider tile moves less memory; the narrower one is for widths that leave less of
    /// it empty.
    pub(crate) fn new(gpu: &Gpu, dim: usize, transposed: bool) -> Result<Self> {
        let columns = columns(dim);
        Ok(Self { kernel: load(gpu, &programs::gradient_split(transposed, columns))?, tile: [128, columns] })
    }

    /// # Safety
    /// The maps and the addresses in `params` must describe live memory of the shapes that the block has.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        [g, other]: [&TensorMap; 2],
        shape: GemmShape,
        planes: SplitPlanes,
        params: GradientSplitParams,
    ) -> Result<()> {
        let config = launch_config(info, shape.tiles_of(self.tile), 1);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[g, other, &shape, &planes, &params]) }?)
    }
}

/// Columns of a tile: 192, unless fewer of them would be outside of the gradient with 128.
pub(crate) fn columns(dim: usize) -> usize {
    if dim.next_multiple_of(192) <= dim.next_multiple_of(128) { 192 } else { 128 }
}
