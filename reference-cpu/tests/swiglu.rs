//! The gated projections and the gated MLP against the naive f64 version, central differences, and bad arguments.

mod common;

use common::{Noise, dense, floored_error, on_threads, rounding, wide};
use proptest::prelude::*;
use reference_cpu::naive::{self, SwigluLayer};
use reference_cpu::swiglu::{
    self, Gate, Gradients, Layer, Mlp, MlpGradients, Operand, OperandMut, Order, Weights, WeightsMut,
};
use reference_cpu::{Element, HostMatrix, HostMatrixMut, bf16, f16};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    Packed(Order),
    Linear(Order),
    Separate,
    SeparateLinear,
}

const LAYOUTS: [Layout; 6] = [
    Layout::Packed(Order::GateFirst),
    Layout::Packed(Order::GateSecond),
    Layout::Linear(Order::GateFirst),
    Layout::Linear(Order::GateSecond),
    Layout::Separate,
    Layout::SeparateLinear,
];

#[derive(Debug, Clone, Copy)]
struct Shape {
    m: usize,
    k: usize,
    n: usize,
    k_out: usize,
    pad: usize,
}

/// Gate and up weights `[K, N]` in a layout's storage: one slice or two, rows `pad` apart.
fn store<T: Copy>(layout: Layout, gate: &[T], up: &[T], s: Shape, filler: T) -> Vec<Vec<T>> {
    let rows = |matrix: &[T]| matrix.chunks(s.n).map(<[T]>::to_vec).collect::<Vec<_>>();
    let columns =
        |matrix: &[T]| (0..s.n).map(|c| (0..s.k).map(|r| matrix[r * s.n + c]).collect()).collect::<Vec<Vec<T>>>();
    let padded = |rows: Vec<Vec<T>>| {
        rows.into_iter()
            .flat_map(|mut row| {
                row.extend(std::iter::repeat_n(filler, s.pad));
                row
            })
            .collect::<Vec<T>>()
    };
    let ordered = |order| if order == Order::GateFirst { (gate, up) } else { (up, gate) };
    match layout {
        Layout::Packed(order) => {
            let (first, second) = ordered(order);
            vec![padded(rows(first).into_iter().zip(rows(second)).map(|(a, b)| [a, b].concat()).collect())]
        }
        Layout::Linear(order) => {
            let (first, second) = ordered(order);
            vec![padded([columns(first), columns(second)].concat())]
        }
        Layout::Separate => vec![padded(rows(gate)), padded(rows(up))],
        Layout::SeparateLinear => vec![padded(columns(gate)), padded(columns(up))],
    }
}

/// Rows, columns of each stored slice.
fn stored_shape(layout: Layout, s: Shape) -> (usize, usize) {
    match layout {
        Layout::Packed(_) => (s.k, 2 * s.n),
        Layout::Linear(_) => (2 * s.n, s.k),
        Layout::Separate => (s.k, s.n),
        Layout::SeparateLinear => (s.n, s.k),
    }
}

fn weights<'a, T: Element>(layout: Layout, stored: &'a [Vec<T>], s: Shape) -> Weights<'a, T> {
    let (rows, cols) = stored_shape(layout, s);
    let view = |i: usize| HostMatrix::with_row_stride("w", &stored[i], rows, cols, cols + s.pad).unwrap();
    match layout {
        Layout::Packed(order) => Weights::packed(view(0), order),
        Layout::Linear(order) => Weights::linear(view(0), order),
        Layout::Separate => Weights::separate(Operand::new(view(0)), Operand::new(view(1))),
        Layout::SeparateLinear => Weights::separate(Operand::transposed(view(0)), Operand::transposed(view(1))),
    }
    .unwrap()
}

fn weights_mut<'a, G: Element>(layout: Layout, stored: &'a mut [Vec<G>], s: Shape) -> WeightsMut<'a, G> {
    let (rows, cols) = stored_shape(layout, s);
    let mut views =
        stored.iter_mut().map(|data| HostMatrixMut::with_row_stride("dw", data, rows, cols, cols + s.pad).unwrap());
    let mut next = || views.next().unwrap();
    match layout {
        Layout::Packed(order) => WeightsMut::packed(next(), order),
        Layout::Linear(order) => WeightsMut::linear(next(), order),
        Layout::Separate => WeightsMut::separate(next(), next()),
        Layout::SeparateLinear => WeightsMut::separate_linear(next(), next()),
    }
}

