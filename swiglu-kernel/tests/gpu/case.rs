//! One gated layer on device and host.

use reference_cpu::{HostMatrix, HostMatrixMut};
use swiglu_kernel::{
    DType, Gate, Gradients, Inputs, Layout, Mode, Options, Plan, Preactivations, Problem, Route, VectorView,
    VectorViewMut, Weights, WeightsMut, cpu,
};

use crate::support::{Matrix, Number, error, tolerance};
use swiglu_kernel::Gpu;

/// What a check varies beside the dtype.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) size: [usize; 3],
    pub(crate) layout: Layout,
    pub(crate) gate: Gate,
    pub(crate) bias: bool,
    pub(crate) route: Route,
    pub(crate) mode: Mode,
    /// Elements between the end of a row and the next.
    pub(crate) gap: usize,
}

impl Case {
    pub(crate) fn problem(&self, dtype: DType) -> Problem {
        let [rows, inputs, outputs] = self.size;
        Problem { rows, inputs, outputs, dtype, layout: self.layout, gate: self.gate, bias: self.bias }
    }
}

/// Weights as one tensor or two.
pub(crate) struct Parts<T>(pub(crate) Vec<Matrix<T>>);

impl<T: Number> Parts<T> {
    pub(crate) fn noise(gpu: &Gpu, case: &Case, seed: u64, scale: f32) -> Self {
        let [_, inputs, outputs] = case.size;
        let shape = case.layout.shape(inputs, outputs);
        let count = if case.layout.is_joined() { 1 } else { 2 };
        Self((0..count).map(|part| Matrix::noise(gpu, shape, case.gap, seed + part, scale)).collect())
    }

    pub(crate) fn views(&self) -> Weights<'_, T> {
        match &self.0[..] {
            [one] => Weights::Joined(one.view("weights")),
            parts => Weights::Separate { gate: parts[0].view("gate"), up: parts[1].view("up") },
        }
    }

    pub(crate) fn views_mut(&mut self) -> WeightsMut<'_, T> {
        match &mut self.0[..] {
            [one] => WeightsMut::Joined(one.view_mut("d_weights")),
            [gate, up, ..] => WeightsMut::Separate { gate: gate.view_mut("d_gate"), up: up.view_mut("d_up") },
            [] => unreachable!("one or two tensors"),
        }
    }

    pub(crate) fn host(&self) -> cpu::Weights<'_, T> {
        let matrix = |part: &'_ Matrix<T>| -> (usize, usize) { (part.shape[0], part.shape[1]) };
        let view = |index: usize| {
            let part = &self.0[index];
            let (rows, cols) = matrix(part);
            HostMatrix::new("weights", &part.host, rows, cols).expect("a host view")
        };
        if self.0.len() == 1 {
            cpu::Weights::Joined(view(0))
        } else {
            cpu::Weights::Separate { gate: view(0), up: view(1) }
        }
    }

    pub(crate) fn host_mut(&mut self) -> cpu::WeightsMut<'_, T> {
        fn view<T: Number>(part: &mut Matrix<T>) -> HostMatrixMut<'_, T> {
            HostMatrixMut::new("d_weights", &mut part.host, part.shape[0], part.shape[1]).expect("a host view")
        }
        match &mut self.0[..] {
            [one] => cpu::WeightsMut::Joined(view(one)),
            [gate, up, ..] => cpu::WeightsMut::Separate { gate: view(gate), up: view(up) },
            [] => unreachable!("one or two tensors"),
        }
    }
}

