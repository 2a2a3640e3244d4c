//! `cuda/backward_queries.cu`: the queries' gradient, and in the unified route the documents' f32 sums.

use kernel_core::{DType, Gpu, Kernel, LaunchConfig};

use super::{GradientParams, load, overlapped};
use crate::error::Result;
use crate::programs;
use crate::rows::RowAccess;

const WARPS: usize = 8;

pub(crate) struct BackwardQueries {
    kernel: Kernel,
}

impl BackwardQueries {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, access: RowAccess, docs: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::backward_queries(dtype, access, docs))? })
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
                grid: [queries as u32, longest.div_ceil(WARPS) as u32, params.splits],
                ..LaunchConfig::linear(1, WARPS as u32 * 32)
            },
        );
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &config, &[params]) }?)
    }
}
