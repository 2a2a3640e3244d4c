//! Parity of the gated projections: so far reference-cpu against naive f64 (there are no GPU kernels yet).

use super::deviation::{Deviation, Floor};
use super::runner::{Group, Line, Measured};
use crate::siglip::{Number, normal};
use half::{bf16, f16};
use indicatif::ProgressBar;
use kernel_core::DType;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::naive::{self, SwigluLayer};
use reference_cpu::swiglu::{Gate, Gradients, Layer, Order, Weights, WeightsMut, backward, forward};
use reference_cpu::{HostMatrix, HostMatrixMut};

const OPS: &[&str] = &["forward", "step"];
pub(crate) const GROUPS: u64 = 3;

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    k: usize,
    n: usize,
    gate: Gate,
    order: Order,
    /// Weights `[2N, K]` instead of `[K, 2N]`.
    linear: bool,
    bias: bool,
    /// The backward reads saved pre-activations instead of computing them again.
    saved: bool,
    data_seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let gate = prop::sample::select(Gate::ALL.to_vec());
    let order = prop_oneof![Just(Order::GateFirst), Just(Order::GateSecond)];
    let shape = (1usize..=90, 1usize..=160, 1usize..=140);
    (shape, gate, order, any::<[bool; 3]>(), any::<u64>()).prop_map(
        |((m, k, n), gate, order, [linear, bias, saved], data_seed)| Case {
            m,
            k,
            n,
            gate,
            order,
            linear,
            bias,
            saved,
            data_seed,
        },
    )
}

pub(crate) fn cpu_groups(cases_a_group: u32, seed: u64, bar: &ProgressBar) -> Vec<(Vec<Line>, Option<String>)> {
    let group = |dtype: DType| Group {
        family: "swiglu",
        dtype: dtype.to_string(),
        route: "reference-cpu".to_owned(),
        ops: OPS,
        cases: cases_a_group,
        seed,
        on_gpu: false,
        bar,
    };
    vec![
        group(DType::F32).run(&cases(), check::<f32>),
        group(DType::F16).run(&cases(), check::<f16>),
        group(DType::Bf16).run(&cases(), check::<bf16>),
    ]
}

/// Sums of up to 160 products in f32, and their activation: a few units of roundoff of f32. Results are rounded once to their dtype, by at most
/// half its epsilon; the backward may read pre-activations that were rounded too, and passes that on.
fn tolerance(dtype: DType, roundings: f64) -> Deviation {
    let rounding = if dtype == DType::F32 { 0.0 } else { f64::from(dtype.epsilon()) / 2.0 };
    Deviation::both(4e-6 + 1.1 * roundings * rounding)
}

fn check<T: Number>(case: &Case) -> Result<Vec<Measured>, String> {
    evaluate::<T>(case).map_err(|error| error.to_string())
}

