//! Random problems.

use crate::siglip::Number;
use crate::swiglu::{Tensors, random};
use kernel_core::DType;
use proptest::prelude::*;
use swiglu_kernel::{Gate, Layout, Order, Problem, Route};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) gate: Gate,
    pub(crate) layout: Layout,
    pub(crate) bias: bool,
    /// The backward reads saved pre-activations instead of computing them again.
    pub(crate) saved: bool,
    pub(crate) data_seed: u64,
}

/// Problems that `route` takes: multiples of 8 for the ones with tensor-core tiles of their own, any size for the others.
pub(crate) fn cases(route: Route) -> impl Strategy<Value = Case> {
    let (rows, step): (usize, usize) = match route {
        Route::Auto => (90, 1),
        Route::Portable => (180, 1),
        Route::Fused => (300, 8),
        Route::Decode | Route::PortableDecode => (64, 8),
    };
    let across = |most: usize| (1..=most / step).prop_map(move |units| units * step);
    let shape = (1..=rows, across(160), across(200));
    let gate = prop::sample::select(Gate::ALL.to_vec());
    let layout = prop::sample::select(Layout::ALL.to_vec());
    (shape, gate, layout, any::<[bool; 2]>(), any::<u64>()).prop_map(
        |((m, k, n), gate, layout, [bias, saved], data_seed)| Case { m, k, n, gate, layout, bias, saved, data_seed },
    )
}

impl Case {
    pub(crate) fn problem(&self, dtype: DType) -> Problem {
        let Case { m, k, n, gate, layout, bias, .. } = *self;
        Problem::new(m, k, n, dtype).with_gate(gate).with_layout(layout).with_bias(bias)
    }

    /// Pre-activations and gradients of the size of 1.
    pub(crate) fn tensors<T: Number>(&self) -> Tensors<T> {
        let Case { m, k, n, layout, data_seed: seed, .. } = *self;
        let [rows, cols] = layout.shape(k, n);
        let count = if layout.is_joined() { 1 } else { 2 };
        let scale = (k as f32).sqrt().recip();
        Tensors {
            problem: self.problem(<T as kernel_core::Element>::DTYPE),
            x: random(m * k, 1.0, seed),
            weights: (1..=count).map(|part| random(rows * cols, scale, seed.wrapping_add(part))).collect(),
            bias: random(if self.bias { 2 * n } else { 0 }, 0.5, seed.wrapping_add(3)),
            dz: random(m * n, 1.0, seed.wrapping_add(4)),
        }
    }

    pub(crate) fn is_gate_first(&self) -> bool {
        self.layout.order() == Order::GateFirst
    }

    /// Gate and up `[K, N]` from tensors in the case's layout.
    pub(crate) fn halves<T: Copy>(&self, weights: &[Vec<T>]) -> [Vec<T>; 2] {
        let Case { k, n, layout, .. } = *self;
        let half = |index: usize| -> Vec<T> {
            let (tensor, first) = if layout.is_joined() { (&weights[0], index * n) } else { (&weights[index], 0) };
            let [_, cols] = layout.shape(k, n);
            let at = |row: usize, column: usize| {
                if layout.is_linear() {
                    tensor[(first + column) * cols + row]
                } else {
                    tensor[row * cols + first + column]
                }
            };
            (0..k * n).map(|i| at(i / n, i % n)).collect()
        };
        if self.is_gate_first() { [half(0), half(1)] } else { [half(1), half(0)] }
    }
}