/// Everything of one problem, in element type `T`.
struct Data<T> {
    s: Shape,
    layout: Layout,
    gate: Gate,
    x: Vec<T>,
    w_gate: Vec<T>,
    w_up: Vec<T>,
    bias: Option<(Vec<T>, Vec<T>)>,
    down: Vec<T>,
    dz: Vec<T>,
    dy: Vec<T>,
}

impl<T: Element> Data<T> {
    fn new(seed: u64, s: Shape, layout: Layout, gate: Gate, with_bias: bool) -> Self {
        let mut noise = Noise::new(seed);
        let (wide_k, wide_n) = ((2.0 / s.k as f32).sqrt(), (2.0 / s.n as f32).sqrt());
        Self {
            s,
            layout,
            gate,
            x: noise.take(s.m * s.k, 1.0),
            w_gate: noise.take(s.k * s.n, wide_k),
            w_up: noise.take(s.k * s.n, wide_k),
            bias: with_bias.then(|| (noise.take(s.n, 1.0), noise.take(s.n, 1.0))),
            down: noise.take(s.n * s.k_out, wide_n),
            dz: noise.take(s.m * s.n, 1.0),
            dy: noise.take(s.m * s.k_out, 1.0),
        }
    }

    /// A bias or its gradient in the layout's order.
    fn in_order<U: Clone>(&self, gate: &[U], up: &[U]) -> Vec<U> {
        match self.layout {
            Layout::Packed(Order::GateSecond) | Layout::Linear(Order::GateSecond) => [up, gate].concat(),
            _ => [gate, up].concat(),
        }
    }

    fn with_layer<R>(&self, f: impl FnOnce(Layer<'_, T>) -> R) -> R {
        let stored = store(self.layout, &self.w_gate, &self.w_up, self.s, T::from_f32(f32::NAN));
        let bias = self.bias.as_ref().map(|(gate, up)| self.in_order(gate, up));
        f(Layer { weights: weights(self.layout, &stored, self.s), bias: bias.as_deref(), gate: self.gate })
    }

    fn with_naive<R>(&self, f: impl FnOnce(&SwigluLayer<'_>) -> R) -> R {
        let (w_gate, w_up) = (wide(&self.w_gate), wide(&self.w_up));
        let bias = self.bias.as_ref().map(|(gate, up)| (wide(gate), wide(up)));
        f(&SwigluLayer {
            k: self.s.k,
            n: self.s.n,
            w_gate: &w_gate,
            w_up: &w_up,
            bias: bias.as_ref().map(|(gate, up)| (&gate[..], &up[..])),
            gate: self.gate,
        })
    }

    /// z or y, and the saved pre-activations.
    fn forward(&self, mlp: bool) -> (Vec<T>, Vec<T>) {
        let s = self.s;
        let x = HostMatrix::new("x", &self.x, s.m, s.k).unwrap();
        let cols = if mlp { s.k_out } else { s.n };
        let mut out = vec![T::default(); s.m * (cols + s.pad)];
        let mut saved = vec![T::default(); s.m * (2 * s.n + s.pad)];
        self.with_layer(|layer| {
            let mut out = HostMatrixMut::with_row_stride("out", &mut out, s.m, cols, cols + s.pad).unwrap();
            let mut saved = HostMatrixMut::with_row_stride("h", &mut saved, s.m, 2 * s.n, 2 * s.n + s.pad).unwrap();
            if mlp {
                let down = HostMatrix::new("down", &self.down, s.n, s.k_out).unwrap();
                swiglu::mlp_forward(x, &Mlp { layer, down: Operand::new(down) }, &mut out, Some(&mut saved)).unwrap();
                return;
            }
            swiglu::forward(x, &layer, &mut out, Some(&mut saved)).unwrap();
            let mut again = vec![T::default(); s.m * s.n];
            swiglu::forward(x, &layer, &mut HostMatrixMut::new("z", &mut again, s.m, s.n).unwrap(), None).unwrap();
            let bits = |values: &[T]| values.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&again), bits(&dense(out.as_ref().data(), cols, cols + s.pad)), "saving changes z");
        });
        (dense(&out, cols, cols + s.pad), dense(&saved, 2 * s.n, 2 * s.n + s.pad))
    }

