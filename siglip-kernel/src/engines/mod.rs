//! How one block is computed, per route. An engine queues work and decides nothing: blocks, buffers and order come from the plan.

mod f32;
mod gemms;
mod int8;
mod logits;
mod portable;
mod sm90;
mod split;

pub(crate) use f32::F32Engine;
pub(crate) use int8::Int8Engine;
pub(crate) use portable::PortableEngine;
pub(crate) use sm90::Sm90Engine;
pub(crate) use split::{Planes, SplitEngine, block_scales, side_elements};

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DeviceInfo, ScalarArg};

use crate::blocks::Block;
use crate::error::Result;
use crate::kernels::{
    GradientFactor, PositivePairs, QuantizeInt8Params, QuantizeInt8Side, QuantizeParams, QuantizeSide, ReduceParams,
};
use crate::problem::Problem;
use crate::workspace::padded_dim;

/// A matrix in device memory, rows `row_stride` elements apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) address: u64,
    pub(crate) row_stride: usize,
}

impl At {
    /// Where `row` begins, for elements of `bytes` bytes.
    pub(crate) fn row(&self, row: usize, bytes: usize) -> u64 {
        self.address + row as u64 * self.row_stride as u64 * bytes as u64
    }
}

/// What route fp8 computes from; null on the others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fp8At {
    pub(crate) img: At,
    pub(crate) txt: At,
    pub(crate) peaks: u64,
    pub(crate) exponents: u64,
    pub(crate) positives: u64,
}

/// What route int8 computes from; null on the others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Int8At {
    pub(crate) img: Int8SideAt,
    pub(crate) txt: Int8SideAt,
    pub(crate) partial_sums: u64,
    pub(crate) mean: u64,
    /// By image row.
    pub(crate) terms: u64,
    pub(crate) positives: u64,
    pub(crate) g_scales: u64,
    pub(crate) transpose_scales: u64,
}

/// Of images or of texts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Int8SideAt {
    pub(crate) copy: At,
    /// The copy for the gradient products, rows along it.
    pub(crate) transposed: At,
    pub(crate) row_scales: u64,
    pub(crate) col_scales: u64,
    pub(crate) partial_peaks: u64,
}

/// The addresses and scalars of one call. `d_img` and `d_txt` are null in a call without gradients, where `g` is only used for f32 (for dot products).
pub(crate) struct Call<'a> {
    pub(crate) stream: &'a CudaStream,
    pub(crate) info: &'a DeviceInfo,
    pub(crate) gradient: bool,
    pub(crate) log_temp: ScalarArg,
    pub(crate) bias: ScalarArg,
    /// Text row minus image row of a positive pair; far outside of the matrix when there is none.
    pub(crate) offset: i64,
    pub(crate) img: At,
    pub(crate) txt: At,
    /// The row that the pass begins with.
    pub(crate) first_row: usize,
    /// One block, whole tiles; of a pass with [`Pass::fused`](crate::design::Pass) the columns that fit, in turn.
    pub(crate) g: At,
    /// Parts that a fused launch makes of a block's columns, at most. Each has accumulators of its own, one after another in whole tiles of rows.
    pub(crate) groups: usize,
    /// Where the product of the block's rows goes: f32 accumulators, or the output.
    pub(crate) d_img: At,
    /// Where the product of all text rows goes.
    pub(crate) d_txt: At,
    /// The gradients themselves, which products write that finish them.
    pub(crate) to_img: At,
    pub(crate) to_txt: At,
    /// From accumulators to gradients.
    pub(crate) factor: GradientFactor,
    /// Of the last block of a step.
    pub(crate) scalars: ReduceParams,
    pub(crate) sums: u64,
    /// q of positive pairs by image row, where they are kept out of the products; else 0. On route int8 their dot products until then.
    pub(crate) positive: u64,
    /// Of f32 on Hopper, else null.
    pub(crate) planes: Planes,
    pub(crate) fp8: Fp8At,
    pub(crate) int8: Int8At,
    pub(crate) cublas: u64,
    /// Of fused launches.
    pub(crate) counters: u64,
}

