//! Structs of `cuda/texts.cuh`, `cuda/items.cuh` and `cuda/gradients.cuh`. Addresses are 0 where the device's pointer is null.

use kernel_core::KernelArg;

use crate::problem::Pairing;
use crate::tiles::Even;

/// `Texts`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TextsArg {
    pub(crate) rows: u64,
    pub(crate) row_stride: u64,
    pub(crate) offsets: u64,
    pub(crate) length: u64,
    pub(crate) ends: u64,
    pub(crate) firsts: u64,
    pub(crate) bits: u64,
    pub(crate) scales: u64,
    pub(crate) count: u32,
}

/// `Items`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ItemsArg {
    pub(crate) pairing: u32,
    pub(crate) docs: u32,
    pub(crate) per_query: u32,
    pub(crate) parts: u32,
    pub(crate) row_blocks: u32,
    pub(crate) chunks: u32,
    pub(crate) row_block_cost: u32,
    pub(crate) last_block_cost: u32,
    pub(crate) even: Even,
    pub(crate) list: u64,
    pub(crate) list_args: u64,
    pub(crate) query_tiles: u64,
    pub(crate) chunk_starts: u64,
    pub(crate) starts: u64,
}

/// The device's `Pairing`.
pub(crate) fn pairing_code(pairing: &Pairing) -> u32 {
    match pairing {
        Pairing::Cross => 0,
        Pairing::Candidates { .. } => 1,
        Pairing::Pairs => 2,
        Pairing::List(_) => 3,
    }
}

/// `ForwardParams` of the scoring kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForwardParams {
    pub(crate) items: ItemsArg,
    pub(crate) queries: TextsArg,
    pub(crate) docs: TextsArg,
    pub(crate) dim: u32,
    pub(crate) sums: u64,
    pub(crate) argmax: u64,
    pub(crate) tiles: u32,
    pub(crate) stages: u32,
}

/// `Meetings`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MeetingsArg {
    pub(crate) starts: u64,
    pub(crate) slots: u64,
}

/// `GradientParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct GradientParams {
    pub(crate) items: ItemsArg,
    pub(crate) queries: TextsArg,
    pub(crate) docs: TextsArg,
    pub(crate) meetings: MeetingsArg,
    pub(crate) dim: u32,
    pub(crate) d_scores: u64,
    pub(crate) argmax: u64,
    pub(crate) gradient: u64,
    pub(crate) gradient_stride: u64,
    pub(crate) scratch: u64,
    pub(crate) splits: u32,
    pub(crate) behind_queries: u32,
    pub(crate) sharers: u32,
    pub(crate) choosing: u32,
    pub(crate) parts: u32,
    pub(crate) pieces: u32,
}

// SAFETY: plain data, laid out as the kernels' structs.
unsafe impl KernelArg for ForwardParams {}
// SAFETY: as above.
unsafe impl KernelArg for GradientParams {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn structs_are_laid_out_as_the_headers_say() {
        assert_eq!((size_of::<TextsArg>(), offset_of!(TextsArg, count)), (72, 64));
        assert_eq!((size_of::<ItemsArg>(), offset_of!(ItemsArg, list)), (96, 56));
        assert_eq!((size_of::<ForwardParams>(), offset_of!(ForwardParams, sums)), (272, 248));
        assert_eq!((size_of::<GradientParams>(), offset_of!(GradientParams, d_scores)), (328, 264));
    }
}
