//! The layouts of the two projections: all are two strided operands `[K, N]`.

use crate::element::Element;
use crate::error::{Error, Result};
use crate::host::{HostMatrix, HostMatrixMut, positive};
use crate::tiles::Operand;

/// Which half of packed weights, of the bias and of saved pre-activations is the gate's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// The first half.
    GateFirst,
    /// The second half.
    GateSecond,
}

impl Order {
    /// `(gate, up)` from the first and the second half.
    pub(super) fn pick<H>(self, first: H, second: H) -> (H, H) {
        match self {
            Self::GateFirst => (first, second),
            Self::GateSecond => (second, first),
        }
    }
}

/// Half of the size of a packed axis.
fn half(what: &'static str, size: usize, shape: String) -> Result<usize> {
    positive("N, half of the packed weights' wide axis", size)?;
    if size.is_multiple_of(2) {
        return Ok(size / 2);
    }
    Err(Error::Shape { what, found: shape, expected: "an even packed axis, a gate half and an up half".to_owned() })
}

/// The gate and up projections, wherever they are stored.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a, T> {
    gate: Operand<'a, T>,
    up: Operand<'a, T>,
    order: Order,
}

impl<'a, T: Element> Weights<'a, T> {
    /// One tensor `[K, 2N]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for an odd number of columns, [`Error::ZeroSize`] for an empty axis.
    pub fn packed(weights: HostMatrix<'a, T>, order: Order) -> Result<Self> {
        let n = half(weights.what(), weights.cols(), weights.shape())?;
        let part = |start| Operand::new(weights.part((0, weights.rows()), (start, n)));
        let (gate, up) = order.pick(part(0), part(n));
        Self::checked(gate, up, order)
    }

    /// One tensor `[2N, K]`, as `nn.Linear` keeps its weight.
    ///
    /// # Errors
    /// [`Error::Shape`] for an odd number of rows, [`Error::ZeroSize`] for an empty axis.
    pub fn linear(weights: HostMatrix<'a, T>, order: Order) -> Result<Self> {
        let n = half(weights.what(), weights.rows(), weights.shape())?;
        let part = |start| Operand::transposed(weights.block(start, n));
        let (gate, up) = order.pick(part(0), part(n));
        Self::checked(gate, up, order)
    }

    /// Two tensors, each `[K, N]`, or given with [`Operand::transposed`] as `[N, K]`. Bias and saved pre-activations are gate-first.
    ///
    /// # Errors
    /// [`Error::Shape`] for unequal shapes, [`Error::ZeroSize`] for an empty axis.
    pub fn separate(gate: Operand<'a, T>, up: Operand<'a, T>) -> Result<Self> {
        Self::checked(gate, up, Order::GateFirst)
    }

    fn checked(gate: Operand<'a, T>, up: Operand<'a, T>, order: Order) -> Result<Self> {
        positive("K, the input axis of the weights", gate.rows())?;
        positive("N, the output axis of the weights", gate.cols())?;
        if (gate.rows(), gate.cols()) != (up.rows(), up.cols()) {
            return Err(Error::Shape {
                what: up.what(),
                found: format!("[{}, {}]", up.rows(), up.cols()),
                expected: format!("[{}, {}], as the gate's weights", gate.rows(), gate.cols()),
            });
        }
        Ok(Self { gate, up, order })
    }

    /// K, the input dimension.
    pub fn inputs(&self) -> usize {
        self.gate.rows()
    }

    /// N, the output dimension.
    pub fn outputs(&self) -> usize {
        self.gate.cols()
    }

    /// Which half of bias and saved pre-activations is the gate's.
    pub fn order(&self) -> Order {
        self.order
    }

    /// `(gate, up)`, each `[K, N]`.
    pub(super) fn operands(&self) -> (Operand<'a, T>, Operand<'a, T>) {
        (self.gate, self.up)
    }
}

/// Where the gradients of the weights go; the layouts are those of [`Weights`], and need not be the weights' own.
#[derive(Debug)]
pub struct WeightsMut<'a, G> {
    storage: Storage<'a, G>,
}

#[derive(Debug)]
enum Storage<'a, G> {
    Packed(HostMatrixMut<'a, G>, Order),
    Linear(HostMatrixMut<'a, G>, Order),
    Separate { gate: HostMatrixMut<'a, G>, up: HostMatrixMut<'a, G>, transposed: bool },
}

/// One half of the gradient: rows of `[K, N]`, or of its transpose.
pub(super) struct Half<'a, G> {
    pub(super) rows: Vec<&'a mut [G]>,
    pub(super) transposed: bool,
}

impl<'a, G: Element> WeightsMut<'a, G> {
    /// One tensor `[K, 2N]`.
    pub fn packed(weights: HostMatrixMut<'a, G>, order: Order) -> Self {
        Self { storage: Storage::Packed(weights, order) }
    }

    /// One tensor `[2N, K]`.
    pub fn linear(weights: HostMatrixMut<'a, G>, order: Order) -> Self {
        Self { storage: Storage::Linear(weights, order) }
    }

    /// Two tensors `[K, N]`.
    pub fn separate(gate: HostMatrixMut<'a, G>, up: HostMatrixMut<'a, G>) -> Self {
        Self { storage: Storage::Separate { gate, up, transposed: false } }
    }

    /// Two tensors `[N, K]`.
    pub fn separate_linear(gate: HostMatrixMut<'a, G>, up: HostMatrixMut<'a, G>) -> Self {
        Self { storage: Storage::Separate { gate, up, transposed: true } }
    }

    /// An error unless this holds gradients of weights `[k, n]`.
    pub(super) fn expect(&self, k: usize, n: usize) -> Result<()> {
        match &self.storage {
            Storage::Packed(matrix, _) => matrix.expect(k, 2 * n),
            Storage::Linear(matrix, _) => matrix.expect(2 * n, k),
            Storage::Separate { gate, up, transposed } => {
                let (rows, cols) = if *transposed { (n, k) } else { (k, n) };
                gate.expect(rows, cols)?;
                up.expect(rows, cols)
            }
        }
    }

    /// `(gate, up)`.
    pub(super) fn halves(&mut self, n: usize) -> (Half<'_, G>, Half<'_, G>) {
        match &mut self.storage {
            Storage::Packed(matrix, order) => {
                let (first, second) = matrix.rows_mut().map(|row| row.split_at_mut(n)).unzip();
                order.pick(Half { rows: first, transposed: false }, Half { rows: second, transposed: false })
            }
            Storage::Linear(matrix, order) => {
                let mut first: Vec<_> = matrix.rows_mut().collect();
                let second = first.split_off(n);
                order.pick(Half { rows: first, transposed: true }, Half { rows: second, transposed: true })
            }
            Storage::Separate { gate, up, transposed } => {
                let half = |rows| Half { rows, transposed: *transposed };
                (half(gate.rows_mut().collect()), half(up.rows_mut().collect()))
            }
        }
    }
}
