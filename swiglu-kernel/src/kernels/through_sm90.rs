//! `cuda/through_sm90.cu`: the gate's derivative in the down projection's backward GEMM on Hopper.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::{GemmShape, launch_config};
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, LastMaps, TensorMap, Variant};

use super::load;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs::{self, CLUSTER};

/// Pairs of tile rows that a band of the tile order spans.
const BAND: u32 = 8;

/// Addresses of a call; pairs are `[gate, up]`. Compared from call to call.
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
        [self.dy, self.down, gate, up, d_gate, d_up, self.z].iter().all(|at| at.is_aligned(element_bytes))
    }
}

pub(crate) struct ThroughSm90 {
    kernel: Kernel,
    problem: Problem,
    down_outputs: usize,
    down_linear: bool,
    maps: LastMaps<ThroughCall, [TensorMap; 7]>,
}

impl ThroughSm90 {
    /// Whether it can take a down projection of so many outputs.
    pub(crate) fn takes(info: &DeviceInfo, problem: &Problem, down_outputs: usize) -> bool {
        let tiles = problem.outputs.is_multiple_of(8) && down_outputs.is_multiple_of(8);
        info.arch().has_wgmma() && problem.dtype != DType::F32 && tiles
    }

    /// What [`ThroughSm90::new`] loads.
    pub(crate) fn variant(problem: &Problem, down_linear: bool) -> Variant {
        programs::through_sm90(problem.dtype, problem.gate, down_linear, CLUSTER)
    }

    pub(crate) fn new(gpu: &Gpu, problem: &Problem, down_outputs: usize, down_linear: bool) -> Result<Self> {
        let kernel = load(gpu, &Self::variant(problem, down_linear))?;
        Ok(Self { kernel, problem: *problem, down_outputs, down_linear, maps: LastMaps::new() })
    }

    /// dy, down, gate, up, their gradients, z. The down projection has `k_out` outputs and is `linear` when stored `[K_out, N]`.
    fn encode(problem: &Problem, k_out: usize, linear: bool, call: &ThroughCall) -> Result<[TensorMap; 7]> {
        let Problem { rows, outputs, dtype, .. } = *problem;
        let down = if linear {
            call.down.matrix(dtype, k_out, outputs).mn_major()?
        } else {
            call.down.matrix(dtype, outputs, k_out).k_major(CLUSTER as usize)?
        };
        let piece = |at: At| at.matrix(dtype, rows, outputs).warp_store();
        let ([gate, up], [d_gate, d_up]) = (call.preactivations, call.gradients);
        let dy = call.dy.matrix(dtype, rows, k_out).k_major(1)?;
        Ok([dy, down, piece(gate)?, piece(up)?, piece(d_gate)?, piece(d_up)?, piece(call.z)?])
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, and aligned as [`ThroughCall::is_aligned`] says.
    pub(crate) unsafe fn launch(&mut self, gpu: &Gpu, stream: &CudaStream, call: &ThroughCall) -> Result<()> {
        let [dy, down, gate, up, d_gate, d_up, z] = {
            let (k_out, linear) = (self.down_outputs, self.down_linear);
            self.maps.of(*call, || Self::encode(&self.problem, k_out, linear, call))?
        };
        let shape = GemmShape::new(self.problem.rows, self.problem.outputs, self.down_outputs, BAND);
        let config = launch_config(gpu.info(), shape.tiles(), CLUSTER);
        let with_z = 1u32;
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe {
            self.kernel.launch(stream, &config, &[&dy, &down, &gate, &up, &d_gate, &d_up, &z, &shape, &with_z])
        }?)
    }
}
