//! Borrowed, shaped, row-strided views of host slices. A view is checked once, when it is made.

use crate::element::Element;
use crate::error::{Error, Result};

/// Elements that `rows` rows of `cols` reach, `stride` apart, or an error when `length` is less.
fn check(what: &'static str, length: usize, rows: usize, cols: usize, stride: usize) -> Result<usize> {
    if stride < cols {
        return Err(Error::Stride { what, found: stride, minimum: cols });
    }
    if rows == 0 || cols == 0 {
        return Ok(0);
    }
    let needed = (rows - 1).checked_mul(stride).and_then(|n| n.checked_add(cols)).unwrap_or(usize::MAX);
    if needed > length {
        return Err(Error::Length { what, found: length, needed });
    }
    Ok(needed)
}

/// A matrix `[rows, cols]` in a borrowed slice: row `r` begins at element `r * row_stride`.
#[derive(Debug, Clone, Copy)]
pub struct HostMatrix<'a, T> {
    what: &'static str,
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T: Element> HostMatrix<'a, T> {
    /// A dense row-major matrix. `what` names it in errors. The slice may be longer than the matrix.
    ///
    /// # Errors
    /// [`Error::Length`] when the slice is too short.
    pub fn new(what: &'static str, data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        Self::with_row_stride(what, data, rows, cols, cols)
    }

    /// A matrix whose rows begin `row_stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Stride`] when the stride is less than `cols`, [`Error::Length`] when the slice is too short.
    pub fn with_row_stride(
        what: &'static str,
        data: &'a [T],
        rows: usize,
        cols: usize,
        row_stride: usize,
    ) -> Result<Self> {
        let needed = check(what, data.len(), rows, cols, row_stride)?;
        Ok(Self { what, data: &data[..needed], rows, cols, row_stride })
    }

    /// A dense matrix in a slice of exactly its size: one of this crate's own buffers.
    pub(crate) fn dense(data: &'a [T], rows: usize, cols: usize) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { what: "buffer", data, rows, cols, row_stride: cols }
    }

    /// The name given when the view was made.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the beginnings of two rows, in elements.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The elements from the first of the first row to the last of the last row.
    pub fn data(&self) -> &'a [T] {
        self.data
    }

    /// Row `index`, or `None` past the end.
    pub fn row(&self, index: usize) -> Option<&'a [T]> {
        if index >= self.rows {
            return None;
        }
        let start = if self.cols == 0 { 0 } else { index * self.row_stride };
        self.data.get(start..start + self.cols)
    }

    /// Rows `start..start + count`, which the caller knows to exist.
    pub(crate) fn block(&self, start: usize, count: usize) -> Self {
        self.part((start, count), (0, self.cols))
    }

    /// A part, given as first row and number of rows, first column and number of columns, which the caller knows to exist.
    pub(crate) fn part(&self, (row, rows): (usize, usize), (col, cols): (usize, usize)) -> Self {
        debug_assert!(row + rows <= self.rows && col + cols <= self.cols);
        if rows == 0 || cols == 0 {
            return Self { data: &[], rows, cols, ..*self };
        }
        let first = row * self.row_stride + col;
        let needed = (rows - 1) * self.row_stride + cols;
        Self { data: &self.data[first..first + needed], rows, cols, ..*self }
    }

    /// The shape as text for errors.
    pub(crate) fn shape(&self) -> String {
        format!("[{}, {}]", self.rows, self.cols)
    }

    /// An error unless the shape is `[rows, cols]`.
    pub(crate) fn expect(&self, rows: usize, cols: usize) -> Result<()> {
        expect(self.what, (self.rows, self.cols), (rows, cols))
    }
}

