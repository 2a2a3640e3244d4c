//! `cuda/decode.cu`: a few rows, weights streamed once.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig, Variant};

use super::gate::device_gate;
use super::load;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs;

const THREADS: u32 = 256;
const TILE_K: usize = 64;
/// Columns of z that a warp owns; a block has eight warps.
pub(crate) const WARP_COLUMNS: usize = 16;
pub(crate) const MAX_WIDTH: usize = 8 * WARP_COLUMNS;
/// Numbers of rows that there are kernels for, and how many stages of K each keeps under way.
pub(crate) const TOKENS: [(usize, usize); 3] = [(16, 6), (32, 6), (64, 5)];

/// The fewest that hold `rows`, which are at most 64.
fn kind(rows: usize) -> (usize, usize) {
    TOKENS.into_iter().find(|(tokens, _)| rows <= *tokens).unwrap_or(TOKENS[2])
}

/// Rows that the kernel for `rows` takes.
pub(crate) fn tokens(rows: usize) -> usize {
    kind(rows).0
}

/// `DecodeOutput` of the header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct DecodeOutput {
    gate_bias: u64,
    up_bias: u64,
    z: u64,
    z_stride: u64,
    gate_saved: u64,
    up_saved: u64,
    saved_stride: u64,
    rows: u32,
    outputs: u32,
    activation: u32,
}

impl DecodeOutput {
    pub(crate) fn new(problem: &Problem, call: &DecodeCall) -> Self {
        Self {
            gate_bias: call.bias[0],
            up_bias: call.bias[1],
            z: call.z.address,
            z_stride: call.z.row_stride as u64,
            gate_saved: call.saved[0].address,
            up_saved: call.saved[1].address,
            saved_stride: call.saved[0].row_stride as u64,
            rows: problem.rows as u32,
            outputs: problem.outputs as u32,
            activation: device_gate(problem.gate),
        }
    }
}

/// `DecodeParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct DecodeParams {
    x: u64,
    gate: u64,
    up: u64,
    x_stride: u64,
    gate_stride: u64,
    up_stride: u64,
    out: DecodeOutput,
    inputs: u32,
    width: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for DecodeParams {}

/// Bytes of shared memory that a block of `width` columns takes.
fn shared_bytes(linear: bool, width: usize, (tokens, stages): (usize, usize)) -> usize {
    // Rows of shared tiles are padded by 16 bytes.
    let half = if linear { width * (TILE_K * 2 + 16) } else { TILE_K * (width * 2 + 16) };
    stages * (2 * half + tokens * (TILE_K * 2 + 16))
}

/// Columns of z for each block: equal shares for as few waves of one block an SM as shared memory allows.
fn choose_width(info: &DeviceInfo, problem: &Problem, kind: (usize, usize)) -> usize {
    let linear = problem.layout.is_linear();
    let fits = |width: &usize| shared_bytes(linear, *width, kind) <= info.shared_bytes_optin;
    let widths = (1..=MAX_WIDTH / WARP_COLUMNS).rev().map(|warps| warps * WARP_COLUMNS);
    let most = widths.into_iter().find(fits).unwrap_or(WARP_COLUMNS);
    let sms = (info.sm_count as usize).max(1);
    let waves = problem.outputs.div_ceil(most * sms);
    problem.outputs.div_ceil(waves * sms).next_multiple_of(WARP_COLUMNS).min(most)
}

/// Addresses of a call; pairs are `[gate, up]`, null where there is nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeCall {
    pub(crate) x: At,
    pub(crate) weights: [At; 2],
    pub(crate) bias: [u64; 2],
    pub(crate) z: At,
    pub(crate) saved: [At; 2],
}

pub(crate) struct Decode {
    kernel: Kernel,
    problem: Problem,
    width: usize,
    shared: u32,
}

impl Decode {
    /// What [`Decode::new`] loads.
    pub(crate) fn variant(problem: &Problem) -> Variant {
        programs::decode(problem.dtype, problem.layout.is_linear(), kind(problem.rows))
    }

    /// For problems of at most 64 rows.
    pub(crate) fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        let kind = kind(problem.rows);
        let width = choose_width(gpu.info(), problem, kind);
        let shared = shared_bytes(problem.layout.is_linear(), width, kind) as u32;
        let kernel = load(gpu, &Self::variant(problem))?;
        Ok(Self { kernel, problem: *problem, width, shared })
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, rows beginning at multiples of 16 bytes.
    pub(crate) unsafe fn launch(&self, stream: &CudaStream, call: &DecodeCall) -> Result<()> {
        let Problem { inputs, outputs, .. } = self.problem;
        let params = DecodeParams {
            x: call.x.address,
            gate: call.weights[0].address,
            up: call.weights[1].address,
            x_stride: call.x.row_stride as u64,
            gate_stride: call.weights[0].row_stride as u64,
            up_stride: call.weights[1].row_stride as u64,
            out: DecodeOutput::new(&self.problem, call),
            inputs: inputs as u32,
            width: self.width as u32,
        };
        let blocks = outputs.div_ceil(self.width) as u32;
        let config = LaunchConfig::linear(blocks, THREADS).with_shared(self.shared);
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[&params]) }?)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kernel_core::DType;

    pub(crate) fn device(sm_count: u32, shared_bytes_optin: usize) -> DeviceInfo {
        DeviceInfo {
            name: "test".to_owned(),
            ordinal: 0,
            compute_capability: (9, 0),
            sm_count,
            l2_bytes: 0,
            shared_bytes_optin,
            total_bytes: 0,
            driver_version: 13000,
        }
    }

    #[test]
    fn widths_share_the_columns_evenly_and_fit() {
        for (device, problem, width) in [
            (device(132, 232448), Problem::new(16, 4096, 14336, DType::Bf16), 112),
            (device(132, 232448), Problem::new(16, 4096, 4096, DType::Bf16), 32),
            (device(132, 232448), Problem::new(1, 8, 8, DType::Bf16), 16),
            (device(108, 166912), Problem::new(16, 4096, 14336, DType::Bf16), 80),
            (device(128, 101376), Problem::new(16, 4096, 14336, DType::Bf16), 48),
        ] {
            let kind = TOKENS[0];
            assert_eq!(choose_width(&device, &problem, kind), width, "{problem:?}");
            assert!(shared_bytes(false, width, kind) <= device.shared_bytes_optin);
        }
    }
}
