//! What a case should give, in f64, and how exactly an implementation can be expected to hit it.

use super::case::Case;
use crate::parity::deviation::{Deviation, Floor};
use crate::parity::runner::Measured;
use crate::siglip::Number;
use crate::swiglu::{Step, Tensors};
use kernel_core::DType;
use reference_cpu::naive::{self, SwigluLayer};

pub(crate) const OPS: &[&str] = &["forward", "step"];

/// z and all gradients, and the sizes to measure deviations against.
pub(crate) struct Truth {
    result: Found,
    sizes: Sizes,
    dtype: DType,
}

/// A result with its weights' gradients as two `[K, N]`.
struct Found {
    z: Vec<f64>,
    dx: Vec<f64>,
    d_gate: Vec<f64>,
    d_up: Vec<f64>,
    /// Halves in the order of the weights; empty without a bias.
    d_bias: Vec<f64>,
}

impl Found {
    fn new<T: Number>(case: &Case, step: &Step<T>) -> Self {
        let [d_gate, d_up] = case.halves(&step.d_weights);
        Self {
            z: wide(&step.z),
            dx: wide(&step.dx),
            d_gate: wide(&d_gate),
            d_up: wide(&d_up),
            d_bias: wide(&step.d_bias),
        }
    }
}

/// Roundings to the dtype on the way to a result.
#[derive(Clone, Copy)]
struct Roundings {
    z: f64,
    gradients: f64,
}

impl Truth {
    pub(crate) fn new<T: Number>(case: &Case, tensors: &Tensors<T>) -> reference_cpu::Result<Self> {
        let Case { m, k, n, .. } = *case;
        let [gate, up] = case.halves(&tensors.weights);
        let (x, dz, gate, up) = (wide(&tensors.x), wide(&tensors.dz), wide(&gate), wide(&up));
        let bias = wide(&tensors.bias);
        let halves = (case.bias).then(|| {
            let (first, second) = bias.split_at(n);
            if case.is_gate_first() { (first, second) } else { (second, first) }
        });
        let layer = SwigluLayer { k, n, w_gate: &gate, w_up: &up, bias: halves, gate: case.gate };
        let z = naive::swiglu(&x, &layer, m)?;
        let truth = naive::swiglu_backward(&x, &layer, &dz, m)?;
        let (gate_bias, up_bias) = (truth.d_gate_bias, truth.d_up_bias);
        let d_bias = match (case.bias, case.is_gate_first()) {
            (false, _) => Vec::new(),
            (true, true) => [gate_bias, up_bias].concat(),
            (true, false) => [up_bias, gate_bias].concat(),
        };
        let result = Found { z, dx: truth.dx, d_gate: truth.d_gate, d_up: truth.d_up, d_bias };
        Ok(Self { result, sizes: Sizes::new(case, &x, &layer, &dz), dtype: <T as kernel_core::Element>::DTYPE })
    }

    /// Deviations of reference-cpu. It rounds results once. Rounded pre-activations reach the gradient through the activation's slope and its
    /// derivative, each below 1.2.
    pub(crate) fn measure_host<T: Number>(&self, case: &Case, step: &Step<T>) -> Vec<Measured> {
        let roundings = Roundings { z: 1.0, gradients: if case.saved { 4.0 } else { 1.0 } };
        self.compare(&Found::new(case, step), &self.result, roundings)
    }

    /// Deviations of a GPU route. It always rounds the pre-activations that the backward reads and their gradients, and with two weight
    /// tensors the half of dx that the other is added to.
    pub(crate) fn measure_device<T: Number>(&self, case: &Case, step: &Step<T>) -> Vec<Measured> {
        self.compare(&Found::new(case, step), &self.result, Roundings { z: 1.0, gradients: 6.0 })
    }

    /// The deviations of two implementations from each other, each of which may err. They are checked, and count in no line.
    pub(crate) fn measure_between<T: Number>(&self, case: &Case, step: &Step<T>, other: &Step<T>) -> Vec<Measured> {
        let roundings = Roundings { z: 2.0, gradients: 10.0 };
        let between = self.compare(&Found::new(case, step), &Found::new(case, other), roundings).into_iter();
        between.map(|measured| Measured { op: "comparison with reference-cpu", ..measured }).collect()
    }