fn evaluate<T: Number>(case: &Case) -> reference_cpu::Result<Vec<Measured>> {
    let Case { m, k, n, .. } = *case;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(case.data_seed);
    let mut random =
        |len: usize, scale: f32| -> Vec<T> { (0..len).map(|_| T::rounded(normal(&mut rng) * scale)).collect() };
    let (x, dz) = (random(m * k, 1.0), random(m * n, 1.0));
    let (first, second) = (random(k * n, (k as f32).sqrt().recip()), random(k * n, (k as f32).sqrt().recip()));
    let bias = random(2 * n, 0.5);
    let (gate, up) = if case.order == Order::GateFirst { (&first, &second) } else { (&second, &first) };
    let halves = (wide(&bias[..n]), wide(&bias[n..]));
    let (gate_bias, up_bias) =
        if case.order == Order::GateFirst { (&halves.0, &halves.1) } else { (&halves.1, &halves.0) };
    let (x64, gate64, up64, dz64) = (wide(&x), wide(gate), wide(up), wide(&dz));
    let naive_layer = SwigluLayer {
        k,
        n,
        w_gate: &gate64,
        w_up: &up64,
        bias: case.bias.then_some((gate_bias.as_slice(), up_bias.as_slice())),
        gate: case.gate,
    };
    let truth_z = naive::swiglu(&x64, &naive_layer, m)?;
    let truth = naive::swiglu_backward(&x64, &naive_layer, &dz64, m)?;
    let sizes = Sizes::new(case, &x64, &naive_layer, &dz64);

    let stored = store(case, &first, &second);
    let (rows, cols) = if case.linear { (2 * n, k) } else { (k, 2 * n) };
    let matrix = HostMatrix::new("weights", &stored, rows, cols)?;
    let weights = if case.linear { Weights::linear(matrix, case.order)? } else { Weights::packed(matrix, case.order)? };
    let layer = Layer { weights, bias: case.bias.then_some(bias.as_slice()), gate: case.gate };
    let nan = T::rounded(f32::NAN);
    let x = HostMatrix::new("x", &x, m, k)?;
    let (mut z, mut saved) = (vec![nan; m * n], vec![nan; m * 2 * n]);
    let (mut dx, mut d_weights, mut d_bias) = (vec![nan; m * k], vec![nan; 2 * k * n], vec![nan; 2 * n]);
    let mut saved_view = HostMatrixMut::new("saved", &mut saved, m, 2 * n)?;
    forward(x, &layer, &mut HostMatrixMut::new("z", &mut z, m, n)?, Some(&mut saved_view))?;
    let d_weights_view = HostMatrixMut::new("d_weights", &mut d_weights, rows, cols)?;
    let mut gradients = Gradients {
        dx: Some(HostMatrixMut::new("dx", &mut dx, m, k)?),
        d_weights: Some(match case.linear {
            true => WeightsMut::linear(d_weights_view, case.order),
            false => WeightsMut::packed(d_weights_view, case.order),
        }),
        d_bias: case.bias.then_some(d_bias.as_mut_slice()),
        accumulate: false,
    };
    let saved_view = HostMatrix::new("saved", &saved, m, 2 * n)?;
    backward(x, &layer, HostMatrix::new("dz", &dz, m, n)?, case.saved.then_some(saved_view), &mut gradients)?;

    let dtype = <T as kernel_core::Element>::DTYPE;
    // Rounded pre-activations reach the gradient through the activation's slope and its derivative, each below 1.2.
    let (once, gradient) = (tolerance(dtype, 1.0), tolerance(dtype, if case.saved { 4.0 } else { 1.0 }));
    let measured = |op, what, found: &[T], truth: &[f64], floor, tolerance| Measured {
        op,
        what,
        deviation: Deviation::of(found.iter().map(|x| x.wide()), truth, floor),
        tolerance,
    };
    let (d_first, d_second) = unstore(case, &d_weights);
    let (d_gate, d_up) = if case.order == Order::GateFirst { (d_first, d_second) } else { (d_second, d_first) };
    let mut all = vec![
        measured("forward", "z", &z, &truth_z, sizes.z, once),
        measured("step", "dx", &dx, &truth.dx, sizes.dx, gradient),
        measured("step", "d_gate", &d_gate, &truth.d_gate, sizes.d_gate, gradient),
        measured("step", "d_up", &d_up, &truth.d_up, sizes.d_up, gradient),
    ];
    if case.bias {
        let truth_bias = match case.order {
            Order::GateFirst => [truth.d_gate_bias, truth.d_up_bias].concat(),
            Order::GateSecond => [truth.d_up_bias, truth.d_gate_bias].concat(),
        };
        all.push(measured("step", "d_bias", &d_bias, &truth_bias, sizes.d_bias, gradient));
    }
    Ok(all)
}

fn wide<T: Number>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.wide()).collect()
}

/// Two halves `[K, N]` as `[K, 2N]` or `[2N, K]`.
fn store<T: Number>(case: &Case, first: &[T], second: &[T]) -> Vec<T> {
    let Case { k, n, .. } = *case;
    let half = |column: usize| if column < n { (first, column) } else { (second, column - n) };
    let at = |row: usize, column: usize| {
        let (values, column) = half(column);
        values[row * n + column]
    };
    if case.linear {
        (0..2 * n * k).map(|i| at(i % k, i / k)).collect()
    } else {
        (0..2 * n * k).map(|i| at(i / (2 * n), i % (2 * n))).collect()
    }
}

fn unstore<T: Number>(case: &Case, stored: &[T]) -> (Vec<T>, Vec<T>) {
    let Case { k, n, .. } = *case;
    let at =
        |row: usize, column: usize| if case.linear { stored[column * k + row] } else { stored[row * 2 * n + column] };
    let half = |from: usize| (0..k * n).map(|i| at(i / n, from + i % n)).collect();
    (half(0), half(n))
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
