//! `cuda/fused_sm90.cu`: logits, loss, G and the gradient of the rows in one launch.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{TILE, launch_config};
use kernel_core::{DType, DeviceInfo, Error, Gpu, Kernel, KernelArg, ScalarArg, TensorMap};

use super::load;
use crate::error::Result;
use crate::programs;

/// `FusedParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FusedParams {
    pub(crate) log_temp: ScalarArg,
    pub(crate) bias: ScalarArg,
    /// Of the block; features.
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) dim: u32,
    /// Where the block begins in images and texts.
    pub(crate) row: i32,
    pub(crate) col: i32,
    /// [`FusedSm90::slices`].
    pub(crate) slices: u32,
    /// Rounds of a group of columns, each of `slices` tiles of 128 columns; the last group may have fewer.
    pub(crate) rounds: u32,
    /// Rounds of a group that G holds: two at least, unless groups have only one.
    pub(crate) ring: u32,
    /// 1: this launch opens the sums; the accumulators.
    pub(crate) opens_sums: u32,
    pub(crate) opens: u32,
    /// Column minus row of a positive pair, relative to the block.
    pub(crate) diagonal: i64,
    pub(crate) sums: u64,
    /// [`FusedSm90::COUNTERS`] a panel (and there is one for every 128 rows of each group), zero between launches.
    pub(crate) counters: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for FusedParams {}

pub(crate) struct FusedSm90 {
    kernel: Kernel,
}

impl FusedSm90 {
    /// u32 counters of a panel.
    pub(crate) const COUNTERS: usize = 5;
    /// Warps of a block that keep sums.
    const WARPS: usize = 4;

    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::fused_sm90(dtype))? })
    }

    /// Blocks of a panel of 128 rows: each sums 128 features.
    pub(crate) fn slices(dim: usize) -> usize {
        dim.div_ceil(TILE)
    }

    /// Columns of a round.
    pub(crate) fn round(dim: usize) -> usize {
        Self::slices(dim) * TILE
    }

    /// Panels of one launch, at most: its blocks wait for each other, so all of them must be on the device at once.
    pub(crate) fn panels(dim: usize, sms: usize) -> usize {
        sms / Self::slices(dim)
    }

    /// `maps`: images and texts along K, texts by rows, G as it is stored and as it is loaded, and the accumulators. Gives the number of slots it writes.
    ///
    /// # Safety
    /// The maps and addresses must describe live memory of the shapes that the block has, of no more panels than [`FusedSm90::panels`].
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        maps: [&TensorMap; 6],
        params: FusedParams,
    ) -> Result<usize> {
        let FusedParams { rows, cols, slices, rounds, .. } = params;
        let groups = cols.div_ceil(slices * TILE as u32).div_ceil(rounds);
        let blocks = rows.div_ceil(TILE as u32) * groups * slices;
        let config = launch_config(info, blocks as usize, 1);
        // They wait for each other: with fewer of them none would end.
        if config.grid[0] != blocks {
            let what = format!("a fused launch of {blocks} blocks, of which {} fit the device at once", config.grid[0]);
            return Err(Error::Unsupported { what }.into());
        }
        let [img, txt, txt_rows, g_store, g_load, out] = maps;
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        unsafe { self.kernel.launch(stream, &config, &[img, txt, txt_rows, g_store, g_load, out, &params]) }?;
        Ok(config.grid[0] as usize * Self::WARPS)
    }
}
