//! `cuda/gradient_int8.cu`: both gradient GEMMs of route int8, accumulated in f32 over blocks.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, TILE, launch_config};
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, TensorMap};

use super::{gradient_tiles, load};
use crate::error::Result;
use crate::programs;

/// Blocks of a cluster, as the kernel has it: each has a tile row, and loads its part of the other side's rows for both.
pub(crate) const CLUSTER: usize = 2;
/// What the additions to a tile's f32 sums take, as so many of its columns (H200).
pub(crate) const ADDITIONS: usize = 256;

/// `GradientInt8Params` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GradientInt8Params {
    /// Of G or its transpose.
    pub(crate) scales: u64,
    /// f32 of them for every 128 of K.
    pub(crate) stride: u32,
    /// 1: overwrite the accumulators.
    pub(crate) first: u32,
    /// Row of the output where the block begins.
    pub(crate) row: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for GradientInt8Params {}

pub(crate) struct GradientInt8 {
    kernel: Kernel,
    columns: usize,
}

impl GradientInt8 {
    /// `output`: rows and columns of a block's.
    pub(crate) fn new(gpu: &Gpu, output: [usize; 2]) -> Result<Self> {
        let columns = columns(output, gpu.info().sm_count as usize);
        Ok(Self { kernel: load(gpu, &programs::gradient_int8(columns))?, columns })
    }

    /// Rows of a box of the other side's: what a block of a cluster loads of a tile.
    pub(crate) fn other_rows(&self) -> usize {
        self.columns / CLUSTER
    }

    /// # Safety
    /// The maps must describe live memory of the shapes that the block has.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        [a, b, out]: [&TensorMap; 3],
        shape: GemmShape,
        params: GradientInt8Params,
    ) -> Result<()> {
        let tiles = CLUSTER * shape.tiles_of([CLUSTER * TILE, self.columns]);
        let config = launch_config(info, tiles, CLUSTER as u32);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[a, b, out, &shape, &params]) }?)
    }
}

/// Columns of the tiles of a product with such an output (rows, columns), whose tile rows are those of whole clusters.
pub(crate) fn columns([rows, columns]: [usize; 2], sms: usize) -> usize {
    gradient_tiles::columns([rows.next_multiple_of(CLUSTER * TILE), columns], ADDITIONS, sms)
}
