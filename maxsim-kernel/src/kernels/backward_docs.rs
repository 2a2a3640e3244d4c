//! `cuda/backward_docs.cu`: the documents' gradient, each token's summed by its owner.

use kernel_core::{DType, Gpu, Kernel, LaunchConfig};

use super::{GradientParams, load, overlapped};
use crate::error::Result;
use crate::programs;
use crate::rows::RowAccess;

/// Entries that a block can list at once.
const CAPACITY: usize = 4096;
/// Steps of 32 query tokens that always fit, however they are shared among the warps.
pub(crate) const SURE_STEPS: usize = CAPACITY / 32;

pub(crate) struct BackwardDocs {
    kernel: Kernel,
    owned: usize,
    warps: usize,
    shared_bytes: u32,
}

impl BackwardDocs {
    /// `owned`: tokens of a block, or `None` where a document may meet more than [`SURE_STEPS`].
    pub(crate) fn new(gpu: &Gpu, dtype: DType, access: RowAccess, owned: Option<usize>) -> Result<Self> {
        let kernel = load(gpu, &programs::backward_docs(dtype, access, owned))?;
        let tokens = owned.unwrap_or_else(|| access.batched_tokens(dtype));
        let (width, warps) = (access.width(dtype), access.block_warps(dtype));
        // `Shared` of the kernel: entries, order and tokens, counts, begin, warp totals, two flags, parts, sums.
        let words = 3 * CAPACITY + warps * tokens + tokens + 1 + warps + 2 + warps * width;
        let sums = if owned.is_none() { tokens * width } else { 1 };
        Ok(Self { kernel, owned: tokens, warps, shared_bytes: (words + sums) as u32 * 4 })
    }

    /// `docs`, of which the longest has `longest` tokens.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, docs: usize, longest: usize, params: &GradientParams) -> Result<()> {
        let config = overlapped(
            gpu.info(),
            LaunchConfig {
                grid: [docs as u32, longest.div_ceil(self.owned) as u32, 1],
                ..LaunchConfig::linear(1, self.warps as u32 * 32).with_shared(self.shared_bytes)
            },
        );
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &config, &[params]) }?)
    }
}
