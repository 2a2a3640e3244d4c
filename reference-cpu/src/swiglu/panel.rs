//! Pre-activations of a tile, computed or read back.

use super::forward::Layer;
use crate::element::Element;
use crate::host::HostMatrix;
use crate::tiles::{Operand, ProductScratch};

/// A tile of pre-activations in f32, row-major.
#[derive(Default)]
pub(super) struct Preactivations {
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    scratch: ProductScratch,
}

/// First index and number of indices.
pub(super) type Range = (usize, usize);

impl Preactivations {
    /// `x·W + b` of the tile.
    pub(super) fn compute<T: Element>(&mut self, x: HostMatrix<'_, T>, layer: &Layer<'_, T>, rows: Range, cols: Range) {
        let (k, n) = (layer.weights.inputs(), layer.weights.outputs());
        let (gate, up) = layer.weights.operands();
        let x = Operand::new(x.block(rows.0, rows.1));
        let bias = layer.bias.map(|bias| {
            let (first, second) = bias.split_at(n);
            layer.weights.order().pick(first, second)
        });
        let (gate_bias, up_bias) = bias.unzip();
        for (target, weights, bias) in [(&mut self.gate, gate, gate_bias), (&mut self.up, up, up_bias)] {
            target.resize(rows.1 * cols.1, 0.0);
            self.scratch.product(target, cols.1, false, x, weights.part((0, k), cols));
            if let Some(bias) = bias {
                for row in target.chunks_mut(cols.1) {
                    row.iter_mut().zip(&bias[cols.0..]).for_each(|(value, bias)| *value += bias.to_f32());
                }
            }
        }
    }

    /// The tile as saved by the forward.
    pub(super) fn load<T: Element>(
        &mut self,
        saved: HostMatrix<'_, T>,
        layer: &Layer<'_, T>,
        rows: Range,
        cols: Range,
    ) {
        let (gate, up) = layer.weights.order().pick(0, layer.weights.outputs());
        for (target, start) in [(&mut self.gate, gate), (&mut self.up, up)] {
            target.resize(rows.1 * cols.1, 0.0);
            let part = saved.part(rows, (start + cols.0, cols.1));
            for (to, from) in target.chunks_mut(cols.1).zip(part.data().chunks(part.row_stride())) {
                T::widen(&from[..cols.1], to);
            }
        }
    }
}
