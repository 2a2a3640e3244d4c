//! `cuda/input_gradient_sm90.cu`: dx on Hopper, and with it the pass that makes the gradients of the pre-activations.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::launch_config;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LastMaps, LaunchConfig, TensorMap, Variant};

use super::gate::DerivativeParams;
use super::load;
use super::maps::weights;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs::{self, CLUSTER};

/// Rows and columns of dx that a tile may hold: 64 rows for each of two or three consumers.
pub(crate) const TILES: [[usize; 2]; 2] = [[128, 256], [192, 192]];
/// Pairs of tile rows that a band spans at least.
const BAND: usize = 8;
/// `CHUNK` of the kernel, and the counters before those of chunks.
const CHUNK: usize = 128;
const COUNTERS: usize = 4;

/// `InputGradientParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct InputGradientParams {
    derivative: DerivativeParams,
    dx: u64,
    dx_stride: u64,
    progress: u64,
    rows: u32,
    outputs: u32,
    inputs: u32,
    band: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for InputGradientParams {}

/// Addresses of a call; pairs are `[gate, up]`. Compared from call to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InputGradientCall {
    pub(crate) weights: [At; 2],
    pub(crate) preactivations: [At; 2],
    pub(crate) dz: At,
    /// May be the pre-activations.
    pub(crate) gradients: [At; 2],
    pub(crate) dx: At,
}

impl InputGradientCall {
    /// Whether the kernel can address everything: rows that begin at multiples of 16 bytes.
    pub(crate) fn is_aligned(&self, element_bytes: usize) -> bool {
        let pairs = [self.weights, self.preactivations, self.gradients, [self.dz, self.dx]];
        pairs.iter().flatten().all(|at| at.is_aligned(element_bytes))
    }
}

/// Bytes of the kernel's counters, which must be zero before its first launch.
pub(crate) fn progress_bytes(problem: &Problem) -> usize {
    let chunks = problem.outputs.div_ceil(CHUNK).next_multiple_of(4);
    let tile_rows = TILES.iter().map(|[rows, _]| problem.rows.div_ceil(*rows)).max().unwrap_or(0);
    (COUNTERS + tile_rows * chunks) * size_of::<u32>()
}

/// Clusters of tiles that cover dx.
fn clusters_of(problem: &Problem, [rows, columns]: [usize; 2]) -> usize {
    problem.rows.div_ceil(CLUSTER as usize * rows) * problem.inputs.div_ceil(columns)
}

/// The tile, where tiles fill the device: the one whose waves are the shortest. None where an eighth of the work or more would be for nothing; cuBLASLt
/// divides such a product better than the pass costs.
fn choose_tile(problem: &Problem, sm_count: u32) -> Option<[usize; 2]> {
    let Problem { rows, inputs, outputs, dtype, .. } = *problem;
    if dtype == DType::F32 || !inputs.is_multiple_of(8) || !outputs.is_multiple_of(8) {
        return None;
    }
    let clusters = (sm_count / CLUSTER) as usize;
    let cost = |tile: [usize; 2]| {
        clusters_of(problem, tile).div_ceil(clusters) * clusters * CLUSTER as usize * tile[0] * tile[1]
    };
    let tile = TILES.into_iter().min_by_key(|&tile| cost(tile))?;
    (cost(tile) / 9 * 8 <= rows * inputs).then_some(tile)
}

pub(crate) struct InputGradientSm90 {
    kernel: Kernel,
    tile: [usize; 2],
    problem: Problem,
    progress: u64,
    maps: LastMaps<InputGradientCall, [TensorMap; 4]>,
}

impl InputGradientSm90 {
    /// What [`InputGradientSm90::new`] loads.
    pub(crate) fn variant(info: &DeviceInfo, problem: &Problem) -> Option<Variant> {
        choose_tile(problem, info.sm_count).map(|tile| programs::input_gradient_sm90(problem, tile))
    }