/// Runs forward and backward on both sides and compares everything. Gradients of the parameters are of type `G` and accumulate if asked to.
pub(crate) fn check<T: Number, G: Number>(gpu: &Gpu, case: &Case, accumulate: bool) {
    let problem = case.problem(<T as swiglu_kernel::kernel_core::Element>::DTYPE);
    let [m, k, n] = case.size;
    let what = |part: &str| format!("{part} of {case:?}, {problem:?}, accumulate {accumulate}");
    let assert_close = |part: &str, error: f64| {
        // Roundings of few terms do not average out.
        let bound = tolerance::<T>() * if k.min(n) < 16 { 4.0 } else { 1.0 };
        assert!(error <= bound, "{}: error {error:.2e}, tolerance {bound:.1e}", what(part));
    };

    let x = Matrix::<T>::noise(gpu, [m, k], case.gap, 1, 1.0);
    let weights = Parts::<T>::noise(gpu, case, 2, 2.0 / (k as f32).sqrt());
    let bias = Matrix::<T>::noise(gpu, [1, 2 * n], 0, 5, 0.5);
    let mut dz = Matrix::<T>::noise(gpu, [m, n], case.gap, 6, 1.0);
    let inputs = Inputs {
        x: x.view("x"),
        weights: weights.views(),
        bias: case.bias.then(|| VectorView::new("bias", &bias.device, [2 * n]).expect("a view")),
    };
    let mut plan = Plan::new(gpu, problem, Options { route: case.route, mode: case.mode }).expect("a plan");

    let (mut z, mut saved) =
        (Matrix::<T>::poison(gpu, [m, n], case.gap), Matrix::<T>::poison(gpu, [m, 2 * n], case.gap));
    plan.forward(&inputs, &mut z.view_mut("z"), None).expect("forward");
    let alone = z.download(gpu);
    z = Matrix::poison(gpu, [m, n], case.gap);
    plan.forward(&inputs, &mut z.view_mut("z"), Some(&mut saved.view_mut("saved"))).expect("forward");
    let (z_found, saved_found) = (z.download(gpu), saved.download(gpu));
    assert!(
        alone.iter().zip(&z_found).all(|(a, b)| a.widened() == b.widened()),
        "{}",
        what("z with and without saving")
    );

    let on_host = cpu::Plan::new(problem).expect("a plan");
    let host_inputs = cpu::Inputs {
        x: HostMatrix::new("x", &x.host, m, k).expect("a host view"),
        weights: weights.host(),
        bias: case.bias.then_some(&bias.host[..]),
    };
    let (mut z_host, mut saved_host) = (vec![T::rounded(0.0); m * n], vec![T::rounded(0.0); 2 * m * n]);
    {
        let mut z_view = HostMatrixMut::new("z", &mut z_host, m, n).expect("a host view");
        let mut saved_view = HostMatrixMut::new("saved", &mut saved_host, m, 2 * n).expect("a host view");
        on_host.forward(&host_inputs, &mut z_view, Some(&mut saved_view)).expect("forward");
    }
    assert_close("z", error(&z_found, &z_host));
    assert_close("saved", error(&saved_found, &saved_host));
    if case.mode == Mode::Inference {
        return;
    }

    let mut dx = Matrix::<T>::poison(gpu, [m, k], case.gap);
    let mut d_weights = Parts::<G>::noise(gpu, case, 7, 0.1);
    let mut d_bias = Matrix::<G>::noise(gpu, [1, 2 * n], 0, 9, 0.1);
    let mut gradients = Gradients {
        dx: Some(dx.view_mut("dx")),
        d_weights: Some(d_weights.views_mut()),
        d_bias: Some(VectorViewMut::new("d_bias", &mut d_bias.device, [2 * n]).expect("a view")),
        accumulate,
    };
    let dz_view = dz.view("dz");
    if case.mode == Mode::Recompute {
        // The other source of this mode, which must stay as it is.
        let from = if accumulate { Preactivations::Saved(&saved.view("saved")) } else { Preactivations::Recompute };
        plan.backward(&inputs, &dz_view, from, &mut gradients).expect("backward");
        assert!(
            saved.download(gpu).iter().zip(&saved_found).all(|(a, b)| a.widened() == b.widened()),
            "{}",
            what("saved")
        );
    } else {
        let mut view = saved.view_mut("saved");
        plan.backward(&inputs, &dz_view, Preactivations::InPlace(&mut view), &mut gradients).expect("backward");
    }

    let mut dx_host = vec![T::rounded(0.0); m * k];
    let found: Vec<Vec<G>> = d_weights.0.iter().map(|part| part.download(gpu)).collect();
    let d_bias_found = d_bias.download(gpu);
    {
        let mut targets = cpu::Gradients {
            dx: Some(HostMatrixMut::new("dx", &mut dx_host, m, k).expect("a host view")),
            d_weights: Some(d_weights.host_mut()),
            d_bias: Some(&mut d_bias.host[..]),
            accumulate,
        };
        let dz_host = HostMatrix::new("dz", &dz.host, m, n).expect("a host view");
        on_host.backward(&host_inputs, dz_host, None, &mut targets).expect("backward");
    }
    assert_close("dx", error(&dx.download(gpu), &dx_host));
    for (found, truth) in found.iter().zip(&d_weights.0) {
        assert_close("d_weights", error(found, &truth.host));
    }
    assert_close("d_bias", error(&d_bias_found, &d_bias.host));
    dz.host.clear();
}

