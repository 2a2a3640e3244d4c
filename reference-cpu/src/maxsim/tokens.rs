//! Token embeddings of many queries or documents, padded or packed.

use std::ops::Range;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::host::{HostMatrix, HostMatrixMut, HostTensor, positive};
use crate::product::Block;
use crate::vector::dot_product;

/// Token embeddings of many texts: rows of a matrix, cut into spans.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a, T> {
    rows: HostMatrix<'a, T>,
    spans: Spans<'a>,
    mask: Option<&'a [bool]>,
}

#[derive(Debug, Clone, Copy)]
enum Spans<'a> {
    Padded { count: usize, length: usize },
    Packed(&'a [usize]),
}

impl<'a, T: Element> Tokens<'a, T> {
    /// `[count, length, d]`: every text has `length` tokens; a mask says which are padding.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] for no texts or `d` = 0. A zero length is allowed.
    pub fn padded(tensor: HostTensor<'a, T, 3>) -> Result<Self> {
        let [count, length, dim] = tensor.shape();
        Self::checked(tensor.flatten(), Spans::Padded { count, length }, count, dim)
    }

    /// `[Nq, K, length, d]`: K candidate documents for each query, text `q * K + k`; see [`Pairing::Candidates`](super::Pairing).
    ///
    /// # Errors
    /// As [`Tokens::padded`].
    pub fn candidates(tensor: HostTensor<'a, T, 4>) -> Result<Self> {
        let [queries, k, length, dim] = tensor.shape();
        // The tensor's rows are counted, but with a length of 0 nothing bounds the two outer axes.
        let count = queries.checked_mul(k).ok_or_else(|| Error::Shape {
            what: tensor.flatten().what(),
            found: format!("{:?}", tensor.shape()),
            expected: "a number of documents that fits usize".to_owned(),
        })?;
        Self::checked(tensor.flatten(), Spans::Padded { count, length }, count, dim)
    }

    /// Rows `[total, d]`; text `i` is rows `offsets[i]..offsets[i + 1]`. Rows past the last offset belong to no text.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] for no texts or `d` = 0, [`Error::Offset`] when the offsets do not begin at 0, decrease, or pass the last row.
    pub fn packed(rows: HostMatrix<'a, T>, offsets: &'a [usize]) -> Result<Self> {
        let what = "offsets";
        for (index, &found) in offsets.iter().enumerate() {
            let (low, high) = if index == 0 { (0, 0) } else { (offsets[index - 1], rows.rows()) };
            if found < low || found > high {
                let expected = if index == 0 { "0".to_owned() } else { format!("{low} to {high}") };
                return Err(Error::Offset { what, index, found, expected });
            }
        }
        Self::checked(rows, Spans::Packed(offsets), offsets.len().saturating_sub(1), rows.cols())
    }

    fn checked(rows: HostMatrix<'a, T>, spans: Spans<'a>, count: usize, dim: usize) -> Result<Self> {
        positive("number of texts", count)?;
        positive("d, the token dimension", dim)?;
        Ok(Self { rows, spans, mask: None })
    }

    /// Keeps only the tokens whose entry is true: one entry for each row, in order.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the mask has as many entries as there are rows.
    pub fn with_mask(self, mask: &'a [bool]) -> Result<Self> {
        if mask.len() != self.rows.rows() {
            return Err(Error::Shape {
                what: "mask",
                found: format!("[{}]", mask.len()),
                expected: format!("[{}], one entry for each token", self.rows.rows()),
            });
        }
        Ok(Self { mask: Some(mask), ..self })
    }

    /// Number of texts.
    pub fn count(&self) -> usize {
        match self.spans {
            Spans::Padded { count, .. } => count,
            Spans::Packed(offsets) => offsets.len() - 1,
        }
    }

    /// Token dimension.
    pub fn dim(&self) -> usize {
        self.rows.cols()
    }

    /// Number of rows, those of no text included.
    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// Name of the matrix.
    pub(super) fn what(&self) -> &'static str {
        self.rows.what()
    }

    /// Rows of text `index`, which exists.
    pub(super) fn span(&self, index: usize) -> Range<usize> {
        match self.spans {
            Spans::Padded { length, .. } => index * length..(index + 1) * length,
            Spans::Packed(offsets) => offsets[index]..offsets[index + 1],
        }
    }

    /// Number of tokens of the longest text.
    pub(super) fn longest(&self) -> usize {
        match self.spans {
            Spans::Padded { length, .. } => length,
            Spans::Packed(offsets) => offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0),
        }
    }

    pub(super) fn keeps(&self, row: usize) -> bool {
        self.mask.is_none_or(|mask| mask[row])
    }

    /// One row in f32.
    pub(super) fn widen(&self, row: usize, target: &mut [f32]) {
        if let Some(source) = self.rows.row(row) {
            T::widen(source, target);
        }
    }

    /// Rows of a gradient of these tokens, one group for each text; rows of no text come last.
    pub(super) fn cut<'m>(&self, gradient: &'m mut HostMatrixMut<'_, T>) -> Vec<Vec<&'m mut [T]>> {
        let mut rows = gradient.rows_mut();
        let mut groups: Vec<Vec<_>> =
            (0..self.count()).map(|text| rows.by_ref().take(self.span(text).len()).collect()).collect();
        groups.push(rows.collect());
        groups
    }
}

/// Squares of norms below this are not divided by.
const SMALLEST_SQUARE: f64 = 1e-12;

/// `1 / √max(|x|², 1e-12)`, and whether the norm was the larger.
pub(super) fn inverse_norm(x: &[f32]) -> (f64, bool) {
    let square = dot_product(x, x);
    // Unlike f64::max, this keeps a NaN.
    let held = if square < SMALLEST_SQUARE { SMALLEST_SQUARE } else { square };
    (1.0 / held.sqrt(), square > SMALLEST_SQUARE)
}

/// The kept tokens of some texts in f32, normalised if asked: what is masked is not even read.
#[derive(Default)]
pub(super) struct Gathered {
    values: Vec<f32>,
    /// For each kept token, its index in its text.
    pub(super) indices: Vec<usize>,
}

impl Gathered {
    pub(super) fn clear(&mut self) {
        self.values.clear();
        self.indices.clear();
    }

    /// Adds the kept tokens of one text.
    pub(super) fn push<T: Element>(&mut self, tokens: &Tokens<'_, T>, text: usize, normalize: bool) {
        let span = tokens.span(text);
        let dim = tokens.dim();
        for row in span.clone().filter(|&row| tokens.keeps(row)) {
            let start = self.values.len();
            self.values.resize(start + dim, 0.0);
            let target = &mut self.values[start..];
            tokens.widen(row, target);
            if normalize {
                let inverse = inverse_norm(target).0 as f32;
                target.iter_mut().for_each(|x| *x *= inverse);
            }
            self.indices.push(row - span.start);
        }
    }

    /// Kept tokens `start..start + count` as a block.
    pub(super) fn block(&self, start: usize, count: usize, dim: usize) -> Block<'_> {
        Block::new(&self.values[start * dim..(start + count) * dim], count, dim, dim)
    }
}
