//! A user's mistakes give errors that name them.

use swiglu_kernel::kernel_core::half::{bf16, f16};
use swiglu_kernel::{
    DType, Gradients, Inputs, Layout, MatrixView, MatrixViewMut, Mode, Options, Plan, Preactivations, Problem, Route,
    VectorView, Weights, workspace_bytes,
};

use crate::support::{Matrix, gpu};

#[test]
fn arguments_are_checked_by_name() {
    let Some(gpu) = gpu() else { return };
    let (m, k, n) = (70, 16, 24);
    let problem = Problem::new(m, k, n, DType::Bf16);
    let x = Matrix::<bf16>::noise(&gpu, [m, k], 0, 1, 1.0);
    let wrong_x = Matrix::<bf16>::noise(&gpu, [m, k + 8], 0, 1, 1.0);
    let w = Matrix::<bf16>::noise(&gpu, [k, 2 * n], 0, 2, 1.0);
    let mut z = Matrix::<bf16>::poison(&gpu, [m, n], 0);
    let mut saved = Matrix::<bf16>::poison(&gpu, [m, 2 * n], 0);
    let mut plan = Plan::new(&gpu, problem, Options::default()).unwrap();
    assert_eq!(plan.workspace_bytes(), workspace_bytes(&gpu, &problem, &Options::default()).unwrap());
    let inputs = |x: &'_ Matrix<bf16>| -> [usize; 2] { x.shape };
    assert_eq!(inputs(&x), [m, k]);

    let mut fails = |inputs: Inputs<'_, bf16>, expected: &[&str]| {
        let message = plan.forward(&inputs, &mut z.view_mut("z"), None).unwrap_err().to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    };
    let joined = || Weights::Joined(w.view("weights"));
    fails(Inputs { x: wrong_x.view("x"), weights: joined(), bias: None }, &["x", "[70, 24]", "[70, 16]"]);
    let two = Weights::Separate { gate: w.view("gate"), up: w.view("up") };
    fails(Inputs { x: x.view("x"), weights: two, bias: None }, &["weights", "two tensors", "one tensor", "packed"]);
    let bias = Matrix::<bf16>::noise(&gpu, [1, 2 * n], 0, 3, 1.0);
    let view = VectorView::new("bias", &bias.device, [2 * n]).unwrap();
    fails(Inputs { x: x.view("x"), weights: joined(), bias: Some(view) }, &["bias", "bias = true"]);
    let slice = x.device.slice(1..1 + (m - 1) * k);
    let shifted = MatrixView::with_row_stride("x", &slice, [m - 1, k], k).unwrap();
    let mut shorter = Plan::new(&gpu, Problem { rows: m - 1, ..problem }, Options::default()).unwrap();
    let mut other = Matrix::<bf16>::poison(&gpu, [m - 1, n], 0);
    let message = shorter
        .forward(&Inputs { x: shifted, weights: joined(), bias: None }, &mut other.view_mut("z"), None)
        .map_err(|error| error.to_string());
    if shorter.route() != Route::Portable {
        assert!(message.unwrap_err().contains("x: misaligned"));
    }

    let whole = Inputs { x: x.view("x"), weights: joined(), bias: None };
    let wrong = Matrix::<f16>::noise(&gpu, [m, k], 0, 1, 1.0);
    let wrong_w = Matrix::<f16>::noise(&gpu, [k, 2 * n], 0, 1, 1.0);
    let mut wrong_z = Matrix::<f16>::poison(&gpu, [m, n], 0);
    let halves = Inputs { x: wrong.view("x"), weights: Weights::Joined(wrong_w.view("w")), bias: None };
    let message = plan.forward(&halves, &mut wrong_z.view_mut("z"), None).unwrap_err().to_string();
    assert!(message.contains("f16") && message.contains("bf16"), "{message}");

    let dz = Matrix::<bf16>::noise(&gpu, [m, n], 0, 4, 1.0);
    let mut none = Gradients::<bf16>::default();
    let dz = dz.view("dz");
    let message = plan.backward(&whole, &dz, Preactivations::Recompute, &mut none).unwrap_err().to_string();
    assert!(message.contains("in-place") && message.contains("recompute"), "{message}");
    let mut inference = Plan::new(&gpu, problem, Options { mode: Mode::Inference, ..Options::default() }).unwrap();
    let mut view = saved.view_mut("saved");
    let message =
        inference.backward(&whole, &dz, Preactivations::InPlace(&mut view), &mut none).unwrap_err().to_string();
    assert!(message.contains("inference"), "{message}");
}

#[test]
fn outputs_may_not_overlap_inputs() {
    let Some(gpu) = gpu() else { return };
    let (m, k) = (64, 64);
    let mut plan = Plan::new(&gpu, Problem::new(m, k, k, DType::F32), Options::default()).unwrap();
    let memory = Matrix::<f32>::noise(&gpu, [m, k], 0, 1, 1.0);
    let w = Matrix::<f32>::noise(&gpu, [k, 2 * k], 0, 2, 1.0);
    let inputs = Inputs { x: memory.view("x"), weights: Weights::Joined(w.view("w")), bias: None };
    // A second handle on the same memory, as foreign code may have.
    let address = memory.view("x").address();
    // SAFETY: the memory lives; the call is refused before anything is written.
    let mut alias = unsafe { gpu.stream().upgrade_device_ptr::<f32>(address, m * k) };
    let message = {
        let mut z = MatrixViewMut::new("z", &mut alias, [m, k]).unwrap();
        plan.forward(&inputs, &mut z, None).unwrap_err().to_string()
    };
    let _ = alias.leak();
    assert!(message.contains("x and z overlap"), "{message}");
}

#[test]
fn impossible_plans_are_refused() {
    let Some(gpu) = gpu() else { return };
    let message =
        |problem, route| Plan::new(&gpu, problem, Options { route, ..Options::default() }).unwrap_err().to_string();
    let good = Problem::new(100, 16, 16, DType::Bf16);
    assert!(message(Problem { rows: 0, ..good }, Route::Auto).contains("rows"));
    assert!(message(good, Route::Decode).contains("at most 64"));
    assert!(message(Problem { inputs: 15, rows: 4, ..good }, Route::Decode).contains("K = 15"));
    assert!(message(Problem { dtype: DType::F32, ..good }, Route::Fused).contains("f32"));
    assert_eq!(good.with_layout(Layout::Separate).layout, Layout::Separate);
}
