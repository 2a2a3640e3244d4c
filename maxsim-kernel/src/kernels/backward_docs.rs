//! `cuda/backward_docs.cu`: the documents' gradient, each token's summed by its owner.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, Gpu, Kernel, LaunchConfig};

use super::{GradientParams, load};
use crate::error::Result;
use crate::programs;
use crate::rows::RowAccess;

const THREADS: u32 = 256;
const WARPS: usize = 8;
/// Entries that a block can list at once.
pub(crate) const CAPACITY: usize = 4096;

pub(crate) struct BackwardDocs {
    kernel: Kernel,
    owned: usize,
    shared_bytes: u32,
}

impl BackwardDocs {
    /// `owned`: tokens of a block, or `None` where more than [`CAPACITY`] query tokens may choose in one document.
    pub(crate) fn new(gpu: &Gpu, dtype: DType, access: RowAccess, owned: Option<usize>) -> Result<Self> {
        let kernel = load(gpu, &programs::backward_docs(dtype, access, owned))?;
        let tokens = owned.unwrap_or_else(|| access.batched_tokens(dtype));
        let width = access.width(dtype);
        // `Shared` of the kernel: entries, counts, begin, warp totals, parts, sums.
        let words = 2 * CAPACITY + WARPS * tokens + tokens + 1 + WARPS + WARPS * width;
        let sums = if owned.is_none() { tokens * width } else { 1 };
        Ok(Self { kernel, owned: tokens, shared_bytes: (words + sums) as u32 * 4 })
    }

    /// `docs`, of which the longest has `longest` tokens.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        docs: usize,
        longest: usize,
        params: &GradientParams,
    ) -> Result<()> {
        let config = LaunchConfig {
            grid: [docs as u32, longest.div_ceil(self.owned) as u32, 1],
            ..LaunchConfig::linear(1, THREADS).with_shared(self.shared_bytes)
        };
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[params]) }?)
    }
}
