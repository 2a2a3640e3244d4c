//! `cuda/forward_sm90.cu`: both projections and the gate in one GEMM on Hopper.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, TILE, launch_config};
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, LastMaps, TensorMap, Variant};

use super::load;
use super::maps::weights;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs::{self, CLUSTER};

/// Pairs of tile rows that a band of the tile order spans, and tile rows where blocks are alone. Measured on an H200: as fast as any.
const BAND: u32 = 8;
const BAND_ALONE: u32 = 32;

/// Columns of the tiles that end a row of wide ones.
const NARROW: usize = 64;
/// How many of them may.
const MOST_NARROW: usize = 8;
/// From so many clusters of tiles on, how whole ones fall to blocks makes no difference.
const MANY: usize = 1 << 16;

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

/// The tiles that cover the columns of z: so many of the tile's own width, then so many of [`NARROW`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Division {
    wide: usize,
    narrow: usize,
}

impl ForwardTile {
    /// Clusters of tile rows.
    fn rows(self, problem: &Problem) -> usize {
        problem.rows.div_ceil(TILE * self.cluster as usize)
    }

    fn band(self) -> u32 {
        if self.cluster == 1 { BAND_ALONE } else { BAND }
    }

    /// As many blocks as need no more waves than all of them would: the others only draw power. 0.6% at M = 4096, K = 1024, N = 4096 (128 of 132).
    fn blocks(self, problem: &Problem, division: Division, sm_count: u32) -> usize {
        let clusters = self.rows(problem) * (division.wide + division.narrow);
        let waves = clusters.div_ceil((sm_count / self.cluster).max(1) as usize).max(1);
        clusters.div_ceil(waves) * self.cluster as usize
    }

    /// The columns of z that the busiest block computes, tile row by tile row.
    fn longest(self, problem: &Problem, division: Division, sm_count: u32) -> usize {
        let blocks = self.blocks(problem, division, sm_count) / self.cluster as usize;
        let (rows, columns) = (self.rows(problem), division.wide + division.narrow);
        if division.narrow == 0 || rows * columns >= MANY {
            let covered = rows * (division.wide * self.columns + division.narrow * NARROW);
            let average = covered.div_ceil(blocks.max(1));
            return if division.narrow == 0 { average.next_multiple_of(self.columns) } else { average };
        }
        // In the order of `TileOrder` of the kernel.
        let mut load = vec![0; blocks];
        let band = self.band() as usize;
        let heights = (0..rows).step_by(band).map(|first| band.min(rows - first));
        let tiles = heights.flat_map(|height| (0..columns).flat_map(move |column| (0..height).map(move |_| column)));
        for (i, column) in tiles.enumerate() {
            load[i % blocks] += if column < division.wide { self.columns } else { NARROW };
        }
        load.into_iter().max().unwrap_or(0)
    }

    /// Some narrow tiles at the end of a row, where that leaves the busiest block less to do, or nobody anything beyond z.
    fn divide(self, problem: &Problem, sm_count: u32) -> Division {
        let whole = Division { wide: problem.outputs.div_ceil(self.columns), narrow: 0 };
        // The kernel with a bias has one width.
        if self.columns == NARROW || problem.bias {
            return whole;
        }
        let divisions = (0..=MOST_NARROW).map(|narrow| {
            let rest = problem.outputs.saturating_sub(narrow * NARROW);
            Division { wide: rest.div_ceil(self.columns), narrow }
        });
        let cost = |division: &Division| {
            let covered = division.wide * self.columns + division.narrow * NARROW;
            (self.longest(problem, *division, sm_count), covered)
        };
        divisions.min_by_key(cost).unwrap_or(whole)
    }
}

/// `ForwardParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct ForwardParams {
    gate_bias: u64,
    up_bias: u64,
    with_z: u32,
    wide: u32,
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
/// Elsewhere wide tiles, which move less and so draw less power, where sums are long, most tiles of a row are wide and waves no more than 1% longer.
fn choose_tile(problem: &Problem, sm_count: u32, l2_bytes: usize) -> (ForwardTile, Division) {
    let Problem { rows, inputs, outputs, dtype, .. } = *problem;
    let operands = inputs.saturating_mul(rows + 2 * outputs).saturating_mul(dtype.size_bytes());
    if operands <= l2_bytes / 2 {
        return (ALONE, ALONE.divide(problem, sm_count));
    }
    let [wide, sharing] = [WIDE, SHARING].map(|tile| {
        let division = tile.divide(problem, sm_count);
        (tile, division, tile.longest(problem, division, sm_count))
    });
    let takes_wide = inputs >= LONG && wide.1.wide > wide.1.narrow && wide.2 * 100 <= sharing.2 * 101;
    let (tile, division, _) = if takes_wide { wide } else { sharing };
    (tile, division)
}

