//! `cuda/forward_sm90.cu`: both projections and the gate in one GEMM on Hopper.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, MatrixAt, TILE, launch_config};
use kernel_core::{Gpu, Kernel, KernelArg, MapType, TensorMap};

use super::load;
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

/// Addresses of a call; pairs are `[gate, up]`. Compared from call to call: callers mostly come back with the same memory.
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
fn plain_cluster(problem: &Problem, l2_bytes: usize) -> u32 {
    let Problem { rows, inputs, outputs, dtype, .. } = *problem;
    let operands = inputs.saturating_mul(rows + 2 * outputs).saturating_mul(dtype.size_bytes());
    if operands <= l2_bytes / 2 { 1 } else { CLUSTER }
}

/// x, gate weights, up weights, z, gate, up.
type Maps = [TensorMap; 6];

pub(crate) struct ForwardSm90 {
    plain: Kernel,
    /// Blocks in a cluster of `plain`; `saving` has [`CLUSTER`].
    plain_cluster: u32,
    saving: Kernel,
    problem: Problem,
    maps: Option<(ForwardCall, Maps)>,
}

impl ForwardSm90 {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        let plain_cluster = plain_cluster(problem, gpu.info().l2_bytes);
        let kernel = |save, cluster| load(gpu, &programs::forward_sm90(problem, save, cluster));
        let (plain, saving) = (kernel(false, plain_cluster)?, kernel(true, CLUSTER)?);
        Ok(Self { plain, plain_cluster, saving, problem: *problem, maps: None })
    }

    fn maps(&mut self, call: &ForwardCall) -> Result<Maps> {
        if let Some((of, maps)) = &self.maps
            && of == call
        {
            return Ok(*maps);
        }
        let maps = self.encode(call)?;
        self.maps = Some((*call, maps));
        Ok(maps)
    }

    fn encode(&self, call: &ForwardCall) -> Result<Maps> {
        let Problem { rows, inputs, outputs, layout, .. } = self.problem;
        let matrix = |at: At, rows, cols| MatrixAt {
            address: at.address,
            dtype: MapType::from(self.problem.dtype),
            rows,
            cols,
            // A single row has no next one, but the map wants an aligned stride.
            row_stride: if rows == 1 { cols.next_multiple_of(8) } else { at.row_stride },
        };
        // Boxes of 64 × 64 for either layout.
        let weights = |at| if layout.is_linear() { matrix(at, outputs, inputs) } else { matrix(at, inputs, outputs) };
        let piece = |at| matrix(at, rows, outputs).warp_store();
        // A map that is never followed may be any valid one: of z for the pre-activations, of the gate's for z.
        let [gate_saved, up_saved] = call.saved.unwrap_or([call.z, call.z]);
        let z = if call.z.address == 0 { gate_saved } else { call.z };
        let [gate, up] = call.weights;
        Ok([
            matrix(call.x, rows, inputs).k_major(1)?,
            weights(gate).mn_major()?,
            weights(up).mn_major()?,
            piece(z)?,
            piece(gate_saved)?,
            piece(up_saved)?,
        ])
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, rows beginning at multiples of 16 bytes.
    pub(crate) unsafe fn launch(&mut self, gpu: &Gpu, stream: &CudaStream, call: &ForwardCall) -> Result<()> {
        let [x, w_gate, w_up, z, gate, up] = self.maps(call)?;
        let Problem { rows, inputs, outputs, .. } = self.problem;
        let (kernel, cluster) =
            if call.saved.is_some() { (&self.saving, CLUSTER) } else { (&self.plain, self.plain_cluster) };
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
        let cluster = |m, k, n| plain_cluster(&Problem::new(m, k, n, DType::Bf16), 60 << 20);
        assert_eq!((cluster(4096, 1024, 4096), cluster(16_384, 1152, 4304), cluster(8192, 4096, 14_336)), (1, 2, 2));
    }
}
