//! `cuda/input_gradient_sm90.cu`: dx on Hopper, and with it the pass that makes the gradients of the pre-activations.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{TILE, launch_config};
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LastMaps, TensorMap};

use super::gate::DerivativeParams;
use super::load;
use super::maps::weights;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs::{self, CLUSTER};

/// Columns of dx that a tile may hold.
pub(crate) const TILE_COLUMNS: [usize; 2] = [256, 192];
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
    (COUNTERS + problem.rows.div_ceil(TILE) * chunks) * size_of::<u32>()
}

/// Columns of a tile, where the tiles fill the device: the ones whose waves are the shortest. None where an eighth of the work or more would be for
/// nothing; cuBLASLt divides such a product better than the pass costs.
fn tile_columns(problem: &Problem, sm_count: u32) -> Option<usize> {
    let Problem { rows, inputs, outputs, dtype, .. } = *problem;
    if dtype == DType::F32 || !inputs.is_multiple_of(8) || !outputs.is_multiple_of(8) {
        return None;
    }
    let clusters = (sm_count / CLUSTER) as usize;
    let cost = |columns: usize| {
        let tiles = rows.div_ceil(CLUSTER as usize * TILE) * inputs.div_ceil(columns);
        tiles.div_ceil(clusters) * clusters * CLUSTER as usize * TILE * columns
    };
    let columns = TILE_COLUMNS.into_iter().min_by_key(|&columns| cost(columns))?;
    (cost(columns) / 9 * 8 <= rows * inputs).then_some(columns)
}

pub(crate) struct InputGradientSm90 {
    kernel: Kernel,
    columns: usize,
    problem: Problem,
    progress: u64,
    maps: LastMaps<InputGradientCall, [TensorMap; 5]>,
}

impl InputGradientSm90 {
    /// None where the product is better left to cuBLASLt. `progress`: the address of [`progress_bytes`] zeros.
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, progress: u64) -> Result<Option<Self>> {
        let Some(columns) = tile_columns(problem, gpu.info().sm_count) else { return Ok(None) };
        let kernel = load(gpu, &programs::input_gradient_sm90(problem, columns))?;
        Ok(Some(Self { kernel, columns, problem: *problem, progress, maps: LastMaps::new() }))
    }

    /// d_gate, d_up, gate weights, up weights, dx.
    fn encode(problem: &Problem, call: &InputGradientCall) -> Result<[TensorMap; 5]> {
        let Problem { rows, inputs, outputs, dtype, .. } = *problem;
        let ([d_gate, d_up], [gate, up]) = (call.gradients, call.weights);
        Ok([
            d_gate.matrix(dtype, rows, outputs).k_major(1)?,
            d_up.matrix(dtype, rows, outputs).k_major(1)?,
            weights(problem, gate).mn_major()?,
            weights(problem, up).mn_major()?,
            call.dx.matrix(dtype, rows, inputs).warp_store()?,
        ])
    }

    fn grid(&self, info: &DeviceInfo) -> (usize, u32) {
        let Problem { rows, inputs, .. } = self.problem;
        let columns = inputs.div_ceil(self.columns);
        let clusters = (info.sm_count / CLUSTER) as usize;
        // As many rows as are under way at a time.
        let band = clusters.div_ceil(columns).max(BAND);
        (rows.div_ceil(CLUSTER as usize * TILE) * CLUSTER as usize * columns, band as u32)
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, and aligned as [`InputGradientCall::is_aligned`] says.
    pub(crate) unsafe fn launch(&mut self, gpu: &Gpu, stream: &CudaStream, call: &InputGradientCall) -> Result<()> {
        let [map_d_gate, map_d_up, w_gate, w_up, dx] = self.maps.of(*call, || Self::encode(&self.problem, call))?;
        let Problem { rows, inputs, outputs, .. } = self.problem;
        let (tiles, band) = self.grid(gpu.info());
        let params = InputGradientParams {
            derivative: DerivativeParams::new(call.preactivations, call.dz, call.gradients),
            progress: self.progress,
            rows: rows as u32,
            outputs: outputs as u32,
            inputs: inputs as u32,
            band,
        };
        let config = launch_config(gpu.info(), tiles, CLUSTER);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[&map_d_gate, &map_d_up, &w_gate, &w_up, &dx, &params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn tiles_fill_the_device_or_are_left_to_the_library() {
        let columns = |m, k, n, dtype| tile_columns(&Problem::new(m, k, n, dtype), 132);
        assert_eq!(columns(8192, 4096, 14_336, DType::Bf16), Some(256));
        assert_eq!(columns(4096, 1024, 4096, DType::F16), Some(256));
        assert_eq!(columns(16_384, 1152, 4304, DType::Bf16), Some(192));
        assert_eq!(columns(512, 4096, 14_336, DType::Bf16), None);
        assert_eq!(columns(4096, 1028, 4096, DType::Bf16), None);
        assert_eq!(columns(4096, 1024, 4096, DType::F32), None);
    }

    #[test]
    fn the_struct_is_laid_out_as_the_kernels() {
        let [progress, rows] = [offset_of!(InputGradientParams, progress), offset_of!(InputGradientParams, rows)];
        assert_eq!((progress, rows, size_of::<InputGradientParams>()), (64, 72, 88));
    }

    #[test]
    fn every_chunk_of_a_tile_row_has_a_counter() {
        assert_eq!(progress_bytes(&Problem::new(129, 8, 640, DType::Bf16)), (4 + 2 * 8) * 4);
    }
}