pub(crate) struct ForwardSm90 {
    plain: Kernel,
    saving: Kernel,
    tile: ForwardTile,
    division: Division,
    problem: Problem,
    maps: LastMaps<ForwardCall, [TensorMap; 6]>,
}

impl ForwardSm90 {
    /// Plain and saving.
    pub(crate) fn variants(info: &DeviceInfo, problem: &Problem) -> [Variant; 2] {
        let (tile, _) = choose_tile(problem, info.sm_count, info.l2_bytes);
        [false, true].map(|save| programs::forward_sm90(problem, save, tile))
    }

    pub(crate) fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        let (tile, division) = choose_tile(problem, gpu.info().sm_count, gpu.info().l2_bytes);
        let [plain, saving] = Self::variants(gpu.info(), problem);
        Ok(Self {
            plain: load(gpu, &plain)?,
            saving: load(gpu, &saving)?,
            tile,
            division,
            problem: *problem,
            maps: LastMaps::new(),
        })
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
        let shape = GemmShape::new(rows, outputs, inputs, self.tile.band());
        let blocks = self.tile.blocks(&self.problem, self.division, gpu.info().sm_count);
        let config = launch_config(gpu.info(), blocks, cluster);
        let params = ForwardParams {
            gate_bias: call.bias[0],
            up_bias: call.bias[1],
            with_z: u32::from(call.z.address != 0),
            wide: self.division.wide as u32,
        };
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
        let blocks = |tile: ForwardTile, m, n| {
            let problem = Problem::new(m, 64, n, DType::Bf16);
            tile.blocks(&problem, tile.divide(&problem, 132), 132)
        };
        assert_eq!((blocks(ALONE, 4096, 4096), blocks(ALONE, 129, 64)), (128, 2));
        assert_eq!((blocks(SHARING, 16_384, 4304), blocks(SHARING, 600, 40 * 64)), (132, 120), "pairs of tile rows");
    }

    #[test]
    fn two_widths_divide_what_one_does_not() {
        let divide = |tile: ForwardTile, m, n| {
            let problem = Problem::new(m, 4096, n, DType::Bf16);
            let division = tile.divide(&problem, 132);
            (division.wide, division.narrow, tile.longest(&problem, division, 132))
        };
        assert_eq!(divide(WIDE, 8192, 14_336), (148, 2, 72 * 96 + 64), "73 of 96 columns otherwise");
        assert_eq!(divide(WIDE, 8192, 11_008), (114, 1, 56 * 96), "as long, but no column beyond z");
        assert_eq!(divide(SHARING, 8192, 14_336), (224, 0, 109 * 64));
        assert_eq!((divide(WIDE, 1, 8), divide(WIDE, 300, 3096)), ((0, 1, 64), (31, 2, 96)));
        let biased = Problem::new(8192, 4096, 14_336, DType::Bf16).with_bias(true);
        assert_eq!(WIDE.divide(&biased, 132), Division { wide: 150, narrow: 0 });
        let long = Problem::new(1 << 20, 4096, 14_336, DType::Bf16);
        assert_eq!(WIDE.divide(&long, 132), Division { wide: 148, narrow: 2 }, "by what lies beyond z alone");
    }

    #[test]
    fn blocks_share_weights_that_do_not_fit_the_cache_and_are_wide_for_long_sums() {
        let tile = |m, k, n| choose_tile(&Problem::new(m, k, n, DType::Bf16), 132, 60 << 20).0;
        assert_eq!((tile(4096, 1024, 4096), tile(16_384, 1152, 4304)), (ALONE, SHARING));
        assert_eq!((tile(8192, 4096, 14_336), tile(8192, 4096, 11_008)), (WIDE, WIDE));
        assert_eq!((tile(512, 8192, 4096), tile(300, 2600, 3096)), (SHARING, WIDE), "two waves of narrow tiles");
    }
}
