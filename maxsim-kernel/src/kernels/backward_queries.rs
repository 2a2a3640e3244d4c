//! `cuda/backward_queries.cu`: the queries' gradient, and in the unified route the documents' f32 sums.

use kernel_core::{DType, DeviceInfo, Gpu, Kernel, LaunchConfig};

use super::{GradientParams, load, overlapped};
use crate::error::Result;
use crate::programs;
use crate::rows::RowAccess;

/// Warps of a block.
const WARPS: usize = 8;
/// Warps that an SM should hold.
const RESIDENT_WARPS: usize = 32;
/// What a warp looks at at once.
const DOCS_PER_WARP: usize = 32;

pub(crate) struct BackwardQueries {
    kernel: Kernel,
}

impl BackwardQueries {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, access: RowAccess, docs: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::backward_queries(dtype, access, docs))? })
    }

    /// Warps of a block that share a token's documents: more where there are too few tokens to keep the device busy.
    pub(crate) fn sharers(info: &DeviceInfo, tokens: usize, docs_of_token: usize) -> usize {
        let enough = 2 * info.sm_count as usize * RESIDENT_WARPS;
        let wanted = (enough / tokens.max(1)).min(docs_of_token / DOCS_PER_WARP).clamp(1, WARPS);
        1 << wanted.ilog2()
    }

    /// `queries`, of which the longest has `longest` tokens.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says.
    pub(crate) unsafe fn launch(
        &self,
        gpu: &Gpu,
        queries: usize,
        longest: usize,
        params: &GradientParams,
    ) -> Result<()> {
        let config = overlapped(
            gpu.info(),
            LaunchConfig {
                grid: [queries as u32, (longest * params.sharers as usize).div_ceil(WARPS) as u32, params.splits],
                ..LaunchConfig::linear(1, WARPS as u32 * 32)
            },
        );
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &config, &[params]) }?)
    }
}
