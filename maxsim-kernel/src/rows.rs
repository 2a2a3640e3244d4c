//! How the gradient kernels read a token row (`cuda/rows.cuh`).

use kernel_core::DType;

/// A row is read by `lanes` lanes of a warp, `slices` times 16 bytes (vectorised) or one element each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowAccess {
    pub(crate) vectorized: bool,
    pub(crate) lanes: usize,
    pub(crate) slices: usize,
}

impl RowAccess {
    /// The cheapest that covers rows of `dim` elements. `aligned`: every row begins at a multiple of 16 bytes.
    pub(crate) fn choose(dtype: DType, dim: usize, aligned: bool) -> Self {
        let vectorized = aligned && (dim * dtype.size_bytes()).is_multiple_of(16);
        let fits = |access: &Self| access.vectorized == vectorized && access.width(dtype) >= dim;
        let widest = Self { vectorized: false, lanes: 32, slices: 32 };
        Self::all(dtype).into_iter().find(fits).unwrap_or(widest)
    }

    /// Every one that is compiled, narrow ones first.
    pub(crate) fn all(dtype: DType) -> [Self; 5] {
        let vector = |lanes, slices| Self { vectorized: true, lanes, slices };
        let scalar = |slices| Self { vectorized: false, lanes: 32, slices };
        let [narrow, middle, wide] = match dtype {
            DType::F32 => [vector(32, 1), vector(32, 2), vector(32, 8)],
            DType::F16 | DType::Bf16 => [vector(16, 1), vector(32, 1), vector(32, 4)],
        };
        [narrow, middle, wide, scalar(4), scalar(32)]
    }

    /// Elements that a row may have.
    pub(crate) fn width(&self, dtype: DType) -> usize {
        self.lanes * self.slices * if self.vectorized { 16 / dtype.size_bytes() } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dimension_is_covered() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for dim in 1..=1024 {
                for aligned in [false, true] {
                    let access = RowAccess::choose(dtype, dim, aligned);
                    assert!(access.width(dtype) >= dim, "{dtype} {dim} {access:?}");
                    assert!(!access.vectorized || (aligned && dim * dtype.size_bytes() % 16 == 0));
                }
            }
        }
        assert_eq!(RowAccess::choose(DType::Bf16, 128, true).lanes, 16);
    }
}
