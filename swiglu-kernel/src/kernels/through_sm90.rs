//! `cuda/through_sm90.cu`: the gate's derivative in the down projection's backward GEMM on Hopper.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, MatrixAt, launch_config};
use kernel_core::{Gpu, Kernel, MapType, TensorMap};

use super::load;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs::{self, CLUSTER};

/// Pairs of tile rows that a band of the tile order spans.
const BAND: u32 = 8;

/// Addresses of a call; pairs are `[gate, up]`. Compared from call to call: callers mostly come back with the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThroughCall {
    pub(crate) dy: At,
    pub(crate) down: At,
    pub(crate) preactivations: [At; 2],
    /// May be the pre-activations.
    pub(crate) gradients: [At; 2],
    /// Receives z.
    pub(crate) z: At,
}

impl ThroughCall {
    /// Whether the kernel can address everything: rows that begin at multiples of 16 bytes.
    pub(crate) fn is_aligned(&self, element_bytes: usize) -> bool {
        let ([gate, up], [d_gate, d_up]) = (self.preactivations, self.gradients);
        [self.dy, self.down, gate, up, d_gate, d_up, self.z]
            .iter()
            .all(|at| at.address.is_multiple_of(16) && (at.row_stride * element_bytes).is_multiple_of(16))
    }
}

/// dy, down, gate, up, their gradients, z.
type Maps = [TensorMap; 7];

pub(crate) struct ThroughSm90 {
    kernel: Kernel,
    problem: Problem,
    down_outputs: usize,
    down_linear: bool,
    maps: Option<(ThroughCall, Maps)>,
}

impl ThroughSm90 {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, down_outputs: usize, down_linear: bool) -> Result<Self> {
        let kernel = load(gpu, &programs::through_sm90(problem.dtype, problem.gate, down_linear, CLUSTER))?;
        Ok(Self { kernel, problem: *problem, down_outputs, down_linear, maps: None })
    }

    fn maps(&mut self, call: &ThroughCall) -> Result<Maps> {
        if let Some((of, maps)) = &self.maps
            && of == call
        {
            return Ok(*maps);
        }
        let maps = self.encode(call)?;
        self.maps = Some((*call, maps));
        Ok(maps)
    }

    fn encode(&self, call: &ThroughCall) -> Result<Maps> {
        let (Problem { rows, outputs, dtype, .. }, k_out) = (self.problem, self.down_outputs);
        let matrix = |at: At, rows, cols| MatrixAt {
            address: at.address,
            dtype: MapType::from(dtype),
            rows,
            cols,
            row_stride: at.row_stride,
        };
        let down = if self.down_linear {
            matrix(call.down, k_out, outputs).mn_major()?
        } else {
            matrix(call.down, outputs, k_out).k_major(CLUSTER as usize)?
        };
        let piece = |at| matrix(at, rows, outputs).warp_store();
        let ([gate, up], [d_gate, d_up]) = (call.preactivations, call.gradients);
        let dy = matrix(call.dy, rows, k_out).k_major(1)?;
        Ok([dy, down, piece(gate)?, piece(up)?, piece(d_gate)?, piece(d_up)?, piece(call.z)?])
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, and aligned as [`ThroughCall::is_aligned`] says.
    pub(crate) unsafe fn launch(&mut self, gpu: &Gpu, stream: &CudaStream, call: &ThroughCall) -> Result<()> {
        let [dy, down, gate, up, d_gate, d_up, z] = self.maps(call)?;
        let shape = GemmShape::new(self.problem.rows, self.problem.outputs, self.down_outputs, BAND);
        let config = launch_config(gpu.info(), shape.tiles(), CLUSTER);
        let with_z = 1u32;
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe {
            self.kernel.launch(stream, &config, &[&dy, &down, &gate, &up, &d_gate, &d_up, &z, &shape, &with_z])
        }?)
    }
}
