//! Shape and stride arithmetic of tensor views: pure, 64-bit, and never wrapping.

use crate::error::{Error, Result};

/// A checked shape with its row stride. Making one proves that the last element's byte offset fits in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent<const R: usize> {
    pub(crate) shape: [usize; R],
    /// Elements between the starts of consecutive rows of the flattened outer axes.
    pub(crate) row_stride: usize,
}

impl<const R: usize> Extent<R> {
    /// A contiguous shape that must match `len` elements exactly.
    pub(crate) fn contiguous<T>(what: &'static str, shape: [usize; R], len: usize) -> Result<Self> {
        let extent = Self::checked::<T>(what, shape, shape.last().copied().unwrap_or(1))?;
        if extent.elements() != len {
            return Err(Error::Shape {
                what,
                found: format!("{len} elements"),
                expected: format!("{} elements for shape {shape:?}", extent.elements()),
            });
        }
        Ok(extent)
    }

    /// A shape with rows `row_stride` apart, which `len` elements must hold.
    pub(crate) fn strided<T>(what: &'static str, shape: [usize; R], row_stride: usize, len: usize) -> Result<Self> {
        let extent = Self::checked::<T>(what, shape, row_stride)?;
        if extent.elements() > len {
            return Err(Error::Shape {
                what,
                found: format!("{len} elements"),
                expected: format!(
                    "at least {} elements for shape {shape:?} with row stride {row_stride}",
                    extent.elements()
                ),
            });
        }
        Ok(extent)
    }

    fn checked<T>(what: &'static str, shape: [usize; R], row_stride: usize) -> Result<Self> {
        if shape.contains(&0) {
            return Err(Error::ZeroSize { what });
        }
        let cols = shape.last().copied().unwrap_or(1);
        if row_stride < cols {
            return Err(Error::Stride { what, found: row_stride, minimum: cols });
        }
        let fits = shape[..R.saturating_sub(1)]
            .iter()
            .try_fold(1usize, |rows, axis| rows.checked_mul(*axis))
            .and_then(|rows| (rows - 1).checked_mul(row_stride))
            .and_then(|start| start.checked_add(cols))
            .and_then(|elements| elements.checked_mul(size_of::<T>()))
            .is_some_and(|bytes| isize::try_from(bytes).is_ok());
        if !fits {
            return Err(Error::Shape {
                what,
                found: format!("shape {shape:?} with row stride {row_stride}"),
                expected: "a tensor of fewer than 2^63 bytes".to_owned(),
            });
        }
        Ok(Self { shape, row_stride })
    }

    pub(crate) fn rows(&self) -> usize {
        self.shape[..R.saturating_sub(1)].iter().product()
    }

    pub(crate) fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        self.rows() == 1 || self.row_stride == self.cols()
    }

    /// Elements from the first to the last, gaps included.
    fn elements(&self) -> usize {
        (self.rows() - 1) * self.row_stride + self.cols()
    }

    /// Bytes from the first element to one past the last.
    pub(crate) fn span<T>(&self) -> u64 {
        (self.elements() * size_of::<T>()) as u64
    }

    pub(crate) fn stride_bytes<T>(&self) -> u64 {
        self.row_stride as u64 * size_of::<T>() as u64
    }
}

/// Demands that `value` (an address or a stride in bytes) is a multiple of `required` bytes.
pub(crate) fn aligned(what: &'static str, value: u64, required: usize) -> Result<()> {
    if value.is_multiple_of(required.max(1) as u64) {
        Ok(())
    } else {
        Err(Error::Misaligned { what, address: value, required })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_needs_the_exact_length() {
        let extent = Extent::contiguous::<f32>("x", [2, 3, 4], 24).unwrap();
        assert_eq!((extent.rows(), extent.cols(), extent.row_stride), (6, 4, 4));
        assert!(extent.is_contiguous());
        assert_eq!(extent.span::<f32>(), 96);
        for len in [23, 25] {
            let message = Extent::contiguous::<f32>("x", [2, 3, 4], len).unwrap_err().to_string();
            assert!(message.contains(&format!("{len} elements")) && message.contains("24 elements"), "{message}");
        }
    }

    #[test]
    fn strided_does_not_count_the_gap_after_the_last_row() {
        // Three rows of 4 in a stride of 10: 2 * 10 + 4.
        let extent = Extent::strided::<u16>("x", [3, 4], 10, 24).unwrap();
        assert_eq!(extent.span::<u16>(), 48);
        assert!(!extent.is_contiguous());
        assert!(Extent::strided::<u16>("x", [3, 4], 10, 23).is_err());
        // One row has no next row, whatever the stride says.
        assert!(Extent::strided::<u16>("x", [1, 4], 10, 4).unwrap().is_contiguous());
    }

    #[test]
    fn vectors_and_scalars() {
        let vector = Extent::contiguous::<f32>("v", [7], 7).unwrap();
        assert_eq!((vector.rows(), vector.cols()), (1, 7));
        let scalar = Extent::contiguous::<f32>("s", [], 1).unwrap();
        assert_eq!((scalar.rows(), scalar.cols(), scalar.span::<f32>()), (1, 1, 4));
    }

    #[test]
    fn zero_short_stride_and_overflow_have_errors_of_their_own() {
        assert!(matches!(Extent::contiguous::<f32>("x", [0, 4], 0), Err(Error::ZeroSize { what: "x" })));
        assert!(matches!(Extent::strided::<f32>("x", [2, 4], 3, 100), Err(Error::Stride { found: 3, minimum: 4, .. })));
        let huge = Extent::strided::<f32>("x", [1 << 40, 1 << 40], 1 << 40, usize::MAX);
        assert!(matches!(huge, Err(Error::Shape { .. })), "{huge:?}");
        let huge = Extent::strided::<f32>("x", [1 << 33, 4], 1 << 31, usize::MAX);
        assert!(matches!(huge, Err(Error::Shape { .. })), "{huge:?}");
    }

    #[test]
    fn more_than_two_to_the_31_elements() {
        let extent = Extent::contiguous::<half::bf16>("x", [1 << 21, 1 << 12], 1 << 33).unwrap();
        assert_eq!(extent.span::<half::bf16>(), 1 << 34);
    }

    #[test]
    fn alignment_names_value_and_requirement() {
        assert!(aligned("x", 256, 16).is_ok());
        assert!(matches!(aligned("x", 264, 16), Err(Error::Misaligned { address: 264, required: 16, .. })));
        assert!(aligned("x", 3, 1).is_ok());
    }
}
