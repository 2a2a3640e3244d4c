//! How the tokens of a side are cut into texts.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::problem::shape;

/// The most tokens of one text.
pub const MAX_TOKENS: usize = 1 << 18;

/// How the token rows of one side are cut into texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spans {
    /// `[count, length, d]`: every text has `length` rows; a mask says which are padding.
    Padded {
        /// Number of texts.
        count: usize,
        /// Rows of each.
        length: usize,
    },
    /// `[total, d]`: text `i` is rows `offsets[i]..offsets[i + 1]`. The first offset is 0, the last is the number of rows.
    Packed(Arc<[usize]>),
}

impl Spans {
    /// `count` texts of `length` rows each.
    pub fn padded(count: usize, length: usize) -> Self {
        Self::Padded { count, length }
    }

    /// Texts that follow each other without padding; `offsets` has one entry more than there are texts.
    pub fn packed(offsets: impl Into<Arc<[usize]>>) -> Self {
        Self::Packed(offsets.into())
    }

    /// Packed texts of these lengths.
    pub fn of_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut offsets = vec![0];
        let mut end = 0usize;
        offsets.extend(lengths.into_iter().map(|length| {
            end = end.saturating_add(length);
            end
        }));
        Self::packed(offsets)
    }

    /// Number of texts.
    pub fn count(&self) -> usize {
        match self {
            Self::Padded { count, .. } => *count,
            Self::Packed(offsets) => offsets.len().saturating_sub(1),
        }
    }

    /// Number of token rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Padded { count, length } => count.saturating_mul(*length),
            Self::Packed(offsets) => offsets.last().copied().unwrap_or(0),
        }
    }

    /// Rows of their matrix in a call on the GPU: one for each token, or one where there is no token at all; what that row holds does
    /// not matter, and it is not written.
    pub fn matrix_rows(&self) -> usize {
        self.rows().max(1)
    }

    /// Rows of text `index`, which must be one of these.
    ///
    /// # Panics
    /// For packed texts as an index of a slice does, where there is no such text. Of padded ones it says where that text would be.
    pub fn span(&self, index: usize) -> Range<usize> {
        match self {
            Self::Padded { length, .. } => {
                let start = index.saturating_mul(*length);
                start..start.saturating_add(*length)
            }
            Self::Packed(offsets) => offsets[index]..offsets[index + 1],
        }
    }

    /// Number of rows of text `index`.
    ///
    /// # Panics
    /// As [`Spans::span`].
    pub fn length(&self, index: usize) -> usize {
        match self {
            Self::Padded { length, .. } => *length,
            Self::Packed(_) => self.span(index).len(),
        }
    }

    /// Rows of the longest text.
    pub fn longest(&self) -> usize {
        match self {
            Self::Padded { length, .. } => *length,
            Self::Packed(offsets) => offsets.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(0),
        }
    }

    /// Texts `range` alone, which must be of these, their rows counted from the first one's.
    ///
    /// # Panics
    /// For packed texts as a slice does, for a range that is not of them.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::Padded { length, .. } => Self::Padded { count: range.len(), length: *length },
            Self::Packed(offsets) => {
                let offsets = &offsets[range.start..=range.end];
                Self::Packed(offsets.iter().map(|offset| offset - offsets[0]).collect())
            }
        }
    }

    pub(crate) fn check(&self, what: &'static str) -> Result<()> {
        if let Self::Packed(offsets) = self {
            let first = offsets.first().copied().unwrap_or(0);
            if first != 0 {
                return Err(shape(what, format!("a first offset of {first}"), "0"));
            }
            if let Some(at) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
                let found = format!("offset {} = {} after {}", at + 1, offsets[at + 1], offsets[at]);
                return Err(shape(what, found, "offsets that do not decrease"));
            }
        }
        if self.count() == 0 {
            return Err(kernel_core::Error::ZeroSize { what }.into());
        }
        if self.longest() > MAX_TOKENS {
            return Err(shape(what, format!("a text of {} tokens", self.longest()), format!("at most {MAX_TOKENS}")));
        }
        // Kernels name rows and texts in 32 bits; offsets into memory are 64-bit.
        if self.rows() > i32::MAX as usize || self.count() > i32::MAX as usize {
            let found = format!("{} texts, {} token rows", self.count(), self.rows());
            return Err(shape(what, found, format!("at most {} of each", i32::MAX)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_count_from_their_first_row() {
        assert_eq!(Spans::of_lengths([3, 0, 2, 5]).slice(1..3), Spans::of_lengths([0, 2]));
        assert_eq!(Spans::padded(7, 4).slice(2..5), Spans::padded(3, 4));
    }
}
