//! `cuda/forward_mma.cu`: scores on the tensor cores of any GPU.

use kernel_core::{DType, DeviceInfo, Gpu, Kernel, LaunchConfig, Variant};

use super::{ForwardParams, load, overlapped};
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
/// Blocks that are resident on an SM.
const BLOCKS_PER_SM: u32 = 2;
/// Tokens of a document tile when queries are held in registers, and bytes of a slot for each 16 elements of d.
const TOKENS: usize = 64;
const STEP_BYTES: usize = TOKENS * 32;
/// `PortableMainloop::SHARED_BYTES`.
const STREAMED_BYTES: usize = 4 * 2 * 128 * 64;
/// `Shared` of the kernel.
const CONTROL_BYTES: usize = 12 * 1024;
/// Shared memory of a block that lets an SM with 100 KB hold two.
const SMALL_BYTES: usize = 48 * 1024;

/// 16-element steps of d, as compiled for queries that are held in registers; wider rows have [`STREAMED`].
const QUERY_STEPS: [usize; 2] = [4, 8];
const STREAMED: usize = 0;

/// d / 16 rounded up to what is compiled.
fn query_steps(dim: usize) -> usize {
    QUERY_STEPS.into_iter().find(|steps| steps * 16 >= dim).unwrap_or(STREAMED)
}

pub(crate) struct ForwardMma {
    kernel: Kernel,
    steps: usize,
}

impl ForwardMma {
    /// Query tiles that a block holds, at most.
    pub(crate) const TILES: usize = 2;

    /// All that is compiled.
    pub(crate) fn all_steps() -> impl Iterator<Item = usize> {
        QUERY_STEPS.into_iter().chain([STREAMED])
    }

    pub(crate) fn variant(dtype: DType, dim: usize, argmax: bool) -> Variant {
        programs::forward_mma(dtype, query_steps(dim), argmax)
    }

    pub(crate) fn new(gpu: &Gpu, dtype: DType, dim: usize, argmax: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &Self::variant(dtype, dim, argmax))?, steps: query_steps(dim) })
    }

    pub(crate) fn most_blocks(info: &DeviceInfo) -> usize {
        (info.sm_count * BLOCKS_PER_SM) as usize
    }

    /// Stages of the ring and bytes of shared memory, on a device whose blocks may have `most_bytes`.
    fn ring(&self, most_bytes: usize) -> (usize, usize) {
        if self.steps == STREAMED {
            return (0, STREAMED_BYTES + CONTROL_BYTES);
        }
        let slot = self.steps * STEP_BYTES;
        let free =
            if most_bytes >= 2 * SMALL_BYTES + 2 * CONTROL_BYTES { SMALL_BYTES } else { SMALL_BYTES - CONTROL_BYTES };
        let stages = (free / slot).min(4);
        (stages, stages * slot + CONTROL_BYTES)
    }

    /// Fills in the ring.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says, rows at multiples of 16 bytes; `blocks` and
    /// `params.tiles` as the division has them.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, blocks: usize, params: &ForwardParams) -> Result<()> {
        let (stages, shared_bytes) = self.ring(gpu.info().shared_bytes_optin);
        let params = ForwardParams { stages: stages as u32, ..*params };
        let config = LaunchConfig::linear(blocks as u32, THREADS).with_shared(shared_bytes as u32);
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &overlapped(gpu.info(), config), &[&params]) }?)
    }
}
