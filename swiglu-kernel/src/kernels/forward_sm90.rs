//! `cuda/forward_sm90.cu`: both projections and the gate in one GEMM on Hopper.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, TILE, launch_config};
use kernel_core::{Gpu, Kernel, KernelArg, LastMaps, TensorMap};

use super::load;
use super::maps::weights;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs::{self, CLUSTER};

/// Pairs of tile rows that a band of the tile order spans, and tile rows where blocks are alone. Measured on an H200: as fast as any.
const BAND: u32 = 8;
const BAND_ALONE: u32 = 32;

/// Blocks of a cluster, and columns of z that a tile of [`TILE`] rows holds: as many of each projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardTile {
    pub(crate) cluster: u32,
    pub(crate) columns: usize,
}

const ALONE: ForwardTile = ForwardTile { cluster: 1, columns: 64 };
const SHARING: ForwardTile = ForwardTile { cluster: CLUSTER, columns: 64 };
const WIDE: ForwardTile = ForwardTile { cluster: CLUSTER, columns: 96 };
pub(crate) const TILES: [ForwardTile; 3] = [ALONE, SHARING, WIDE];

impl ForwardTile {
    /// Clusters of tiles that cover z, and the most of them that one cluster of blocks walks.
    fn clusters(self, problem: &Problem, sm_count: u32) -> (usize, usize) {
        let clusters = problem.rows.div_ceil(TILE * self.cluster as usize) * problem.outputs.div_ceil(self.columns);
        (clusters, clusters.div_ceil((sm_count / self.cluster).max(1) as usize).max(1))
    }

    /// As few blocks as need no more waves than all of them would: the others only draw power. 0.6% at M = 4096, K = 1024, N = 4096 (128 of 132).
    fn blocks(self, problem: &Problem, sm_count: u32) -> usize {
        let (clusters, waves) = self.clusters(problem, sm_count);
        clusters.div_ceil(waves) * self.cluster as usize
    }
}

/// `ForwardParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct ForwardParams {
    gate_bias: u64,
    up_bias: u64,
    with_z: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for ForwardParams {}

/// Addresses of a call; pairs are `[gate, up]`. Compared from call to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardCall {
    pub(crate) x: At,
    pub(crate) weights: [At; 2],
    pub(crate) bias: [u64; 2],
    /// Null when only the pre-activations are wanted.
    pub(crate) z: At,
    pub(crate) saved: Option<[At; 2]>,
}

/// From how long a sum on wide tiles are worth their longer epilogue.
const LONG: usize = 2048;

/// Where x and the weights fit half of the L2, sharing the weights' tiles is not worth waiting for each other: 2% at M = 4096, K = 1024, N = 4096.
/// Elsewhere wide tiles, which move less and so draw less power, where sums are long and waves no more than 1% longer.
fn choose_tile(problem: &Problem, sm_count: u32, l2_bytes: usize) -> ForwardTile {
    let Problem { rows, inputs, outputs, dtype, .. } = *problem;
    let operands = inputs.saturating_mul(rows + 2 * outputs).saturating_mul(dtype.size_bytes());
    if operands <= l2_bytes / 2 {
        return ALONE;
    }
    let cost = |tile: ForwardTile| tile.clusters(problem, sm_count).1 * tile.columns;
    if inputs >= LONG && cost(WIDE) * 100 <= cost(SHARING) * 101 { WIDE } else { SHARING }
}

pub(crate) struct ForwardSm90 {
    plain: Kernel,
    saving: Kernel,
    tile: ForwardTile,
    problem: Problem,
    maps: LastMaps<ForwardCall, [TensorMap; 6]>,
}

impl ForwardSm90 {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        let tile = choose_tile(problem, gpu.info().sm_count, gpu.info().l2_bytes);
        let kernel = |save| load(gpu, &programs::forward_sm90(problem, save, tile));
        Ok(Self { plain: kernel(false)?, saving: kernel(true)?, tile, problem: *problem, maps: LastMaps::new() })
    }

    /// x, gate weights, up weights, z, gate, up. Where 64 does not divide a tile, its columns are loaded and stored by 32.
    fn encode(problem: &Problem, tile: ForwardTile, call: &ForwardCall) -> Result<[TensorMap; 6]> {
        let Problem { rows, inputs, outputs, dtype, layout, .. } = *problem;
        let slice = if tile.columns.is_multiple_of(64) { 64 } else { 32 };
        let weights = |at| weights(problem, at).boxes(if layout.is_linear() { [64, slice] } else { [slice, 64] });
        // `STORED_ROWS` of the kernel.
        let stored = if call.saved.is_some() { 64 } else { 16 };
        let piece = |at: At| at.matrix(dtype, rows, outputs).boxes([slice, stored]);
        // A map that is never followed may be any valid one: of z for the pre-activations, of the gate's for z.
        let [gate_saved, up_saved] = call.saved.unwrap_or([call.z, call.z]);
        let z = if call.z.address == 0 { gate_saved } else { call.z };
        let [gate, up] = call.weights;
        Ok([
            call.x.matrix(dtype, rows, inputs).k_major(1)?,
            weights(gate)?,
            weights(up)?,
            piece(z)?,
            piece(gate_saved)?,
            piece(up_saved)?,
        ])
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, rows beginning at multiples of 16 bytes.
    pub(crate) unsafe fn launch(&mut self, gpu: &Gpu, stream: &CudaStream, call: &ForwardCall) -> Result<()> {
        let [x, w_gate, w_up, z, gate, up] = self.maps.of(*call, || Self::encode(&self.problem, self.tile, call))?;
        let Problem { rows, inputs, outputs, .. } = self.problem;
        let cluster = self.tile.cluster;
        let kernel = if call.saved.is_some() { &self.saving } else { &self.plain };
        let shape = GemmShape::new(rows, outputs, inputs, if cluster == 1 { BAND_ALONE } else { BAND });
        let config = launch_config(gpu.info(), self.tile.blocks(&self.problem, gpu.info().sm_count), cluster);
        let params =
            ForwardParams { gate_bias: call.bias[0], up_bias: call.bias[1], with_z: u32::from(call.z.address != 0) };
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { kernel.launch(stream, &config, &[&x, &w_gate, &w_up, &z, &gate, &up, &shape, &params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_core::DType;

    #[test]
    fn no_block_is_there_for_less_than_the_others() {
        let blocks = |tile: ForwardTile, m, n| tile.blocks(&Problem::new(m, 64, n, DType::Bf16), 132);
        assert_eq!((blocks(ALONE, 4096, 4096), blocks(ALONE, 129, 64)), (128, 2));
        assert_eq!((blocks(SHARING, 16_384, 4304), blocks(SHARING, 600, 40 * 64)), (132, 120), "pairs of tile rows");
    }

    #[test]
    fn blocks_share_weights_that_do_not_fit_the_cache_and_are_wide_for_long_sums() {
        let tile = |m, k, n| choose_tile(&Problem::new(m, k, n, DType::Bf16), 132, 60 << 20);
        assert_eq!((tile(4096, 1024, 4096), tile(16_384, 1152, 4304)), (ALONE, SHARING));
        assert_eq!((tile(8192, 4096, 14_336), tile(8192, 4096, 11_008)), (WIDE, WIDE));
        assert_eq!((tile(512, 8192, 4096), tile(300, 2600, 3096)), (SHARING, WIDE), "two waves of narrow tiles");
    }
}