    /// dx, stored weight gradients, d_bias, and with `mlp` d_down, accumulated onto `start` if given.
    fn backward<G: Element>(&self, mlp: bool, saved: Option<&[T]>, start: Option<f32>) -> Found<T, G> {
        let s = self.s;
        let x = HostMatrix::new("x", &self.x, s.m, s.k).unwrap();
        let saved = saved.map(|saved| HostMatrix::new("saved", saved, s.m, 2 * s.n).unwrap());
        // What is overwritten may hold anything.
        let fill = G::from_f32(start.unwrap_or(f32::NAN));
        let filled = vec![fill; s.k * s.n];
        let mut found = Found {
            dx: vec![T::from_f32(f32::NAN); s.m * s.k],
            dw: store(self.layout, &filled, &filled, s, G::default()),
            d_bias: vec![fill; 2 * s.n],
            d_down: vec![fill; s.n * s.k_out],
        };
        self.with_layer(|layer| {
            let gradients = Gradients {
                dx: Some(HostMatrixMut::new("dx", &mut found.dx, s.m, s.k).unwrap()),
                d_weights: Some(weights_mut(self.layout, &mut found.dw, s)),
                d_bias: Some(&mut found.d_bias),
                accumulate: start.is_some(),
            };
            if mlp {
                let down = HostMatrix::new("down", &self.down, s.n, s.k_out).unwrap();
                let dy = HostMatrix::new("dy", &self.dy, s.m, s.k_out).unwrap();
                let d_down = HostMatrixMut::new("d_down", &mut found.d_down, s.n, s.k_out).unwrap();
                let mut gradients = MlpGradients { layer: gradients, d_down: Some(OperandMut::new(d_down)) };
                let mlp = Mlp { layer, down: Operand::new(down) };
                swiglu::mlp_backward(x, &mlp, dy, saved, &mut gradients).unwrap();
            } else {
                let mut gradients = gradients;
                let dz = HostMatrix::new("dz", &self.dz, s.m, s.n).unwrap();
                swiglu::backward(x, &layer, dz, saved, &mut gradients).unwrap();
            }
        });
        found
    }

    fn check<G: Element>(&self, mlp: bool) {
        let s = self.s;
        let name = format!("{} {} {:?} {:?} {}", T::NAME, G::NAME, s, self.layout, self.gate);
        let x = wide(&self.x);
        let (out, saved) = self.forward(mlp);
        let exact = self.with_naive(|layer| match mlp {
            true => naive::mlp(&x, layer, &wide(&self.down), s.m, s.k_out).unwrap(),
            false => naive::swiglu(&x, layer, s.m).unwrap(),
        });
        let within = |what: &str, error: f64, tolerance: f64| assert!(error <= tolerance, "{what} {error:e} {name}");
        within("out", floored_error(&out, &exact, 0.5), 2e-6 + rounding::<T>());

        let exact = self.with_naive(|layer| match mlp {
            true => naive::mlp_backward(&x, layer, &wide(&self.down), &wide(&self.dy), s.m, s.k_out).unwrap(),
            false => naive::MlpResult {
                layer: naive::swiglu_backward(&x, layer, &wide(&self.dz), s.m).unwrap(),
                d_down: Vec::new(),
            },
        });
        let stored = store(self.layout, &exact.layer.d_gate, &exact.layer.d_up, s, 0.0);
        let bias = self.in_order(&exact.layer.d_gate_bias, &exact.layer.d_up_bias);
        // Saved pre-activations are rounded to T, and a rounding to the other side of 0 moves ReLU's slope: that is for recomputation.
        let from_saved = T::NAME == "f32" || self.gate != Gate::Relu;
        let saved_error = if T::NAME == "f32" { 0.0 } else { f64::from(T::EPSILON) * 4.0 };
        for (saved, extra) in [(None, 0.0), (Some(&saved[..]), saved_error)] {
            if saved.is_some() && !from_saved {
                continue;
            }
            for start in [None, Some(2.0)] {
                let found = self.backward::<G>(mlp, saved, start);
                let plus =
                    |exact: &[f64]| exact.iter().map(|e| e + f64::from(start.unwrap_or(0.0))).collect::<Vec<_>>();
                let (for_x, for_g) = (4e-6 + extra + rounding::<T>(), 4e-6 + extra + rounding::<G>());
                within("dx", floored_error(&found.dx, &exact.layer.dx, 1.0), for_x);
                for (found, exact) in found.dw.iter().zip(&stored) {
                    // The padding is 0 in both, before and after.
                    let cols = stored_shape(self.layout, s).1;
                    let (found, exact) = (dense(found, cols, cols + s.pad), dense(exact, cols, cols + s.pad));
                    within("dw", floored_error(&found, &plus(&exact), 1.0), for_g);
                }
                within("d_bias", floored_error(&found.d_bias, &plus(&bias), 1.0), for_g);
                if mlp {
                    within("d_down", floored_error(&found.d_down, &plus(&exact.d_down), 1.0), for_g);
                }
            }
        }
    }
}

