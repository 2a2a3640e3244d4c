//! Tiles of mutable matrices, which different threads can write, and products of operands of any element type.

use crate::element::Element;
use crate::host::{HostMatrix, HostMatrixMut};
use crate::product::{Block, product, widened};

/// A rectangle of a mutable matrix.
pub(crate) struct Tile<'a, T> {
    /// First row in the matrix.
    pub(crate) row: usize,
    /// First column in the matrix.
    pub(crate) col: usize,
    /// Its rows, at least one.
    pub(crate) rows: Vec<&'a mut [T]>,
}

impl<T: Element> Tile<'_, T> {
    /// Number of columns.
    pub(crate) fn width(&self) -> usize {
        self.rows.first().map_or(0, |row| row.len())
    }

    /// Rounds row-major `values` into the tile, or adds them to it.
    pub(crate) fn write(&mut self, values: &[f32], accumulate: bool) {
        let width = self.width();
        for (target, source) in self.rows.iter_mut().zip(values.chunks(width.max(1))) {
            write(target, source, accumulate);
        }
    }
}

/// Rounds `source` into `target`, or adds it in f32 and rounds once.
pub(crate) fn write<T: Element>(target: &mut [T], source: &[f32], accumulate: bool) {
    if accumulate {
        for (t, s) in target.iter_mut().zip(source) {
            *t = T::from_f32(t.to_f32() + s);
        }
    } else {
        T::narrow(source, target);
    }
}

/// Cuts rows of equal length into tiles of at most `height` × `width`, ordered by row, then by column.
pub(crate) fn tiles<'a, T>(rows: impl Iterator<Item = &'a mut [T]>, height: usize, width: usize) -> Vec<Tile<'a, T>> {
    let mut tiles: Vec<Tile<'a, T>> = Vec::new();
    let mut first = 0;
    for (r, row) in rows.enumerate() {
        if r % height == 0 {
            first = tiles.len();
            let across = row.len().div_ceil(width);
            tiles.extend((0..across).map(|i| Tile { row: r, col: i * width, rows: Vec::with_capacity(height) }));
        }
        for (tile, part) in tiles[first..].iter_mut().zip(row.chunks_mut(width)) {
            tile.rows.push(part);
        }
    }
    tiles
}

/// A matrix for reading, as it is stored or transposed; rows and columns are those after the transposition.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a, T> {
    matrix: HostMatrix<'a, T>,
    transposed: bool,
}

impl<'a, T: Element> Operand<'a, T> {
    /// The matrix as it is stored.
    pub fn new(matrix: HostMatrix<'a, T>) -> Self {
        Self { matrix, transposed: false }
    }

    /// The transpose of the stored matrix.
    pub fn transposed(matrix: HostMatrix<'a, T>) -> Self {
        Self { matrix, transposed: true }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        if self.transposed { self.matrix.cols() } else { self.matrix.rows() }
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        if self.transposed { self.matrix.rows() } else { self.matrix.cols() }
    }

    /// The name given to the stored matrix.
    pub(crate) fn what(&self) -> &'static str {
        self.matrix.what()
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// A part; see [`HostMatrix::part`].
    pub(crate) fn part(&self, rows: (usize, usize), cols: (usize, usize)) -> Self {
        let matrix = if self.transposed { self.matrix.part(cols, rows) } else { self.matrix.part(rows, cols) };
        Self { matrix, ..*self }
    }

    fn widened(self, scratch: &'a mut Vec<f32>) -> Block<'a> {
        let block = widened(self.matrix, scratch);
        if self.transposed { block.transposed() } else { block }
    }
}

/// Where a gradient goes that is shaped like an [`Operand`].
#[derive(Debug)]
pub struct OperandMut<'a, T> {
    matrix: HostMatrixMut<'a, T>,
    transposed: bool,
}

impl<'a, T: Element> OperandMut<'a, T> {
    /// The matrix as it is stored.
    pub fn new(matrix: HostMatrixMut<'a, T>) -> Self {
        Self { matrix, transposed: false }
    }

    /// The transpose of the stored matrix.
    pub fn transposed(matrix: HostMatrixMut<'a, T>) -> Self {
        Self { matrix, transposed: true }
    }

    /// The stored matrix and whether it is transposed.
    pub(crate) fn parts(&mut self) -> (&mut HostMatrixMut<'a, T>, bool) {
        (&mut self.matrix, self.transposed)
    }
}

/// Depth of one `gemm` call: bounds the f32 chains of sums and the size of converted operands.
const DEPTH: usize = 1024;

/// Buffers for operands that are not f32.
#[derive(Default)]
pub(crate) struct ProductScratch {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl ProductScratch {
    /// `target = a·b`, or `target += a·b`; `target` is row-major, its rows `row_stride` apart.
    pub(crate) fn product<A: Element, B: Element>(
        &mut self,
        target: &mut [f32],
        row_stride: usize,
        accumulate: bool,
        a: Operand<'_, A>,
        b: Operand<'_, B>,
    ) {
        for start in (0..a.cols()).step_by(DEPTH) {
            let depth = (start, DEPTH.min(a.cols() - start));
            let left = a.part((0, a.rows()), depth).widened(&mut self.a);
            let right = b.part(depth, (0, b.cols())).widened(&mut self.b);
            product(target, row_stride, accumulate || start > 0, 1.0, left, right);
        }
    }
}
