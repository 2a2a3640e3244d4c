//! Forward and backward captured into a CUDA graph and replayed on new inputs.

use swiglu_kernel::kernel_core::cudarc::driver::CudaContext;
use swiglu_kernel::kernel_core::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use swiglu_kernel::kernel_core::half::bf16;
use swiglu_kernel::{
    DType, Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, Options, Plan, Preactivations, Problem, Weights,
    WeightsMut,
};

use crate::support::{gpu, noise};

#[test]
fn a_step_replays() {
    if gpu().is_none() {
        return;
    }
    // A context of its own: the primary one is shared with the other tests, which rely on its events.
    let context = CudaContext::new_non_primary(0, 0).expect("a context");
    // SAFETY: all work is on one stream.
    unsafe { context.disable_event_tracking() };
    let gpu = Gpu::from_stream(context.new_stream().expect("a stream")).expect("its gpu");
    // The last one's dx is made with the gate's derivative beside it.
    for [rows, k, n] in [[40, 72, 136], [300, 72, 136], [8400, 512, 136]] {
        let mut plan = Plan::new(&gpu, Problem::new(rows, k, n, DType::Bf16), Options::default()).expect("a plan");
        let mut x = gpu.upload(&noise::<bf16>(rows * k, 1, 1.0)).expect("x");
        let w = gpu.upload(&noise::<bf16>(2 * k * n, 2, 0.2)).expect("w");
        let dz = gpu.upload(&noise::<bf16>(rows * n, 3, 1.0)).expect("dz");
        let mut z = gpu.alloc::<bf16>(rows * n).expect("z");
        let mut saved = gpu.alloc::<bf16>(rows * 2 * n).expect("saved");
        let (mut dx, mut dw) = (gpu.alloc::<bf16>(rows * k).expect("dx"), gpu.alloc::<f32>(2 * k * n).expect("dw"));
        let mut graph = None;
        // Once as usual: the driver may load a kernel's code when it first runs, and a capture is no time for that.
        for capture in [false, true] {
            let inputs = Inputs {
                x: MatrixView::new("x", &x, [rows, k]).expect("a view"),
                weights: Weights::Joined(MatrixView::new("w", &w, [k, 2 * n]).expect("a view")),
                bias: None,
            };
            let dz = MatrixView::new("dz", &dz, [rows, n]).expect("a view");
            let mut z = MatrixViewMut::new("z", &mut z, [rows, n]).expect("a view");
            let mut saved = MatrixViewMut::new("saved", &mut saved, [rows, 2 * n]).expect("a view");
            let dw = MatrixViewMut::new("dw", &mut dw, [k, 2 * n]).expect("a view");
            let mut gradients = Gradients {
                dx: Some(MatrixViewMut::new("dx", &mut dx, [rows, k]).expect("a view")),
                d_weights: Some(WeightsMut::Joined(dw)),
                d_bias: None,
                accumulate: false,
            };
            if capture {
                let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
                gpu.stream().begin_capture(mode).expect("a capture");
            }
            plan.forward(&inputs, &mut z, Some(&mut saved)).expect("forward");
            plan.backward(&inputs, &dz, Preactivations::InPlace(&mut saved), &mut gradients).expect("backward");
            if capture {
                graph = gpu.stream().end_capture(CUgraphInstantiate_flags(0)).expect("a graph");
            } else {
                gpu.synchronize().expect("the end");
            }
        }
        let graph = graph.expect("a graph");
        let first = [gpu.download(&z).expect("z"), gpu.download(&dx).expect("dx")];
        let first_dw = gpu.download(&dw).expect("dw");
        gpu.stream().memcpy_htod(&noise::<bf16>(rows * k, 9, 1.0), &mut x).expect("x");
        graph.launch().expect("a replay");
        assert!(gpu.download(&z).expect("z") != first[0], "{rows} rows: another x must give another z");
        gpu.stream().memcpy_htod(&noise::<bf16>(rows * k, 1, 1.0), &mut x).expect("x");
        graph.launch().expect("a replay");
        let again = [gpu.download(&z).expect("z"), gpu.download(&dx).expect("dx")];
        assert!(again == first && gpu.download(&dw).expect("dw") == first_dw, "{rows} rows: the replay differs");
    }
}
