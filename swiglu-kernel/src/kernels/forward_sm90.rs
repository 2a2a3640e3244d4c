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
/// Columns of z that a tile holds: as many of each projection.
const TILE_COLUMNS: usize = TILE / 2;

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

/// Where x and the weights fit half of the L2, sharing the weights' tiles is not worth waiting for each other: 2% at M = 4096, K = 1024, N = 4096.
fn cluster_size(problem: &Problem, l2_bytes: usize) -> u32 {
    let Problem { rows, inputs, outputs, dtype, .. } = *problem;
    let operands = inputs.saturating_mul(rows + 2 * outputs).saturating_mul(dtype.size_bytes());
    if operands <= l2_bytes / 2 { 1 } else { CLUSTER }
}

pub(crate) struct ForwardSm90 {
    plain: Kernel,
    saving: Kernel,
    cluster: u32,
    problem: Problem,
    maps: LastMaps<ForwardCall, [TensorMap; 6]>,
}

impl ForwardSm90 {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        let cluster = cluster_size(problem, gpu.info().l2_bytes);
        let kernel = |save| load(gpu, &programs::forward_sm90(problem, save, cluster));
        Ok(Self { plain: kernel(false)?, saving: kernel(true)?, cluster, problem: *problem, maps: LastMaps::new() })
    }

    /// x, gate weights, up weights, z, gate, up.
    fn encode(problem: &Problem, call: &ForwardCall) -> Result<[TensorMap; 6]> {
        let Problem { rows, inputs, outputs, dtype, .. } = *problem;
        let piece = |at: At| at.matrix(dtype, rows, outputs).warp_store();
        // A map that is never followed may be any valid one: of z for the pre-activations, of the gate's for z.
        let [gate_saved, up_saved] = call.saved.unwrap_or([call.z, call.z]);
        let z = if call.z.address == 0 { gate_saved } else { call.z };
        let [gate, up] = call.weights;
        Ok([
            call.x.matrix(dtype, rows, inputs).k_major(1)?,
            weights(problem, gate).mn_major()?,
            weights(problem, up).mn_major()?,
            piece(z)?,
            piece(gate_saved)?,
            piece(up_saved)?,
        ])
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, rows beginning at multiples of 16 bytes.
    pub(crate) unsafe fn launch(&mut self, gpu: &Gpu, stream: &CudaStream, call: &ForwardCall) -> Result<()> {
        let [x, w_gate, w_up, z, gate, up] = self.maps.of(*call, || Self::encode(&self.problem, call))?;
        let Problem { rows, inputs, outputs, .. } = self.problem;
        let (kernel, cluster) = (if call.saved.is_some() { &self.saving } else { &self.plain }, self.cluster);
        let shape = GemmShape::new(rows, outputs, inputs, if cluster == 1 { BAND_ALONE } else { BAND });
        let tiles = rows.div_ceil(TILE) * outputs.div_ceil(TILE_COLUMNS);
        let config = launch_config(gpu.info(), tiles, cluster);
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
    fn blocks_share_weights_that_do_not_fit_the_cache() {
        let cluster = |m, k, n| cluster_size(&Problem::new(m, k, n, DType::Bf16), 60 << 20);
        assert_eq!((cluster(4096, 1024, 4096), cluster(16_384, 1152, 4304), cluster(8192, 4096, 14_336)), (1, 2, 2));
    }
}
