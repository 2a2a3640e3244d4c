//! Matrices as the engines see them: checked addresses.

use kernel_core::sm90::MatrixAt;
use kernel_core::{DType, MapType};
use reference_cpu::swiglu::Order;

/// A row-major matrix in device memory, rows `row_stride` elements apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) address: u64,
    pub(crate) row_stride: usize,
}

impl At {
    /// The same matrix from `row` and `column` on, for elements of `bytes` bytes.
    pub(crate) fn offset(&self, row: usize, column: usize, bytes: usize) -> Self {
        let elements = row as u64 * self.row_stride as u64 + column as u64;
        Self { address: self.address + elements * bytes as u64, ..*self }
    }

    /// Whether 16-byte accesses and tensor maps can take it: rows, of elements of `bytes` bytes, that begin at multiples of 16 bytes.
    pub(crate) fn is_aligned(&self, bytes: usize) -> bool {
        self.address.is_multiple_of(16) && (self.row_stride * bytes).is_multiple_of(16)
    }

    /// As tensor maps see it.
    pub(crate) fn matrix(&self, dtype: DType, rows: usize, cols: usize) -> MatrixAt {
        // A single row has no next one, but the map wants an aligned stride.
        let row_stride = if rows == 1 { cols.next_multiple_of(8) } else { self.row_stride };
        MatrixAt { address: self.address, dtype: MapType::from(dtype), rows, cols, row_stride }
    }

    /// `(gate, up)` columns of a matrix `[M, 2N]`.
    pub(crate) fn columns(&self, order: Order, outputs: usize, bytes: usize) -> [At; 2] {
        in_order(order, *self, self.offset(0, outputs, bytes))
    }
}

/// `[gate, up]` of the first and the second half.
pub(crate) fn in_order<V>(order: Order, first: V, second: V) -> [V; 2] {
    match order {
        Order::GateFirst => [first, second],
        Order::GateSecond => [second, first],
    }
}

/// Both projections, or their gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightsAt {
    /// `[K, 2N]` or `[2N, K]`.
    Joined(At),
    /// Gate and up, `[K, N]` or `[N, K]` each.
    Separate([At; 2]),
}

impl WeightsAt {
    /// `[gate, up]`, which begin `outputs` columns (or rows, if `linear`) apart in one tensor.
    pub(crate) fn halves(&self, order: Order, linear: bool, outputs: usize, bytes: usize) -> [At; 2] {
        match *self {
            WeightsAt::Separate(halves) => halves,
            WeightsAt::Joined(at) if linear => in_order(order, at, at.offset(outputs, 0, bytes)),
            WeightsAt::Joined(at) => at.columns(order, outputs, bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_in_elements_and_64_bit() {
        let at = At { address: 1 << 40, row_stride: 1 << 20 };
        assert_eq!(at.offset(1 << 20, 3, 2).address, (1 << 40) + (1u64 << 41) + 6);
        let [gate, up] = at.columns(Order::GateSecond, 5, 4);
        assert_eq!((gate.address - at.address, up.address), (20, at.address));
    }

    #[test]
    fn rows_of_maps_begin_at_multiples_of_16_bytes() {
        let at = At { address: 32, row_stride: 12 };
        assert!(at.is_aligned(4) && !at.is_aligned(2) && !at.offset(0, 1, 4).is_aligned(4));
        let stride = |rows| at.matrix(DType::Bf16, rows, 9).row_stride;
        assert_eq!((stride(1), stride(2)), (16, 12));
    }
}
