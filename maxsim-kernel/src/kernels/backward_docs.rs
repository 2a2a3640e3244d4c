//! `cuda/backward_docs.cu`: the documents' gradient, each token's summed by its owner.

use kernel_core::{DType, Gpu, Kernel, LaunchConfig};

use super::{GradientParams, load, overlapped};
use crate::error::Result;
use crate::problem::Spans;
use crate::programs;
use crate::rows::RowAccess;

/// Blocks for each SM that keep it busy: with fewer, those that begin beside the queries' last ones crowd on some SMs; with more, choices are only
/// read more often.
const BLOCKS_PER_SM: usize = 4;

/// Entries for which a block is not too short (`WORTHWHILE` of the kernel).
const WORTHWHILE: usize = 256;

/// `STEP` and `Entry` of the kernel.
const STEP: usize = 128;
const ENTRY_BYTES: usize = 8;
/// Query tokens that are few, and entries of a list that is not too short for more.
const MOST_FEW: usize = 512;
const LEAST_CAPACITY: usize = 2048;
/// Of an SM's shared memory, for each block.
const RESERVED_BYTES: usize = 1024;

/// Blocks of a row of the grid, and rows, at most.
const MOST_BLOCKS: usize = i32::MAX as usize;
const MOST_PIECES: usize = u16::MAX as usize;

/// How many query tokens may choose in one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Choosers {
    /// A short query's: many small blocks, which write zeros to nearly all tokens at the speed of memory.
    Few,
    /// Any number. Where a block cannot list all that chose its tokens at once, it lists those of fewer tokens.
    Many,
}

/// Places that the kernel can walk through for one document: it counts steps of 128 in 32 bits, and looks fewer ahead than its lists are long.
pub(crate) const MOST_PLACES: usize = (u32::MAX as usize - 5120) * 128;

impl Choosers {
    pub(crate) const ALL: [Self; 2] = [Self::Few, Self::Many];

    /// `places`: of the query tokens that meet a document, as [`places_log2`] counts them. Lists of few never overflow.
    pub(crate) fn of_places(places: usize) -> Self {
        if places <= MOST_FEW { Self::Few } else { Self::Many }
    }

    /// Document tokens that a block may own.
    pub(crate) fn owned(self) -> usize {
        if self == Self::Few { 128 } else { 256 }
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

/// How documents are cut into blocks, which list so many entries at once.
#[derive(Clone, Copy, Debug)]
struct Cut {
    choosers: Choosers,
    capacity: usize,
}

impl Cut {
    /// Lists as long as leave an SM of `sm_bytes` of shared memory room for `resident` blocks, which need `fixed` bytes for all else, but no shorter
    /// than is worth a pass.
    fn new(choosers: Choosers, sm_bytes: usize, resident: usize, fixed: usize) -> Self {
        let room = (sm_bytes / resident).saturating_sub(RESERVED_BYTES + fixed) / ENTRY_BYTES;
        let many = (room / STEP * STEP).max(LEAST_CAPACITY);
        Self { choosers, capacity: if choosers == Choosers::Few { MOST_FEW } else { many } }
    }

    /// Entries of a list when all tokens are chosen as often: some are chosen more often (`fill` of the kernel). Those of few never overflow.
    fn fill(self) -> usize {
        if self.choosers == Choosers::Few { self.capacity } else { self.capacity / 16 * 15 }
    }

    /// Blocks of each of `docs` documents of which the device has `enough`. `choosing`: see [`Self::blocks`].
    fn parts(self, docs: usize, choosing: usize, enough: usize) -> usize {
        let worthwhile = choosing.div_ceil(WORTHWHILE).clamp(1, MOST_PIECES);
        if self.choosers == Choosers::Few { 1 } else { (enough / docs.max(1)).clamp(1, worthwhile) }
    }

    /// Blocks of a document of `size` tokens in which `choosing` query tokens may choose (`blocks_of` of the kernel): as many as its lists take
    /// when all tokens are chosen as often, and `parts` to keep the device busy. Query tokens choose as often in a short document as in a long one.
    fn blocks(self, size: usize, choosing: usize, parts: usize) -> usize {
        let share = size.saturating_mul(self.fill()) / choosing.max(1);
        size.div_ceil(share.clamp(1, self.choosers.owned())).max(parts.min(size))
    }

    /// Blocks of the document that has most.
    fn pieces(self, docs: &Spans, choosing: usize, parts: usize) -> usize {
        let longest = docs.longest();
        let least = longest.div_ceil(self.choosers.owned());
        let most = match docs {
            Spans::Padded { .. } => self.blocks(longest, choosing, parts),
            // A share is rounded down, to more than half.
            Spans::Packed(_) => least.max(choosing.div_ceil(self.fill()).saturating_mul(2).max(parts).min(longest)),
        };
        most.clamp(1, least.max(MOST_PIECES))
    }
}

/// The kernel reads the choices of a meeting in places, of which a query has a power of two, at least 4: its logarithm.
pub(crate) fn places_log2(longest_query: usize) -> u32 {
    longest_query.next_power_of_two().max(4).ilog2()
}

pub(crate) struct BackwardDocs {
    kernel: Kernel,
    cut: Cut,
    shared_bytes: u32,
}

impl BackwardDocs {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, access: RowAccess, choosers: Choosers) -> Result<Self> {
        let kernel = load(gpu, &programs::backward_docs(dtype, access, choosers))?;
        let (fixed, sm_bytes) = (fixed_bytes(dtype, access, choosers), gpu.info().shared_bytes_optin + RESERVED_BYTES);
        let cut = Cut::new(choosers, sm_bytes, choosers.resident(dtype, access), fixed);
        Ok(Self { kernel, cut, shared_bytes: (fixed + cut.capacity * ENTRY_BYTES) as u32 })
    }

    /// `choosing`: query tokens that may choose in one document.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says.
    pub(crate) unsafe fn launch(
        &self,
        gpu: &Gpu,
        docs: &Spans,
        choosing: usize,
        params: &GradientParams,
    ) -> Result<()> {
        let (choosers, count) = (self.cut.choosers, docs.count());
        let parts = self.cut.parts(count, choosing, BLOCKS_PER_SM * gpu.info().sm_count as usize);
        let pieces = self.cut.pieces(docs, choosing, parts);
        let choosing = u32::try_from(choosing).unwrap_or(u32::MAX);
        let params = GradientParams { choosing, parts: parts as u32, pieces: pieces as u32, ..*params };
        let per_row = count.min(MOST_BLOCKS / pieces).max(1);
        let config = overlapped(
            gpu.info(),
            LaunchConfig {
                grid: if choosers == Choosers::Few {
                    [(pieces * per_row) as u32, count.div_ceil(per_row) as u32, 1]
                } else {
                    [count as u32, pieces as u32, 1]
                },
                ..LaunchConfig::linear(1, choosers.warps() as u32 * 32).with_shared(self.shared_bytes)
            },
        );
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &config, &[&params]) }?)
    }
}

