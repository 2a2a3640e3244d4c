//! `cuda/forward_sm90.cu`: both projections and the gate in one GEMM on Hopper.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, MatrixAt, TILE, launch_config};
use kernel_core::{Gpu, Kernel, KernelArg, MapType, TensorMap};

use super::load;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs::{self, CLUSTER};

/// Pairs of tile rows that a band of the tile order spans. Measured on an H200: 8 is as fast as any.
const BAND: u32 = 8;
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

/// x, gate weights, up weights, z, gate, up.
type Maps = [TensorMap; 6];

pub(crate) struct ForwardSm90 {
    plain: Kernel,
    saving: Kernel,
    problem: Problem,
    maps: Option<(ForwardCall, Maps)>,
}

impl ForwardSm90 {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        let kernel = |save| load(gpu, &programs::forward_sm90(problem, save, CLUSTER));
        Ok(Self { plain: kernel(false)?, saving: kernel(true)?, problem: *problem, maps: None })
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
        let shape = GemmShape::new(rows, outputs, inputs, BAND);
        let tiles = rows.div_ceil(TILE) * outputs.div_ceil(TILE_COLUMNS);
        let config = launch_config(gpu.info(), tiles, CLUSTER);
        let params =
            ForwardParams { gate_bias: call.bias[0], up_bias: call.bias[1], with_z: u32::from(call.z.address != 0) };
        let kernel = if call.saved.is_some() { &self.saving } else { &self.plain };
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { kernel.launch(stream, &config, &[&x, &w_gate, &w_up, &z, &gate, &up, &shape, &params]) }?)
    }
}
