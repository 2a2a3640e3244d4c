//! Tensors of more than 2³¹ elements: rows repeat with a period, so rows far out must equal those at the beginning.

use swiglu_kernel::kernel_core::half::bf16;
use swiglu_kernel::{
    DType, Gradients, Inputs, MatrixView, MatrixViewMut, Options, Plan, Preactivations, Problem, Route, Weights,
};

use crate::support::{error, gpu, noise, say};

/// No divisor of a tile or a chunk of rows.
const PERIOD: usize = 600;
const ROWS: usize = 1750 * PERIOD;
const INPUTS: usize = 16;
const OUTPUTS: usize = 1032;

#[test]
fn rows_beyond_two_to_the_31_elements() {
    const { assert!(ROWS * 2 * OUTPUTS > 1 << 31) };
    let Some(gpu) = gpu() else { return };
    let needed = ROWS * (2 * INPUTS + 4 * OUTPUTS) * 2;
    let (free, _) = gpu.memory_info().expect("memory");
    if free < needed + (2 << 30) {
        say(&format!("skipped: needs {needed} bytes of device memory, {free} are free"));
        return;
    }
    let period = noise::<bf16>(PERIOD * INPUTS, 1, 1.0);
    let x = gpu.upload(&period.repeat(ROWS / PERIOD)).expect("x");
    let w = gpu.upload(&noise::<bf16>(INPUTS * 2 * OUTPUTS, 2, 0.5)).expect("w");
    let inputs = Inputs {
        x: MatrixView::new("x", &x, [ROWS, INPUTS]).expect("a view"),
        weights: Weights::Joined(MatrixView::new("w", &w, [INPUTS, 2 * OUTPUTS]).expect("a view")),
        bias: None,
    };
    let mut z = gpu.alloc::<bf16>(ROWS * OUTPUTS).expect("z");
    let mut saved = gpu.alloc::<bf16>(ROWS * 2 * OUTPUTS).expect("saved");
    let mut dx = gpu.alloc::<bf16>(ROWS * INPUTS).expect("dx");
    for route in [Route::Auto, Route::Portable] {
        let problem = Problem::new(ROWS, INPUTS, OUTPUTS, DType::Bf16);
        let mut plan = Plan::new(&gpu, problem, Options { route, ..Options::default() }).expect("a plan");
        {
            let mut z = MatrixViewMut::new("z", &mut z, [ROWS, OUTPUTS]).expect("a view");
            let mut saved = MatrixViewMut::new("saved", &mut saved, [ROWS, 2 * OUTPUTS]).expect("a view");
            plan.forward(&inputs, &mut z, Some(&mut saved)).expect("forward");
        }
        let rows = |slice: &swiglu_kernel::kernel_core::cudarc::driver::CudaSlice<bf16>, first: usize, cols: usize| {
            gpu.download(&slice.slice(first * cols..(first + PERIOD) * cols)).expect("a copy")
        };
        for (what, slice, cols) in [("z", &z, OUTPUTS), ("saved", &saved, 2 * OUTPUTS)] {
            let (first, last) = (rows(slice, 0, cols), rows(slice, ROWS - PERIOD, cols));
            assert!(first.iter().any(|value| value.to_f32() != 0.0), "{route}: {what} is zero");
            // The library may sum the last, smaller chunk in another order.
            assert!(error(&last, &first) < 1e-3, "{route}: the last rows of {what}");
        }
        {
            let dz = MatrixView::new("dz", &z, [ROWS, OUTPUTS]).expect("a view");
            let mut saved = MatrixViewMut::new("saved", &mut saved, [ROWS, 2 * OUTPUTS]).expect("a view");
            let dx = MatrixViewMut::new("dx", &mut dx, [ROWS, INPUTS]).expect("a view");
            let mut gradients = Gradients::<bf16> { dx: Some(dx), ..Gradients::default() };
            plan.backward(&inputs, &dz, Preactivations::InPlace(&mut saved), &mut gradients).expect("backward");
        }
        for (what, slice, cols) in [("gradients", &saved, 2 * OUTPUTS), ("dx", &dx, INPUTS)] {
            let (first, last) = (rows(slice, 0, cols), rows(slice, ROWS - PERIOD, cols));
            assert!(first.iter().any(|value| value.to_f32() != 0.0), "{route}: {what} are zero");
            // The library may sum the last, smaller chunk in another order.
            assert!(error(&last, &first) < 1e-3, "{route}: the last rows of {what}");
        }
    }
}
