//! How the kernels that quantise inputs walk rows: a warp a row at a time, as `Rows` of `cuda/rows.cuh`.

use kernel_core::{DeviceInfo, LaunchConfig};

pub(super) const THREADS: u32 = 256;
const ROWS_PER_BLOCK: u32 = THREADS / 32;
const BLOCKS_PER_SM: u32 = 8;

/// Blocks of a launch, at most.
pub(super) fn most_blocks(info: &DeviceInfo) -> u32 {
    info.sm_count * BLOCKS_PER_SM
}

/// A launch over that many rows of each of `sides`.
pub(super) fn by_rows(info: &DeviceInfo, rows: u32, sides: u32) -> LaunchConfig {
    let blocks = rows.div_ceil(ROWS_PER_BLOCK).min(most_blocks(info));
    LaunchConfig { grid: [blocks, sides, 1], ..LaunchConfig::linear(blocks, THREADS).with_programmatic(true) }
}