    fn compare(&self, found: &Found, truth: &Found, roundings: Roundings) -> Vec<Measured> {
        let measured = |op, what, found: &[f64], truth: &[f64], floor, roundings| Measured {
            op,
            what,
            deviation: Deviation::of(found.iter().copied(), truth, floor),
            tolerance: tolerance(self.dtype, roundings),
        };
        let (sizes, gradients) = (&self.sizes, roundings.gradients);
        let mut all = vec![
            measured("forward", "z", &found.z, &truth.z, sizes.z, roundings.z),
            measured("step", "dx", &found.dx, &truth.dx, sizes.dx, gradients),
            measured("step", "d_gate", &found.d_gate, &truth.d_gate, sizes.d_gate, gradients),
            measured("step", "d_up", &found.d_up, &truth.d_up, sizes.d_up, gradients),
        ];
        if !truth.d_bias.is_empty() {
            all.push(measured("step", "d_bias", &found.d_bias, &truth.d_bias, sizes.d_bias, gradients));
        }
        all
    }
}

/// Sums of up to 300 products in f32, and their activation: a few units of roundoff of f32. A rounding to the dtype errs by at most half its
/// epsilon.
fn tolerance(dtype: DType, roundings: f64) -> Deviation {
    let rounding = if dtype == DType::F32 { 0.0 } else { f64::from(dtype.epsilon()) / 2.0 };
    Deviation::both(4e-6 + 1.1 * roundings * rounding)
}

fn wide<T: Number>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.wide()).collect()
}

/// What each result would be if its terms had random signs (see [`Floor`]).
struct Sizes {
    z: Floor,
    dx: Floor,
    d_gate: Floor,
    d_up: Floor,
    d_bias: Floor,
}

impl Sizes {
    fn new(case: &Case, x: &[f64], layer: &SwigluLayer<'_>, dz: &[f64]) -> Self {
        let Case { m, k, n, .. } = *case;
        let squares = |values: &[f64]| values.iter().map(|v| v * v).collect::<Vec<_>>();
        let (x2, gate2, up2) = (squares(x), squares(layer.w_gate), squares(layer.w_up));
        let spread = |weights2: &[f64]| -> Vec<f64> {
            product(m, n, k, |i, p| x2[i * k + p], |p, j| weights2[p * n + j]).into_iter().map(f64::sqrt).collect()
        };
        // The spread of the pre-activations bounds what their rounding does to z and to its derivatives; biases are of the size of 1.
        let (g, u): (Vec<f64>, Vec<f64>) =
            (spread(&gate2).iter().map(|s| s + 0.5).collect(), spread(&up2).iter().map(|s| s + 0.5).collect());
        let z2: Vec<f64> = g.iter().zip(&u).map(|(g, u)| (g * u).powi(2)).collect();
        let dg2: Vec<f64> = dz.iter().zip(&u).map(|(dz, u)| (dz * u).powi(2)).collect();
        let du2: Vec<f64> = dz.iter().zip(&g).map(|(dz, g)| (dz * g).powi(2)).collect();
        let by_gate = product(m, k, n, |i, j| dg2[i * n + j], |j, p| gate2[p * n + j]);
        let by_up = product(m, k, n, |i, j| du2[i * n + j], |j, p| up2[p * n + j]);
        let dx2: Vec<f64> = by_gate.iter().zip(&by_up).map(|(a, b)| a + b).collect();
        let d_gate2 = product(k, n, m, |p, i| x2[i * k + p], |i, j| dg2[i * n + j]);
        let d_up2 = product(k, n, m, |p, i| x2[i * k + p], |i, j| du2[i * n + j]);
        let column_sums =
            |values: &[f64]| (0..n).map(|j| (0..m).map(|i| values[i * n + j]).sum::<f64>()).collect::<Vec<_>>();
        let d_bias2 = [column_sums(&dg2), column_sums(&du2)].concat();
        Self { z: floor(&z2), dx: floor(&dx2), d_gate: floor(&d_gate2), d_up: floor(&d_up2), d_bias: floor(&d_bias2) }
    }
}

fn floor(squares: &[f64]) -> Floor {
    Floor { max: squares.iter().copied().fold(0.0, f64::max).sqrt(), l2: squares.iter().sum::<f64>().sqrt() }
}

/// `[m, n]` of `a(i, p)` and `b(p, j)`, summed over `k`.
fn product(m: usize, n: usize, k: usize, a: impl Fn(usize, usize) -> f64, b: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..m * n).map(|i| (0..k).map(|p| a(i / n, p) * b(p, i % n)).sum()).collect()
}