/// A mutable matrix `[rows, cols]` in a borrowed slice. Elements between the end of a row and the next are never written.
#[derive(Debug)]
pub struct HostMatrixMut<'a, T> {
    what: &'static str,
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T: Element> HostMatrixMut<'a, T> {
    /// A dense row-major matrix; see [`HostMatrix::new`].
    ///
    /// # Errors
    /// [`Error::Length`] when the slice is too short.
    pub fn new(what: &'static str, data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        Self::with_row_stride(what, data, rows, cols, cols)
    }

    /// A matrix whose rows begin `row_stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Stride`] when the stride is less than `cols`, [`Error::Length`] when the slice is too short.
    pub fn with_row_stride(
        what: &'static str,
        data: &'a mut [T],
        rows: usize,
        cols: usize,
        row_stride: usize,
    ) -> Result<Self> {
        let needed = check(what, data.len(), rows, cols, row_stride)?;
        Ok(Self { what, data: &mut data[..needed], rows, cols, row_stride })
    }

    /// The name given when the view was made.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the beginnings of two rows, in elements.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The same matrix, for reading.
    pub fn as_ref(&self) -> HostMatrix<'_, T> {
        HostMatrix { what: self.what, data: self.data, rows: self.rows, cols: self.cols, row_stride: self.row_stride }
    }

    /// A shorter borrow of the same matrix.
    pub fn reborrow(&mut self) -> HostMatrixMut<'_, T> {
        HostMatrixMut { data: self.data, ..*self }
    }

    /// The rows, each a slice of `cols` elements.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = &mut [T]> {
        let cols = self.cols;
        self.data.chunks_mut(self.row_stride.max(1)).map(move |row| &mut row[..cols])
    }

    /// The storage of each group of `size` rows, `row_stride` apart; the last group may be shorter.
    pub(crate) fn row_blocks(&mut self, size: usize) -> impl Iterator<Item = &mut [T]> {
        self.data.chunks_mut((size * self.row_stride).max(1))
    }

    /// An error unless the shape is `[rows, cols]`.
    pub(crate) fn expect(&self, rows: usize, cols: usize) -> Result<()> {
        expect(self.what, (self.rows, self.cols), (rows, cols))
    }
}

/// A dense row-major tensor of rank `R` in a borrowed slice; the flattened outer axes lie `row_stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct HostTensor<'a, T, const R: usize> {
    shape: [usize; R],
    rows: HostMatrix<'a, T>,
}

impl<'a, T: Element, const R: usize> HostTensor<'a, T, R> {
    /// A dense tensor. `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Length`] when the slice is too short, [`Error::ZeroSize`] when the rank is 0.
    pub fn new(what: &'static str, data: &'a [T], shape: [usize; R]) -> Result<Self> {
        Self::with_row_stride(what, data, shape, shape.last().copied().unwrap_or(0))
    }

    /// A tensor whose rows (last axis) begin `row_stride` elements apart.
    ///
    /// # Errors
    /// As [`HostTensor::new`], and [`Error::Stride`] when the stride is less than the last axis.
    pub fn with_row_stride(what: &'static str, data: &'a [T], shape: [usize; R], row_stride: usize) -> Result<Self> {
        let Some((cols, outer)) = shape.split_last() else {
            return Err(Error::ZeroSize { what: "tensor rank" });
        };
        let rows = if outer.contains(&0) {
            0
        } else {
            let count = outer.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis));
            count.ok_or(Error::Length { what, found: data.len(), needed: usize::MAX })?
        };
        Ok(Self { shape, rows: HostMatrix::with_row_stride(what, data, rows, *cols, row_stride)? })
    }

    /// The shape, outermost axis first.
    pub fn shape(&self) -> [usize; R] {
        self.shape
    }

    /// The tensor with all axes but the last flattened into rows.
    pub fn flatten(&self) -> HostMatrix<'a, T> {
        self.rows
    }
}

fn expect(what: &'static str, found: (usize, usize), expected: (usize, usize)) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape {
        what,
        found: format!("[{}, {}]", found.0, found.1),
        expected: format!("[{}, {}]", expected.0, expected.1),
    })
}

/// An error unless `size` is positive.
pub(crate) fn positive(what: &'static str, size: usize) -> Result<()> {
    if size == 0 { Err(Error::ZeroSize { what }) } else { Ok(()) }
}

/// An error unless `value` is finite.
pub(crate) fn finite(what: &'static str, value: f32) -> Result<f32> {
    if value.is_finite() { Ok(value) } else { Err(Error::NonFinite { what, value }) }
}
