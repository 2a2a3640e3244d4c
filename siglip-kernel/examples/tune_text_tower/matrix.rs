//! Dense row-major f32 matrices and their products.

/// `[rows, cols]`
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub(crate) data: Vec<f32>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// How an operand is walked: distance between its rows and between its columns.
type Strides = (isize, isize);

impl Matrix {
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        Self { data: vec![0.0; rows * cols], rows, cols }
    }

    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.cols..][..self.cols]
    }

    /// The rows from `start` to `end`.
    pub(crate) fn rows(&self, start: usize, end: usize) -> Self {
        let data = self.data[start * self.cols..end * self.cols].to_vec();
        Self { data, rows: end - start, cols: self.cols }
    }

    /// self · otherᵀ
    pub(crate) fn times_transposed(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.cols, other.cols, "both sides have rows of one length");
        let mut product = Matrix::zeros(self.rows, other.rows);
        multiply(&mut product, self.cols, (self, (self.cols as isize, 1)), (other, (1, other.cols as isize)));
        product
    }

    /// selfᵀ · other
    pub(crate) fn transposed_times(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.rows, other.rows, "both sides have as many rows");
        let mut product = Matrix::zeros(self.cols, other.cols);
        multiply(&mut product, self.rows, (self, (1, self.cols as isize)), (other, (other.cols as isize, 1)));
        product
    }
}

fn multiply(
    product: &mut Matrix,
    depth: usize,
    (a, a_strides): (&Matrix, Strides),
    (b, b_strides): (&Matrix, Strides),
) {
    let (rows, cols) = (product.rows, product.cols);
    assert!(a.data.len() == rows * depth && b.data.len() == depth * cols && product.data.len() == rows * cols);
    // SAFETY: the slices hold the three matrices, as asserted, and the strides walk dense matrices; the product is borrowed mutably.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            depth,
            product.data.as_mut_ptr(),
            1,
            cols as isize,
            false,
            a.data.as_ptr(),
            a_strides.1,
            a_strides.0,
            b.data.as_ptr(),
            b_strides.1,
            b_strides.0,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