/// dW in one tensor from pre-activations that are there, without dx.
fn weight_gradient<T: Number, G: Number>(gpu: &Gpu, case: &Case, plan: &mut Plan) -> Vec<G> {
    let [m, k, n] = case.size;
    let x = Matrix::<T>::noise(gpu, [m, k], case.gap, 1, 1.0);
    let weights = Parts::<T>::noise(gpu, case, 2, 2.0 / (k as f32).sqrt());
    let dz = Matrix::<T>::noise(gpu, [m, n], case.gap, 6, 1.0);
    let mut saved = Matrix::<T>::noise(gpu, [m, 2 * n], case.gap, 8, 1.0);
    let mut d_weights = Parts::<G>::noise(gpu, case, 7, 0.1);
    let inputs = Inputs { x: x.view("x"), weights: weights.views(), bias: None };
    let d_weights_view = Some(d_weights.views_mut());
    let mut gradients = Gradients { dx: None, d_weights: d_weights_view, d_bias: None, accumulate: false };
    let mut view = saved.view_mut("saved");
    let from = Preactivations::InPlace(&mut view);
    plan.backward(&inputs, &dz.view("dz"), from, &mut gradients).expect("backward");
    d_weights.0[0].download(gpu)
}

/// Whether dW in the dtype of x, which the layer may make in parts, is dW in f32, which it does not, and the same every time.
pub(crate) fn check_weight_gradient<T: Number>(gpu: &Gpu, case: &Case) {
    let problem = case.problem(<T as swiglu_kernel::kernel_core::Element>::DTYPE);
    let mut plan = Plan::new(gpu, problem, Options { route: case.route, mode: case.mode }).expect("a plan");
    let [first, second] = [(); 2].map(|()| weight_gradient::<T, T>(gpu, case, &mut plan));
    assert!(first.iter().zip(&second).all(|(a, b)| a.widened() == b.widened()), "two calls of {case:?}");
    let error = error(&first, &weight_gradient::<T, f32>(gpu, case, &mut plan));
    assert!(error <= tolerance::<T>(), "dW of {case:?}: error {error:.2e}");
}

/// Whether a backward with dx gives the bits of one without, where the gate's derivative is a pass of its own.
pub(crate) fn check_against_pass<T: Number>(gpu: &Gpu, case: &Case) {
    let problem = case.problem(<T as swiglu_kernel::kernel_core::Element>::DTYPE);
    let [m, k, n] = case.size;
    let x = Matrix::<T>::noise(gpu, [m, k], case.gap, 1, 1.0);
    let weights = Parts::<T>::noise(gpu, case, 2, 2.0 / (k as f32).sqrt());
    let bias = Matrix::<T>::noise(gpu, [1, 2 * n], 0, 5, 0.5);
    let dz = Matrix::<T>::noise(gpu, [m, n], case.gap, 6, 1.0);
    let inputs = Inputs {
        x: x.view("x"),
        weights: weights.views(),
        bias: case.bias.then(|| VectorView::new("bias", &bias.device, [2 * n]).expect("a view")),
    };
    let mut plan = Plan::new(gpu, problem, Options { route: case.route, mode: case.mode }).expect("a plan");
    let [beside, apart] = [true, false].map(|with_dx| {
        let mut saved = Matrix::<T>::poison(gpu, [m, 2 * n], case.gap);
        let mut z = Matrix::<T>::poison(gpu, [m, n], case.gap);
        let mut dx = Matrix::<T>::poison(gpu, [m, k], case.gap);
        let mut d_weights = Parts::<f32>::noise(gpu, case, 7, 0.1);
        plan.forward(&inputs, &mut z.view_mut("z"), Some(&mut saved.view_mut("saved"))).expect("forward");
        let mut gradients = Gradients {
            dx: with_dx.then(|| dx.view_mut("dx")),
            d_weights: Some(d_weights.views_mut()),
            d_bias: None,
            accumulate: false,
        };
        let mut view = saved.view_mut("saved");
        let from = Preactivations::InPlace(&mut view);
        plan.backward(&inputs, &dz.view("dz"), from, &mut gradients).expect("backward");
        let d_weights = d_weights.0.iter().map(|part| part.download(gpu)).collect::<Vec<_>>();
        (saved.download(gpu), d_weights)
    });
    let same = beside.0.iter().zip(&apart.0).all(|(a, b)| a.widened() == b.widened());
    assert!(
        same && beside.1 == apart.1,
        "gradients of the pre-activations with dx and without of {case:?}, {problem:?}"
    );
}
