//! What is computed, and how.

use std::fmt;
use std::str::FromStr;

use kernel_core::DType;

use crate::error::{Error, Result};

/// Which pairs are positive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positives {
    /// The positive of image row i is text row i + offset, where there is one.
    Diagonal {
        /// Text row minus image row.
        offset: i64,
    },
    /// The main diagonal: row i of one side belongs to row i of the other.
    #[default]
    Matching,
    /// No pair is positive: a block of another rank's texts.
    None,
}

impl Positives {
    /// Text row minus image row of the positive pairs, if there are any.
    pub fn offset(self) -> Option<i64> {
        match self {
            Positives::Diagonal { offset } => Some(offset),
            Positives::Matching => Some(0),
            Positives::None => None,
        }
    }
}

/// The shape of the problem: `rows` images against `cols` texts, both of `dim` features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Image rows N.
    pub rows: usize,
    /// Text rows M.
    pub cols: usize,
    /// Features D of a row.
    pub dim: usize,
    /// Element type of inputs and gradients.
    pub dtype: DType,
    /// Which pairs are positive.
    pub positives: Positives,
    /// What the sum over pairs is divided by: the number of images of the whole (local) batch.
    pub batch: usize,
}

impl Problem {
    /// B images against their B texts: `[B, D]` × `[B, D]`.
    pub fn square(batch: usize, dim: usize, dtype: DType) -> Self {
        Self { rows: batch, cols: batch, dim, dtype, positives: Positives::Matching, batch }
    }

    /// A block of N images against M texts: `[N, D]` × `[M, D]`, divided by N.
    pub fn block(rows: usize, cols: usize, dim: usize, dtype: DType, positives: Positives) -> Self {
        Self { rows, cols, dim, dtype, positives, batch: rows }
    }

    /// The same divided by another batch size.
    #[must_use]
    pub fn with_batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    /// Floating-point operations of the loss alone: one product, 2·N·M·D.
    pub fn forward_flop(&self) -> f64 {
        2.0 * self.rows as f64 * self.cols as f64 * self.dim as f64
    }

    /// Floating-point operations of loss and gradients: three products, 6·N·M·D.
    pub fn step_flop(&self) -> f64 {
        3.0 * self.forward_flop()
    }

    /// The same pairs with texts as rows and images as columns.
    pub(crate) fn mirrored(&self) -> Self {
        let positives = match self.positives.offset() {
            Some(offset) => Positives::Diagonal { offset: offset.saturating_neg() },
            None => Positives::None,
        };
        Self { rows: self.cols, cols: self.rows, positives, ..*self }
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (what, size) in [("rows", self.rows), ("cols", self.cols), ("dim", self.dim), ("batch", self.batch)] {
            if size == 0 {
                return Err(kernel_core::Error::ZeroSize { what }.into());
            }
        }
        // Kernels count rows and features in 32 bits; offsets into memory are 64-bit.
        for (what, size) in [("rows", self.rows), ("cols", self.cols), ("dim", self.dim)] {
            if size > i32::MAX as usize {
                return Err(shape(what, size, format!("at most {}", i32::MAX)));
            }
        }
        Ok(())
    }
}

/// Which kernels compute it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Route {
    /// The fastest that the device and the dtype have.
    #[default]
    Auto,
    /// Block by block: logits with the loss and its gradient fused, then the two gradient products, accumulated in f32. On Hopper by its
    /// warpgroup kernels, f32 at f32 accuracy as two f16 planes each; the products of 16-bit gradients by cuBLASLt where both are summed in f32 and it is
    /// installed; elsewhere as `Portable`.
    Chunked,
    /// The same blocks on any GPU from sm_80: f16 and bf16 through `mma.sync` kernels and cuBLASLt, f32 through cuBLASLt in true f32.
    Portable,
    /// Least memory: smaller blocks, and no f32 accumulators of all text rows. For f16 and bf16 the logits are computed twice, once for each side's
    /// gradient: 8·N·M·D flop instead of 6. On Hopper `d_img` and `d_txt`, where there are no gaps between rows, hold intermediate results until they are
    /// written: f32 sums for half of the texts, which leaves 7·N·M·D flop, and larger blocks (and so sums are in another order than where there are gaps). For f32, whose gradients hold their own sums, it is `Portable` with smaller blocks.
    LowMemory,
    /// `Chunked` with the logits of negative pairs from inputs rounded to e4m3, for f16 and bf16 on Hopper: less time, more memory (a byte an input
    /// element), and an approximation, whose size stands under "Numerics" on the crate's page. Never chosen by `Auto`.
    Fp8,
    /// All three products of negative pairs in 8-bit integers, the positive pairs exact, for f16 and bf16 on Hopper: least time, two bytes more memory an input element and for many texts more for a block, f32 sums of both
    /// gradients however few the blocks, and an approximation, nearer than `Fp8` where negatives matter, whose size stands there too. Never chosen by `Auto`.
    Int8,
}

impl Route {
    /// Every route.
    pub const ALL: [Route; 6] =
        [Route::Auto, Route::Chunked, Route::Portable, Route::LowMemory, Route::Fp8, Route::Int8];
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Route::Auto => "auto",
            Route::Chunked => "chunked",
            Route::Portable => "portable",
            Route::LowMemory => "low-memory",
            Route::Fp8 => "fp8",
            Route::Int8 => "int8",
        })
    }
}

impl FromStr for Route {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|route| route.to_string() == text).ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(Route::to_string).collect();
            shape("route", format!("{text:?}"), format!("one of {}", names.join(", ")))
        })
    }
}

/// How large blocks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Chunk {
    /// Chosen for the device.
    #[default]
    Auto,
    /// Blocks of this many image rows, rounded up to whole tiles of 128.
    Rows(usize),
    /// The fastest blocks with which the workspace ([`Plan::workspace_bytes`](crate::Plan::workspace_bytes)) takes at most this many bytes.
    Workspace(usize),
}

/// How to compute it; the default is right for nearly everyone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Options {
    /// Which kernels.
    pub route: Route,
    /// How large its blocks are.
    pub chunk: Chunk,
}

pub(crate) fn shape(what: &'static str, found: impl ToString, expected: impl Into<String>) -> Error {
    kernel_core::Error::Shape { what, found: found.to_string(), expected: expected.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_read_as_they_print() {
        for route in Route::ALL {
            assert_eq!(route.to_string().parse::<Route>().unwrap(), route);
        }
        let message = "fast".parse::<Route>().unwrap_err().to_string();
        assert!(message.contains("\"fast\"") && message.contains("chunked"), "{message}");
    }

    #[test]
    fn impossible_problems_are_named() {
        let good = Problem::square(4, 8, DType::F32);
        assert!(good.check().is_ok());
        let message = |problem: Problem| problem.check().unwrap_err().to_string();
        assert!(message(Problem { rows: 0, ..good }).contains("rows"));
        assert!(message(Problem { cols: 0, ..good }).contains("cols"));
        assert!(message(Problem { dim: 0, ..good }).contains("dim"));
        assert!(message(good.with_batch(0)).contains("batch"));
        assert!(message(Problem { cols: 1 << 31, ..good }).contains("2147483648"));
    }
}