#[derive(Debug, PartialEq)]
struct Found<T, G> {
    dx: Vec<T>,
    dw: Vec<Vec<G>>,
    d_bias: Vec<G>,
    d_down: Vec<G>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_naive_f64(
        seed in any::<u64>(),
        m in 1usize..20,
        k in 1usize..40,
        n in 1usize..40,
        k_out in 1usize..20,
        pad in 0usize..3,
        layout in proptest::sample::select(LAYOUTS.to_vec()),
        gate in proptest::sample::select(Gate::ALL.to_vec()),
        bias in any::<bool>(),
        mlp in any::<bool>(),
    ) {
        let shape = Shape { m, k, n, k_out, pad };
        Data::<f32>::new(seed, shape, layout, gate, bias).check::<f32>(mlp);
        Data::<bf16>::new(seed, shape, layout, gate, bias).check::<f32>(mlp);
        Data::<bf16>::new(seed, shape, layout, gate, bias).check::<bf16>(mlp);
        Data::<f16>::new(seed, shape, layout, gate, bias).check::<f16>(mlp);
    }

    #[test]
    fn naive_gradients_are_central_differences(
        seed in any::<u64>(),
        m in 1usize..4,
        k in 1usize..4,
        n in 1usize..4,
        // ReLU has a kink, where differences say nothing.
        gate in proptest::sample::select(vec![Gate::Silu, Gate::GeluTanh, Gate::Sigmoid]),
    ) {
        let k_out = 2;
        let mut noise = Noise::new(seed);
        let mut take = |count| wide(&noise.take::<f32>(count, 1.0));
        let sizes = [m * k, k * n, k * n, n, n, n * k_out];
        let inputs: Vec<Vec<f64>> = sizes.iter().map(|&size| take(size)).collect();
        let dy = take(m * k_out);
        let layer = |v: &[Vec<f64>], f: &mut dyn FnMut(&SwigluLayer<'_>)| {
            f(&SwigluLayer { k, n, w_gate: &v[1], w_up: &v[2], bias: Some((&v[3], &v[4])), gate })
        };
        let value = |v: &[Vec<f64>]| {
            let mut total = 0.0;
            layer(v, &mut |layer| {
                let y = naive::mlp(&v[0], layer, &v[5], m, k_out).unwrap();
                total = y.iter().zip(&dy).map(|(y, d)| y * d).sum();
            });
            total
        };
        let mut exact = None;
        layer(&inputs, &mut |layer| {
            exact = Some(naive::mlp_backward(&inputs[0], layer, &inputs[5], &dy, m, k_out).unwrap());
        });
        let r = exact.unwrap();
        let gradients = [r.layer.dx, r.layer.d_gate, r.layer.d_up, r.layer.d_gate_bias, r.layer.d_up_bias, r.d_down];
        let step = 1e-5;
        for (which, gradient) in gradients.iter().enumerate() {
            for (i, &gradient) in gradient.iter().enumerate() {
                let moved = |by: f64| {
                    let mut v = inputs.clone();
                    v[which][i] += by;
                    value(&v)
                };
                prop_assert!(((moved(step) - moved(-step)) / (2.0 * step) - gradient).abs() < 1e-7);
            }
        }
    }
}

#[test]
fn sizes_past_one_tile_and_one_panel() {
    let shape = Shape { m: 300, k: 24, n: 530, k_out: 40, pad: 1 };
    for (layout, mlp) in [(LAYOUTS[1], true), (LAYOUTS[2], true), (LAYOUTS[0], false), (LAYOUTS[5], false)] {
        Data::<f32>::new(1, shape, layout, Gate::Silu, true).check::<f32>(mlp);
    }
    // Deeper than one product; one row, as in decoding.
    let shape = Shape { m: 1, k: 2500, n: 9, k_out: 3, pad: 0 };
    Data::<bf16>::new(2, shape, LAYOUTS[3], Gate::GeluTanh, false).check::<f32>(true);
    // Exactly the panel and tile widths.
    let shape = Shape { m: 257, k: 3, n: 512, k_out: 5, pad: 0 };
    Data::<f32>::new(3, shape, LAYOUTS[0], Gate::Sigmoid, true).check::<f32>(true);
}

