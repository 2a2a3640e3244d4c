//! `cuda/backward_docs.cu`: the documents' gradient, each token's summed by its owner.

use kernel_core::{DType, Gpu, Kernel, LaunchConfig};

use super::{GradientParams, load, overlapped};
use crate::error::Result;
use crate::programs;
use crate::rows::RowAccess;

/// How many query tokens may choose in one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Choosers {
    /// A short query's: many small blocks, which write zeros to nearly all tokens at the speed of memory.
    Few,
    /// As many as a large block can list at once.
    Many,
    /// Any number: lists are made several times, and sums held in between.
    Any,
}

impl Choosers {
    pub(crate) const ALL: [Self; 3] = [Self::Few, Self::Many, Self::Any];

    /// Entries that a block can list at once.
    pub(crate) fn capacity(self) -> usize {
        if self == Self::Few { 512 } else { 4096 }
    }

    /// The first that fits `steps` of 32 query tokens: lists never overflow, however the steps are shared among the warps.
    pub(crate) fn of_steps(steps: usize) -> Self {
        Self::ALL.into_iter().find(|fits| steps <= fits.capacity() / 32).unwrap_or(Self::Any)
    }

    /// Document tokens that a block owns. Where their f32 sums must lie in shared memory beside the lists, what fits into the 99 KB that
    /// every GPU from sm_80 has.
    pub(crate) fn owned(self, dtype: DType, access: RowAccess) -> usize {
        match (self, access.width(dtype)) {
            (Self::Few, _) => 128,
            (Self::Many, _) | (Self::Any, 0..=128) => 64,
            (Self::Any, 129..=256) => 32,
            (Self::Any, _) => 4,
        }
    }

    /// Warps of a block.
    pub(crate) fn warps(self, dtype: DType, access: RowAccess) -> usize {
        match (self, access.width(dtype)) {
            (Self::Few, _) => 4,
            (_, 0..=128) => 16,
            _ => 8,
        }
    }

    /// Blocks that an SM should hold.
    pub(crate) fn resident(self, dtype: DType, access: RowAccess) -> usize {
        match (self, access.width(dtype)) {
            (Self::Few, 0..=128) => 8,
            (Self::Few, 129..=256) => 6,
            (Self::Few, _) => 4,
            _ => 2,
        }
    }
}

pub(crate) struct BackwardDocs {
    kernel: Kernel,
    owned: usize,
    warps: usize,
    shared_bytes: u32,
}

impl BackwardDocs {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, access: RowAccess, choosers: Choosers) -> Result<Self> {
        let kernel = load(gpu, &programs::backward_docs(dtype, access, choosers))?;
        let (owned, warps) = (choosers.owned(dtype, access), choosers.warps(dtype, access));
        let width = access.width(dtype);
        // `Shared` of the kernel: entries, order and tokens, counts, begin, warp totals, two flags, parts, sums.
        let words = 3 * choosers.capacity() + warps * owned + owned + 1 + warps + 2 + warps * width;
        let sums = if choosers == Choosers::Any { owned * width } else { 1 };
        Ok(Self { kernel, owned, warps, shared_bytes: (words + sums) as u32 * 4 })
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