    /// None where the product is better left to cuBLASLt. `progress`: the address of [`progress_bytes`] zeros.
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, progress: u64) -> Result<Option<Self>> {
        let Some(tile) = choose_tile(problem, gpu.info().sm_count) else { return Ok(None) };
        let kernel = load(gpu, &programs::input_gradient_sm90(problem, tile))?;
        Ok(Some(Self { kernel, tile, problem: *problem, progress, maps: LastMaps::new() }))
    }

    /// d_gate, d_up, gate weights, up weights. The gradients in boxes of 64 × 64, as the weights.
    fn encode(problem: &Problem, call: &InputGradientCall) -> Result<[TensorMap; 4]> {
        let Problem { rows, outputs, dtype, .. } = *problem;
        let ([d_gate, d_up], [gate, up]) = (call.gradients, call.weights);
        Ok([
            d_gate.matrix(dtype, rows, outputs).mn_major()?,
            d_up.matrix(dtype, rows, outputs).mn_major()?,
            weights(problem, gate).mn_major()?,
            weights(problem, up).mn_major()?,
        ])
    }

    /// The launch, and clusters of tile rows in a band.
    fn grid(&self, info: &DeviceInfo) -> (LaunchConfig, u32) {
        let [rows, columns] = self.tile;
        let blocks = CLUSTER as usize * clusters_of(&self.problem, self.tile);
        // A consumer of 128 threads for every 64 rows, and as many threads beside them.
        let config = LaunchConfig { block: [(2 * rows + 128) as u32, 1, 1], ..launch_config(info, blocks, CLUSTER) };
        // As many rows as are under way at a time.
        let band = ((info.sm_count / CLUSTER) as usize).div_ceil(self.problem.inputs.div_ceil(columns)).max(BAND);
        (config, band as u32)
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, and aligned as [`InputGradientCall::is_aligned`] says.
    pub(crate) unsafe fn launch(&mut self, gpu: &Gpu, stream: &CudaStream, call: &InputGradientCall) -> Result<()> {
        let [d_gate, d_up, w_gate, w_up] = self.maps.of(*call, || Self::encode(&self.problem, call))?;
        let Problem { rows, inputs, outputs, .. } = self.problem;
        let (config, band) = self.grid(gpu.info());
        let params = InputGradientParams {
            derivative: DerivativeParams::new(call.preactivations, call.dz, call.gradients),
            dx: call.dx.address,
            dx_stride: call.dx.row_stride as u64,
            progress: self.progress,
            rows: rows as u32,
            outputs: outputs as u32,
            inputs: inputs as u32,
            band,
        };
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[&d_gate, &d_up, &w_gate, &w_up, &params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn tiles_fill_the_device_or_are_left_to_the_library() {
        let tile = |m, k, n, dtype| choose_tile(&Problem::new(m, k, n, dtype), 132);
        assert_eq!(tile(8192, 4096, 14_336, DType::Bf16), Some([128, 256]));
        assert_eq!(tile(4096, 1024, 4096, DType::F16), Some([128, 256]));
        assert_eq!(tile(16_384, 1152, 4304, DType::Bf16), Some([192, 192]));
        assert_eq!(tile(512, 4096, 14_336, DType::Bf16), None);
        assert_eq!(tile(4096, 1028, 4096, DType::Bf16), None);
        assert_eq!(tile(4096, 1024, 4096, DType::F32), None);
    }

    #[test]
    fn the_struct_is_laid_out_as_the_kernels() {
        let [progress, rows] = [offset_of!(InputGradientParams, progress), offset_of!(InputGradientParams, rows)];
        assert_eq!((progress, rows, size_of::<InputGradientParams>()), (80, 88, 104));
    }

    #[test]
    fn every_chunk_of_a_tile_row_has_a_counter() {
        assert_eq!(progress_bytes(&Problem::new(129, 8, 640, DType::Bf16)), (4 + 2 * 8) * 4);
    }
}
