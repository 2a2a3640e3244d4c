//! What a matrix product is, checked without a device.

use crate::dtype::DType;
use crate::error::{Error, Result};

/// How one matrix of a product is stored: row-major, with a row stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixSpec {
    /// Type of the elements.
    pub dtype: DType,
    /// Whether the product takes the stored matrix transposed: then A is stored `[k, m]` and B `[n, k]`.
    pub transposed: bool,
    /// Elements between the starts of two consecutive stored rows.
    pub row_stride: usize,
}

impl MatrixSpec {
    /// A matrix taken as it is stored.
    pub const fn new(dtype: DType, row_stride: usize) -> Self {
        Self { dtype, transposed: false, row_stride }
    }

    /// A matrix taken transposed.
    pub const fn transposed(dtype: DType, row_stride: usize) -> Self {
        Self { dtype, transposed: true, row_stride }
    }

    /// The largest power of two up to 16 that divides every row's offset in bytes: the alignment that any row has when the matrix
    /// itself starts at a multiple of 16.
    fn row_alignment(&self) -> usize {
        let bytes = self.row_stride.saturating_mul(self.dtype.size_bytes());
        1 << bytes.trailing_zeros().min(4)
    }
}

/// C\[m, n\] = alpha · op(A)\[m, k\] · op(B)\[k, n\] + beta · C, all row-major.
///
/// A and B have one dtype; C has theirs or f32. Products and sums are f32: bf16 and f16 go through tensor cores with f32
/// accumulation, f32 is true f32 (no TF32). The result is rounded to C's type once, or twice for a 16-bit C with beta ≠ 0, where some
/// algorithms round the product before they add beta · C: accumulate into an f32 C. Any sizes and strides that are in bounds work; multiples of 16 bytes are fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmSpec {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The summed extent.
    pub k: usize,
    /// The left operand: stored `[m, k]`, or `[k, m]` when transposed.
    pub a: MatrixSpec,
    /// The right operand: stored `[k, n]`, or `[n, k]` when transposed.
    pub b: MatrixSpec,
    /// The result: stored `[m, n]`; cannot be transposed.
    pub c: MatrixSpec,
}

impl GemmSpec {
    /// The stored rows and columns of A.
    pub fn stored_a(&self) -> (usize, usize) {
        if self.a.transposed { (self.k, self.m) } else { (self.m, self.k) }
    }

    /// The stored rows and columns of B.
    pub fn stored_b(&self) -> (usize, usize) {
        if self.b.transposed { (self.n, self.k) } else { (self.k, self.n) }
    }

    /// The alignments in bytes of A, B and C that a plan assumes unless told otherwise: 16, or less when rows are not multiples of
    /// 16 bytes. So a plan fits every block of whole rows of 16-byte aligned matrices.
    pub fn default_alignments(&self) -> [usize; 3] {
        [self.a.row_alignment(), self.b.row_alignment(), self.c.row_alignment()]
    }