impl Call<'_> {
    /// Whether a block is the first of its pass: it sets the slots of the sums, others add to them.
    fn opens(&self, block: &Block) -> bool {
        block.row == self.first_row && block.col == 0
    }

    /// Column minus row of a positive pair, relative to the block.
    fn diagonal(&self, block: &Block) -> i64 {
        self.offset + block.row as i64 - block.col as i64
    }

    /// Of the kernels that quantise the inputs on route fp8.
    fn quantize_fp8(&self, problem: &Problem) -> QuantizeParams {
        let side = |from: At, to: At, rows: usize| QuantizeSide {
            from: from.address,
            to: to.address,
            from_stride: from.row_stride as u64,
            to_stride: to.row_stride as u64,
            rows: rows as u32,
        };
        QuantizeParams {
            sides: [side(self.img, self.fp8.img, problem.rows), side(self.txt, self.fp8.txt, problem.cols)],
            cols: padded_dim(problem) as u32,
            peaks: self.fp8.peaks,
            exponents: self.fp8.exponents,
            positives: self.fp8.positives,
            offset: self.offset,
        }
    }

    /// The same on route int8.
    fn quantize_int8(&self, problem: &Problem) -> QuantizeInt8Params {
        let side = |from: At, at: &Int8SideAt, rows: usize| QuantizeInt8Side {
            from: from.address,
            to: at.copy.address,
            from_stride: from.row_stride as u64,
            to_stride: at.copy.row_stride as u64,
            transposed: at.transposed.address,
            transposed_stride: at.transposed.row_stride as u64,
            row_scales: at.row_scales,
            col_scales: at.col_scales,
            partial_peaks: at.partial_peaks,
            rows: rows as u32,
        };
        QuantizeInt8Params {
            sides: [side(self.img, &self.int8.img, problem.rows), side(self.txt, &self.int8.txt, problem.cols)],
            cols: padded_dim(problem) as u32,
            partial_sums: self.int8.partial_sums,
            mean: self.int8.mean,
            terms: self.int8.terms,
            positives: self.int8.positives,
            offset: self.offset,
        }
    }

    /// The pairs that were kept out of the products, for the gradient of images from `row` on against `texts` rows.
    pub(crate) fn positives_of_images(&self, row: usize, texts: usize) -> PositivePairs {
        if self.positive == 0 {
            return PositivePairs::default();
        }
        PositivePairs {
            positive: self.positive + (row * size_of::<f32>()) as u64,
            other: self.txt.address,
            other_stride: self.txt.row_stride as u64,
            shift: self.offset + row as i64,
            other_rows: texts as i64,
            by_other: 0,
        }
    }

    /// The same for the gradient of texts from `row` on against `images` rows.
    pub(crate) fn positives_of_texts(&self, row: usize, images: usize) -> PositivePairs {
        PositivePairs {
            positive: self.positive,
            other: self.img.address,
            other_stride: self.img.row_stride as u64,
            shift: row as i64 - self.offset,
            other_rows: images as i64,
            by_other: 1,
        }
    }
}

/// The first two steps of a block, one after the other.
///
/// # Safety
/// As [`Engine::logits`].
unsafe fn apart(engine: &mut (impl Engine + ?Sized), call: &Call<'_>, block: &Block) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe {
        let slots = engine.logits(call, block)?;
        engine.d_img(call, block)?;
        Ok(slots)
    }
}

/// The three steps of a block, in this order. The first column block of a row chunk opens d_img, the first row chunk opens d_txt.
pub(crate) trait Engine: Send {
    /// Once before the blocks of a pass.
    ///
    /// # Safety
    /// As [`Engine::logits`].
    unsafe fn begin(&mut self, _call: &Call<'_>) -> Result<()> {
        Ok(())
    }

    /// Logits, loss and (with gradients) G. Gives the number of per-warp slots of sums it writes.
    ///
    /// # Safety
    /// The call's addresses must be live memory of the problem's shapes.
    unsafe fn logits(&mut self, call: &Call<'_>, block: &Block) -> Result<usize>;

    /// The first two steps. In one launch, where the pass says so: then G need not hold the whole block (see [`Call::g`]).
    ///
    /// # Safety
    /// As [`Engine::logits`].
    unsafe fn logits_and_d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<usize> {
        // SAFETY: the caller's promise.
        unsafe { apart(self, call, block) }
    }

    /// d_img (+)= G · txt.
    ///
    /// # Safety
    /// As [`Engine::logits`].
    unsafe fn d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<()>;

    /// Whether the last block's [`Engine::d_txt`] computes [`Call::scalars`] too.
    fn reduces(&self) -> bool {
        false
    }

    /// d_txt (+)= Gᵀ · img.
    ///
    /// # Safety
    /// As [`Engine::logits`].
    unsafe fn d_txt(&mut self, call: &Call<'_>, block: &Block) -> Result<()>;
}