#[test]
fn same_bits_on_every_run_and_number_of_threads() {
    let shape = Shape { m: 600, k: 20, n: 700, k_out: 30, pad: 0 };
    let data = Data::<f32>::new(4, shape, LAYOUTS[2], Gate::Silu, true);
    for mlp in [false, true] {
        let one = on_threads(1, || (data.forward(mlp), data.backward::<f32>(mlp, None, Some(1.0))));
        let two = on_threads(2, || (data.forward(mlp), data.backward::<f32>(mlp, None, Some(1.0))));
        assert!(one == two);
        // Saved f32 pre-activations are the ones that would be recomputed.
        assert!(data.backward::<f32>(mlp, Some(&one.0.1), Some(1.0)) == one.1);
    }
}

#[test]
fn each_gradient_is_optional() {
    let shape = Shape { m: 7, k: 5, n: 6, k_out: 4, pad: 0 };
    let data = Data::<f32>::new(5, shape, LAYOUTS[0], Gate::Silu, true);
    let all = data.backward::<f32>(false, None, None);
    let x = HostMatrix::new("x", &data.x, 7, 5).unwrap();
    let dz = HostMatrix::new("dz", &data.dz, 7, 6).unwrap();
    data.with_layer(|layer| {
        let (mut dx, mut dw, mut d_bias) = (vec![0f32; 35], vec![vec![0f32; 60]], vec![0f32; 12]);
        let mut only =
            Gradients::<f32> { dx: Some(HostMatrixMut::new("dx", &mut dx, 7, 5).unwrap()), ..Gradients::default() };
        swiglu::backward(x, &layer, dz, None, &mut only).unwrap();
        let mut only =
            Gradients::<f32> { d_weights: Some(weights_mut(LAYOUTS[0], &mut dw, shape)), ..Gradients::default() };
        swiglu::backward(x, &layer, dz, None, &mut only).unwrap();
        let mut only = Gradients::<f32> { d_bias: Some(&mut d_bias), ..Gradients::default() };
        swiglu::backward(x, &layer, dz, None, &mut only).unwrap();
        assert!(dx == all.dx && dw == all.dw && d_bias == all.d_bias);
        swiglu::backward(x, &layer, dz, None, &mut Gradients::<f32>::default()).unwrap();
    });
}

#[test]
fn nan_reaches_the_rows_it_touches() {
    let shape = Shape { m: 4, k: 5, n: 6, k_out: 3, pad: 0 };
    for gate in Gate::ALL {
        let mut data = Data::<f32>::new(6, shape, LAYOUTS[0], gate, false);
        data.x[7] = f32::NAN;
        let z = data.forward(false).0;
        for (i, value) in z.iter().enumerate() {
            assert_eq!(value.is_nan(), i / 6 == 1, "{gate} {i}");
        }
    }
}

#[test]
fn the_down_projection_may_be_transposed() {
    let s = Shape { m: 6, k: 5, n: 7, k_out: 4, pad: 0 };
    let data = Data::<f32>::new(7, s, LAYOUTS[0], Gate::Silu, false);
    let flip = |values: &[f32]| (0..28).map(|i| values[i % 7 * 4 + i / 7]).collect::<Vec<_>>();
    let flipped = flip(&data.down);
    let x = HostMatrix::new("x", &data.x, 6, 5).unwrap();
    let dy = HostMatrix::new("dy", &data.dy, 6, 4).unwrap();
    let expected = (data.forward(true).0, data.backward::<f32>(true, None, None));
    data.with_layer(|layer| {
        let mlp = Mlp { layer, down: Operand::transposed(HostMatrix::new("down", &flipped, 4, 7).unwrap()) };
        let (mut y, mut d_down) = (vec![0f32; 24], vec![0f32; 28]);
        swiglu::mlp_forward(x, &mlp, &mut HostMatrixMut::new("y", &mut y, 6, 4).unwrap(), None).unwrap();
        let matrix = HostMatrixMut::new("d_down", &mut d_down, 4, 7).unwrap();
        let mut gradients =
            MlpGradients::<f32> { d_down: Some(OperandMut::transposed(matrix)), ..MlpGradients::default() };
        swiglu::mlp_backward(x, &mlp, dy, None, &mut gradients).unwrap();
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&y, &expected.0) && close(&d_down, &flip(&expected.1.d_down)));
    });
}
