//! `cuda/decode_sm90.cu`: a few rows on Hopper, weights streamed once by TMA.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DeviceInfo, Gpu, Kernel, KernelArg, LastMaps, LaunchConfig, Swizzle, TensorMap, TiledMap, Variant};

use super::decode::{DecodeCall, DecodeOutput, MAX_WIDTH, WARP_COLUMNS, tokens};
use super::load;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs;

/// Eight consumer warps and the producer.
const THREADS: u32 = 9 * 32;
const TILE_K: usize = 64;
/// Shared memory is aligned by the kernel.
const SLACK: usize = 1024;

/// `DecodeSm90Params` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct DecodeSm90Params {
    out: DecodeOutput,
    inputs: u32,
    width: u32,
    stages: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for DecodeSm90Params {}

/// Bytes of a stage: a tile of x and one of each projection, in whole swizzle periods.
fn stage_bytes(width: usize, tokens: usize) -> usize {
    (TILE_K * size_of::<u16>() * (tokens + 2 * width)).next_multiple_of(1024)
}

/// What a block keeps under way, at least: more waits in queues rather than in memory (4 stages of 30 KB read 4.0 TB/s of an H200's 4.3, 7 stages
/// 3.8), less does not cover the latency.
const BYTES_IN_FLIGHT: usize = 120 << 10;

/// Columns of z for each block: equal shares in as few waves of one block an SM as a block's eight warps allow.
///
/// Tiles of `[K, N]` weights have rows of that width, which should be whole 32-byte sectors of memory, and an odd number of them, so that at most two
/// of eight rows lie in the same banks.
fn choose_width(info: &DeviceInfo, problem: &Problem) -> usize {
    let linear = problem.layout.is_linear();
    let most = if linear { MAX_WIDTH } else { MAX_WIDTH - WARP_COLUMNS };
    let sms = (info.sm_count as usize).max(1);
    let waves = problem.outputs.div_ceil(most * sms);
    let share = problem.outputs.div_ceil(waves * sms);
    if linear { share.next_multiple_of(8) } else { share.next_multiple_of(WARP_COLUMNS) | WARP_COLUMNS }
}

pub(crate) struct DecodeSm90 {
    kernel: Kernel,
    problem: Problem,
    tokens: usize,
    width: usize,
    stages: usize,
    maps: LastMaps<[At; 3], [TensorMap; 3]>,
}

impl DecodeSm90 {
    /// What [`DecodeSm90::new`] loads.
    pub(crate) fn variant(problem: &Problem) -> Variant {
        programs::decode_sm90(problem.dtype, problem.layout.is_linear(), tokens(problem.rows))
    }

    /// For problems of at most 64 rows.
    pub(crate) fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        let (tokens, width) = (tokens(problem.rows), choose_width(gpu.info(), problem));
        let stage = stage_bytes(width, tokens);
        let fit = gpu.info().shared_bytes_optin.saturating_sub(SLACK) / (stage + 2 * size_of::<u64>());
        let stages = BYTES_IN_FLIGHT.div_ceil(stage).min(fit);
        let kernel = load(gpu, &Self::variant(problem))?;
        Ok(Self { kernel, problem: *problem, tokens, width, stages: stages.max(1), maps: LastMaps::new() })
    }

    /// x, gate, up, in tiles of so many tokens and columns of z.
    fn encode(problem: &Problem, tokens: usize, width: usize, [x, gate, up]: [At; 3]) -> Result<[TensorMap; 3]> {
        let Problem { rows, inputs, outputs, layout, dtype, .. } = *problem;
        let map = |at: At, [rows, cols]: [usize; 2], tile: [usize; 2], swizzle| {
            let matrix = at.matrix(dtype, rows, cols);
            TensorMap::tiled(&TiledMap {
                dtype: matrix.dtype,
                address: matrix.address,
                dims: &[cols as u64, rows as u64],
                strides: &[(matrix.row_stride * dtype.size_bytes()) as u64],
                tile: &[tile[1] as u32, tile[0] as u32],
                swizzle,
                // Beyond a tile's own rows lies what other blocks read for themselves.
                l2_promotion: swizzle == Swizzle::B128,
            })
        };
        let weights = |at| {
            if layout.is_linear() {
                map(at, [outputs, inputs], [width, TILE_K], Swizzle::B128)
            } else {
                map(at, [inputs, outputs], [TILE_K, width], Swizzle::None)
            }
        };
        Ok([map(x, [rows, inputs], [tokens, TILE_K], Swizzle::B128)?, weights(gate)?, weights(up)?])
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, rows beginning at multiples of 16 bytes.
    pub(crate) unsafe fn launch(&mut self, stream: &CudaStream, call: &DecodeCall) -> Result<()> {
        let addresses = [call.x, call.weights[0], call.weights[1]];
        let (tokens, width) = (self.tokens, self.width);
        let [x, gate, up] = self.maps.of(addresses, || Self::encode(&self.problem, tokens, width, addresses))?;
        let params = DecodeSm90Params {
            out: DecodeOutput::new(&self.problem, call),
            inputs: self.problem.inputs as u32,
            width: self.width as u32,
            stages: self.stages as u32,
        };
        let shared = SLACK + self.stages * (stage_bytes(self.width, self.tokens) + 2 * size_of::<u64>());
        let blocks = self.problem.outputs.div_ceil(self.width) as u32;
        let config = LaunchConfig::linear(blocks, THREADS).with_shared(shared as u32).with_programmatic(true);
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[&x, &gate, &up, &params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::tests::device;
    use super::*;
    use crate::problem::Layout;
    use kernel_core::DType;

    #[test]
    fn widths_share_the_columns_evenly() {
        let device = device(132, 232_448);
        let width =
            |outputs, layout| choose_width(&device, &Problem::new(16, 4096, outputs, DType::Bf16).with_layout(layout));
        assert_eq!(width(14336, Layout::SeparateLinear), 112);
        assert_eq!(width(14336, Layout::Separate), 112);
        assert_eq!(width(11008, Layout::Separate), 112);
        assert_eq!(width(4096, Layout::Separate), 48);
        assert_eq!(width(8, Layout::Separate), 16);
        assert_eq!(width(8, Layout::Linear(crate::problem::Order::GateFirst)), 8);
        assert!(width(1 << 20, Layout::Separate) <= MAX_WIDTH);
    }
}
