//! Single-threaded f32 products of strided blocks, through the `gemm` crate. Threads are this crate's own business: tasks on rayon call these.

use crate::element::Element;
use crate::host::HostMatrix;

/// A strided f32 matrix for reading: element `(r, c)` is `data[r * row_stride + c * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Block<'a> {
    /// A row-major block.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Row `r` of a row-major block.
    pub(crate) fn row(&self, r: usize) -> &'a [f32] {
        debug_assert_eq!(self.col_stride, 1);
        &self.data[r * self.row_stride..][..self.cols]
    }

    /// Whether every element lies inside the slice.
    fn in_bounds(&self) -> bool {
        reaches(self.rows, self.cols, self.row_stride, self.col_stride) <= self.data.len()
    }
}

/// Elements from the first to the last of a strided matrix.
fn reaches(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

/// `target = coefficient · a·b`, or `target += coefficient · a·b`; `target` is row-major `[a.rows, b.cols]`, its rows `row_stride` apart.
/// The order of the sums depends on the shapes alone, so equal arguments give equal bits.
pub(crate) fn product(
    target: &mut [f32],
    row_stride: usize,
    accumulate: bool,
    coefficient: f32,
    a: Block<'_>,
    b: Block<'_>,
) {
    assert_eq!(a.cols, b.rows, "the depths of a product agree");
    assert!(a.in_bounds() && b.in_bounds(), "the operands of a product lie in their slices");
    assert!(row_stride >= b.cols && reaches(a.rows, b.cols, row_stride, 1) <= target.len());
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    // SAFETY: the asserts above place every element that the strides reach inside the three slices; `target` is borrowed
    // mutably, so it overlaps neither operand, and its rows do not overlap each other.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            target.as_mut_ptr(),
            1,
            row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            coefficient,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A row-major matrix as f32: in place when it is f32 already, else converted into `scratch`.
pub(crate) fn widened<'a, T: Element>(matrix: HostMatrix<'a, T>, scratch: &'a mut Vec<f32>) -> Block<'a> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    if let Some(data) = T::as_f32(matrix.data()) {
        return Block::new(data, rows, cols, matrix.row_stride());
    }
    scratch.resize(rows * cols, 0.0);
    if cols > 0 {
        for (target, source) in scratch.chunks_mut(cols).zip(matrix.data().chunks(matrix.row_stride())) {
            T::widen(&source[..cols], target);
        }
    }
    Block::new(scratch, rows, cols, cols)
}

/// `target += scale · source`.
pub(crate) fn add_scaled(target: &mut [f32], scale: f32, source: &[f32]) {
    for (t, s) in target.iter_mut().zip(source) {
        *t += scale * s;
    }
}