/// `Shared` of the kernel: counts, begin, warp totals; heads and one sum; whole 16 bytes.
fn fixed_bytes(dtype: DType, access: RowAccess, choosers: Choosers) -> usize {
    let (owned, warps, width) = (choosers.owned(), choosers.warps(), access.width(dtype));
    let heads = warps * 32 / access.lanes;
    (4 * (warps * owned + owned + 1 + warps + (heads + 1) * width)).next_multiple_of(16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::h200;

    fn cut(choosers: Choosers) -> Cut {
        let access = RowAccess::choose(DType::Bf16, 128, true);
        let fixed = fixed_bytes(DType::Bf16, access, choosers);
        let resident = choosers.resident(DType::Bf16, access);
        Cut::new(choosers, h200().shared_bytes_optin + RESERVED_BYTES, resident, fixed)
    }

    #[test]
    fn lists_of_evenly_chosen_tokens_fit() {
        for choosers in Choosers::ALL {
            let cut = cut(choosers);
            for choosing in [1usize, 32, 512, 513, 4096, 8192, 32_768, 1_000_000] {
                if choosers == Choosers::Few && choosing > MOST_FEW {
                    continue;
                }
                for size in (1..600).chain([1024, 5000, 32_768]) {
                    let blocks = cut.blocks(size, choosing, 1);
                    let share = size.div_ceil(blocks);
                    assert!((1..=size).contains(&blocks) && share <= choosers.owned());
                    assert!(share == 1 || share * choosing <= cut.fill() * size, "{size} {choosing} {blocks}");
                    for parts in [1, 8] {
                        let most = cut.pieces(&Spans::of_lengths([size, 1]), choosing, parts);
                        let mut all = (1..=size).step_by(1 + size / 50);
                        assert!(all.all(|size| cut.blocks(size, choosing, parts) <= most), "{size}");
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_keep_a_device_busy() {
        let many = cut(Choosers::Many);
        assert_eq!(many.capacity, 4864);
        let blocks = |docs: usize, size, choosing| {
            many.pieces(&Spans::padded(docs, size), choosing, many.parts(docs, choosing, BLOCKS_PER_SM * 132))
        };
        assert_eq!([blocks(256, 300, 8192), blocks(128, 300, 4096), blocks(64, 1024, 2048)], [2, 4, 8]);
        assert_eq!([blocks(1000, 20, 1024), blocks(1, 3, 1 << 20), blocks(64, 17, 32_768)], [1, 3, 9]);
        assert_eq!(cut(Choosers::Few).pieces(&Spans::padded(4096, 1024), 32, 1), 8);
    }

    #[test]
    fn blocks_fit_small_devices() {
        for dtype in [DType::F32, DType::Bf16] {
            for (access, choosers) in RowAccess::all(dtype).into_iter().zip(Choosers::ALL.into_iter().cycle()) {
                let fixed = fixed_bytes(dtype, access, choosers);
                let cut = Cut::new(choosers, 100 << 10, choosers.resident(dtype, access), fixed);
                assert!(fixed + cut.capacity * ENTRY_BYTES <= 99 << 10, "{access:?}");
            }
        }
    }
}