    /// Multiplications and additions: 2·m·n·k.
    pub fn flop(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    /// Checks sizes, dtypes and strides.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::DType`], [`Error::Stride`], [`Error::Shape`] for sizes beyond 2⁶³ bytes, [`Error::Unsupported`]
    /// for a transposed C.
    pub fn check(&self) -> Result<()> {
        for (what, extent) in [("gemm m", self.m), ("gemm n", self.n), ("gemm k", self.k)] {
            if extent == 0 {
                return Err(Error::ZeroSize { what });
            }
        }
        if self.b.dtype != self.a.dtype {
            let expected = format!("{}, the dtype of A", self.a.dtype);
            return Err(Error::DType { what: "gemm B", found: self.b.dtype, expected });
        }
        if self.c.dtype != self.a.dtype && self.c.dtype != DType::F32 {
            let expected = format!("{} or f32, for operands of {}", self.a.dtype, self.a.dtype);
            return Err(Error::DType { what: "gemm C", found: self.c.dtype, expected });
        }
        if self.c.transposed {
            return Err(Error::Unsupported {
                what: "a transposed gemm C; expected C stored [m, n] (swap A and B for its transpose)".to_owned(),
            });
        }
        let matrices = [
            ("gemm A", self.stored_a(), &self.a),
            ("gemm B", self.stored_b(), &self.b),
            ("gemm C", (self.m, self.n), &self.c),
        ];
        for (what, (rows, cols), matrix) in matrices {
            if matrix.row_stride < cols {
                return Err(Error::Stride { what, found: matrix.row_stride, minimum: cols });
            }
            let bytes = rows.checked_mul(matrix.row_stride).and_then(|len| len.checked_mul(matrix.dtype.size_bytes()));
            if bytes.is_none_or(|bytes| i64::try_from(bytes).is_err()) {
                return Err(Error::Shape {
                    what,
                    found: format!("{rows} rows, {} elements apart", matrix.row_stride),
                    expected: "a matrix of fewer than 2^63 bytes".to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> GemmSpec {
        GemmSpec {
            m: 4,
            n: 6,
            k: 8,
            a: MatrixSpec::new(DType::Bf16, 8),
            b: MatrixSpec::transposed(DType::Bf16, 8),
            c: MatrixSpec::new(DType::F32, 6),
        }
    }

    #[test]
    fn good_specs_pass() {
        spec().check().unwrap();
        GemmSpec { c: MatrixSpec::new(DType::Bf16, 100), ..spec() }.check().unwrap();
        GemmSpec { m: 1 << 20, n: 1 << 20, c: MatrixSpec::new(DType::F32, 1 << 20), ..spec() }.check().unwrap();
        assert_eq!(spec().flop(), 384.0);
    }

    #[test]
    fn strides_are_checked_against_the_stored_shape() {
        // A transposed is stored [k, m] = [8, 4]: a stride of 4 is enough for it, and not enough for [m, k].
        GemmSpec { a: MatrixSpec::transposed(DType::Bf16, 4), ..spec() }.check().unwrap();
        let cases = [
            (GemmSpec { a: MatrixSpec::new(DType::Bf16, 4), ..spec() }, "gemm A", 8),
            (GemmSpec { a: MatrixSpec::transposed(DType::Bf16, 3), ..spec() }, "gemm A", 4),
            (GemmSpec { b: MatrixSpec::transposed(DType::Bf16, 7), ..spec() }, "gemm B", 8),
            (GemmSpec { b: MatrixSpec::new(DType::Bf16, 5), ..spec() }, "gemm B", 6),
            (GemmSpec { c: MatrixSpec::new(DType::F32, 5), ..spec() }, "gemm C", 6),
        ];
        for (spec, name, least) in cases {
            let error = spec.check().unwrap_err();
            assert!(
                matches!(error, Error::Stride { what, minimum, .. } if what == name && minimum == least),
                "{error}"
            );
        }
    }

    #[test]
    fn dtypes_sizes_and_transposed_results_are_refused_by_name() {
        let error = GemmSpec { b: MatrixSpec::transposed(DType::F16, 8), ..spec() }.check().unwrap_err();
        assert!(matches!(error, Error::DType { what: "gemm B", found: DType::F16, .. }), "{error}");
        let error = GemmSpec { c: MatrixSpec::new(DType::F16, 6), ..spec() }.check().unwrap_err();
        assert!(matches!(error, Error::DType { what: "gemm C", .. }), "{error}");
        let f32_into_bf16 = GemmSpec {
            a: MatrixSpec::new(DType::F32, 8),
            b: MatrixSpec::transposed(DType::F32, 8),
            c: MatrixSpec::new(DType::Bf16, 6),
            ..spec()
        };
        assert!(matches!(f32_into_bf16.check(), Err(Error::DType { what: "gemm C", .. })));
        for (zero, name) in [
            (GemmSpec { m: 0, ..spec() }, "gemm m"),
            (GemmSpec { n: 0, ..spec() }, "gemm n"),
            (GemmSpec { k: 0, ..spec() }, "gemm k"),
        ] {
            assert!(matches!(zero.check(), Err(Error::ZeroSize { what }) if what == name));
        }
        let transposed = GemmSpec { c: MatrixSpec::transposed(DType::F32, 6), ..spec() };
        assert!(matches!(transposed.check(), Err(Error::Unsupported { .. })));
        let huge = GemmSpec { m: usize::MAX / 2, ..spec() };
        assert!(matches!(huge.check(), Err(Error::Shape { what: "gemm A", .. })));
    }

    #[test]
    fn assumed_alignment_follows_the_row_stride() {
        let odd = GemmSpec {
            a: MatrixSpec::new(DType::Bf16, 9),
            b: MatrixSpec::transposed(DType::Bf16, 12),
            c: MatrixSpec::new(DType::F32, 1024),
            ..spec()
        };
        assert_eq!(odd.default_alignments(), [2, 8, 16]);
    }
}
