//! `cuda/backward_docs.cu`: the documents' gradient, each token's summed by its owner.

use kernel_core::{DType, Gpu, Kernel, LaunchConfig};

use super::{GradientParams, load, overlapped};
use crate::error::Result;
use crate::programs;
use crate::rows::RowAccess;

/// Blocks for each SM from which on they are as large as may be.
const BLOCKS_PER_SM: usize = 2;

/// Blocks of a row of the grid, and rows, at most.
const MOST_BLOCKS: usize = i32::MAX as usize;
const MOST_PARTS: usize = u16::MAX as usize;

/// How many query tokens may choose in one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Choosers {
    /// A short query's: many small blocks, which write zeros to nearly all tokens at the speed of memory.
    Few,
    /// Any number. Where a block cannot list all that chose its tokens at once, it lists those of fewer tokens.
    Many,
}

/// Places that the kernel can walk through for one document: it counts steps of 128 in 32 bits, and looks fewer ahead than its lists are long.
pub(crate) const MOST_PLACES: usize = (u32::MAX as usize - 3072) * 128;

impl Choosers {
    pub(crate) const ALL: [Self; 2] = [Self::Few, Self::Many];

    /// Entries that a block can list at once.
    pub(crate) fn capacity(self) -> usize {
        if self == Self::Few { 512 } else { 3072 }
    }

    /// `places`: of the query tokens that meet a document, as [`places_log2`] counts them. Lists of few never overflow.
    pub(crate) fn of_places(places: usize) -> Self {
        if places <= Self::Few.capacity() { Self::Few } else { Self::Many }
    }

    /// Blocks of a document at least, or as many as it has tokens: query tokens choose as often in a short one as in a long one, and what does not
    /// fit a block's list has to be read again. A list is filled by two thirds when all tokens are chosen as often.
    /// `tokens`: the query tokens that may choose in it.
    pub(crate) fn parts(self, tokens: usize) -> usize {
        if self == Self::Few { 1 } else { tokens.div_ceil(self.capacity() / 3 * 2).clamp(1, MOST_PARTS) }
    }

    /// Document tokens that a block may own.
    pub(crate) fn owned(self) -> usize {
        if self == Self::Few { 128 } else { 64 }
    }

    /// Warps of a block.
    pub(crate) fn warps(self) -> usize {
        if self == Self::Few { 4 } else { 8 }
    }

    /// Blocks that an SM should hold.
    pub(crate) fn resident(self, dtype: DType, access: RowAccess) -> usize {
        let of_eight_warps = match access.width(dtype) {
            0..=128 => 4,
            129..=256 => 3,
            _ if access.vectorized => 2,
            _ => 1,
        };
        of_eight_warps * 8 / self.warps()
    }
}

/// The kernel reads the choices of a meeting in places, of which a query has a power of two, at least 4: its logarithm.
pub(crate) fn places_log2(longest_query: usize) -> u32 {
    longest_query.next_power_of_two().max(4).ilog2()
}

pub(crate) struct BackwardDocs {
    kernel: Kernel,
    choosers: Choosers,
    shared_bytes: u32,
}

impl BackwardDocs {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, access: RowAccess, choosers: Choosers) -> Result<Self> {
        let kernel = load(gpu, &programs::backward_docs(dtype, access, choosers))?;
        // `Shared` of the kernel: entries, marks and order; counts, begin, warp totals, four words; parts and one sum.
        let (owned, warps, width) = (choosers.owned(), choosers.warps(), access.width(dtype));
        let words = 3 * choosers.capacity() + warps * owned + owned + 1 + warps + 4 + (warps + 1) * width;
        Ok(Self { kernel, choosers, shared_bytes: words as u32 * 4 })
    }

    /// `docs`, of which the longest has `longest` tokens. `choosing`: query tokens that may choose in one document.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says.
    pub(crate) unsafe fn launch(
        &self,
        gpu: &Gpu,
        docs: usize,
        longest: usize,
        choosing: usize,
        params: &GradientParams,
    ) -> Result<()> {
        let most = self.choosers.owned();
        // Fewer tokens a block where the device would not be busy; below 32 all that blocks do alike would show.
        let enough = BLOCKS_PER_SM * gpu.info().sm_count as usize;
        let owned =
            if self.choosers == Choosers::Many && docs * longest.div_ceil(most) < enough { most / 2 } else { most };
        let parts = self.choosers.parts(choosing);
        let pieces = longest.div_ceil(owned).max(parts.min(longest)).max(1);
        let few = self.choosers == Choosers::Few;
        let params = GradientParams { owned: owned as u32, parts: parts as u32, pieces: pieces as u32, ..*params };
        let per_row = docs.min(MOST_BLOCKS / pieces).max(1);
        let config = overlapped(
            gpu.info(),
            LaunchConfig {
                grid: if few {
                    [(pieces * per_row) as u32, docs.div_ceil(per_row) as u32, 1]
                } else {
                    [docs as u32, pieces as u32, 1]
                },
                ..LaunchConfig::linear(1, self.choosers.warps() as u32 * 32).with_shared(self.shared_bytes)
            },
        );
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &config, &[&params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_evenly_chosen_tokens_fit() {
        assert_eq!([1, 512].map(|tokens| Choosers::of_places(tokens).parts(tokens)), [1, 1]);
        assert_eq!(
            [513, 2048, 2049, 8192, MOST_PLACES].map(|tokens| Choosers::Many.parts(tokens)),
            [1, 1, 2, 4, MOST_PARTS]
        );
    }
}
