//! The gated MLP against reference-cpu.

use reference_cpu::{HostMatrix, HostMatrixMut};
use swiglu_kernel::kernel_core::Element;
use swiglu_kernel::kernel_core::half::{bf16, f16};
use swiglu_kernel::{
    Gate, Gpu, Gradients, Inputs, Layout, MlpGradients, MlpPlan, MlpProblem, Mode, Options, Order, Preactivations,
    Route, VectorView, VectorViewMut, cpu,
};

use crate::case::{Case, Parts};
use crate::support::{Matrix, Number, error, gpu, tolerance};

fn check<T: Number, G: Number>(gpu: &Gpu, case: &Case, k_out: usize, down_linear: bool, accumulate: bool) {
    let problem = MlpProblem { layer: case.problem(<T as Element>::DTYPE), down_outputs: k_out, down_linear };
    let [m, k, n] = case.size;
    // z and its gradient are rounded on the way, unlike on the host.
    let bound = 1.5 * tolerance::<T>();
    let assert_close = |part: &str, error: f64| {
        assert!(error <= bound, "{part} of {case:?}, {problem:?}: error {error:.2e}, tolerance {bound:.1e}");
    };
    let x = Matrix::<T>::noise(gpu, [m, k], case.gap, 1, 1.0);
    let weights = Parts::<T>::noise(gpu, case, 2, 2.0 / (k as f32).sqrt());
    let [down_rows, down_cols] = problem.down_shape();
    let down = Matrix::<T>::noise(gpu, [down_rows, down_cols], case.gap, 4, 2.0 / (n as f32).sqrt());
    let dy = Matrix::<T>::noise(gpu, [m, k_out], case.gap, 6, 1.0);
    let bias = Matrix::<T>::noise(gpu, [1, 2 * n], 0, 5, 0.5);
    let view = case.bias.then(|| VectorView::new("bias", &bias.device, [2 * n]).expect("a view"));
    let inputs = Inputs { x: x.view("x"), weights: weights.views(), bias: view };
    let mut plan = MlpPlan::new(gpu, problem, Options { route: case.route, mode: case.mode }).expect("a plan");
    let (mut y, mut saved) =
        (Matrix::<T>::poison(gpu, [m, k_out], case.gap), Matrix::<T>::poison(gpu, [m, 2 * n], case.gap));
    plan.forward(&inputs, &down.view("down"), &mut y.view_mut("y"), Some(&mut saved.view_mut("saved")))
        .expect("forward");

    let (mut dx, mut d_down) = (
        Matrix::<T>::poison(gpu, [m, k], case.gap),
        Matrix::<G>::noise(gpu, [down_rows, down_cols], case.gap, 11, 0.1),
    );
    let mut d_weights = Parts::<G>::noise(gpu, case, 7, 0.1);
    let mut d_bias = Matrix::<G>::noise(gpu, [1, 2 * n], 0, 9, 0.1);
    {
        let mut gradients = MlpGradients {
            layer: Gradients {
                dx: Some(dx.view_mut("dx")),
                d_weights: Some(d_weights.views_mut()),
                d_bias: Some(VectorViewMut::new("d_bias", &mut d_bias.device, [2 * n]).expect("a view")),
                accumulate,
            },
            d_down: Some(d_down.view_mut("d_down")),
        };
        let (down, dy) = (down.view("down"), dy.view("dy"));
        if case.mode == Mode::Recompute {
            let saved_view = saved.view("saved");
            let from = if case.bias { Preactivations::Recompute } else { Preactivations::Saved(&saved_view) };
            plan.backward(&inputs, &down, &dy, from, &mut gradients).expect("backward");
        } else {
            let mut view = saved.view_mut("saved");
            plan.backward(&inputs, &down, &dy, Preactivations::InPlace(&mut view), &mut gradients).expect("backward");
        }
    }

    let host = cpu::MlpPlan::new(problem).expect("a plan");
    let host_inputs = cpu::Inputs {
        x: HostMatrix::new("x", &x.host, m, k).expect("a host view"),
        weights: weights.host(),
        bias: case.bias.then_some(&bias.host[..]),
    };
    let host_down = HostMatrix::new("down", &down.host, down_rows, down_cols).expect("a host view");
    let (mut y_host, mut dx_host) = (vec![T::rounded(0.0); m * k_out], vec![T::rounded(0.0); m * k]);
    {
        let mut view = HostMatrixMut::new("y", &mut y_host, m, k_out).expect("a host view");
        host.forward(&host_inputs, host_down, &mut view, None).expect("forward");
    }
    assert_close("y", error(&y.download(gpu), &y_host));
    let found: Vec<Vec<G>> = d_weights.0.iter().map(|part| part.download(gpu)).collect();
    let (d_down_found, d_bias_found) = (d_down.download(gpu), d_bias.download(gpu));
    {
        let mut targets = cpu::MlpGradients {
            layer: cpu::Gradients {
                dx: Some(HostMatrixMut::new("dx", &mut dx_host, m, k).expect("a host view")),
                d_weights: Some(d_weights.host_mut()),
                d_bias: Some(&mut d_bias.host[..]),
                accumulate,
            },
            d_down: Some(HostMatrixMut::new("d_down", &mut d_down.host, down_rows, down_cols).expect("a host view")),
        };
        let dy = HostMatrix::new("dy", &dy.host, m, k_out).expect("a host view");
        host.backward(&host_inputs, host_down, dy, None, &mut targets).expect("backward");
    }
    assert_close("dx", error(&dx.download(gpu), &dx_host));
    assert_close("d_bias", error(&d_bias_found, &d_bias.host));
    assert_close("d_down", error(&d_down_found, &d_down.host));
    for (found, truth) in found.iter().zip(&d_weights.0) {
        assert_close("d_weights", error(found, &truth.host));
    }
}

#[test]
fn the_whole_mlp_agrees() {
    let Some(gpu) = gpu() else { return };
    let plain = Case {
        size: [300, 136, 200],
        layout: Layout::Packed(Order::GateFirst),
        gate: Gate::Silu,
        bias: false,
        route: Route::Auto,
        mode: Mode::InPlace,
        gap: 0,
    };
    for (i, layout) in Layout::ALL.into_iter().enumerate() {
        let gate = Gate::ALL[i % 4];
        let mode = if i % 2 == 0 { Mode::InPlace } else { Mode::Recompute };
        let case = Case { layout, gate, mode, bias: i % 3 != 0, gap: 8 * (i % 2), ..plain };
        check::<bf16, f32>(&gpu, &case, 144, i % 2 == 0, i % 3 == 0);
        check::<f16, f16>(&gpu, &case, 264, i % 3 == 0, false);
        check::<f32, f32>(&gpu, &case, 77, i % 2 == 1, true);
        check::<bf16, bf16>(&gpu, &Case { route: Route::Portable, ..case }, 136, i % 2 == 0, false);
        check::<bf16, f32>(&gpu, &Case { size: [3, 64, 72], ..case }, 33, true, false);
    }
}
