//! Matrices as the engines see them: checked addresses.

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
}
