//! A product and a launch captured into a CUDA graph and replayed on new inputs.

use kernel_core::cudarc::driver::DevicePtr;
use kernel_core::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use kernel_core::{DType, Error, GemmPlan, GemmSpec, LaunchConfig, Layout, MatrixSpec, ScalarArg, Workspace};

use crate::programs::{BASIC, basic_defines};
use crate::support::{gpu_without_events, noise, skip};

const SIZE: usize = 64;

#[test]
fn a_product_and_a_launch_replay() {
    let Some(gpu) = gpu_without_events() else { return };
    let spec = GemmSpec {
        m: SIZE,
        n: SIZE,
        k: SIZE,
        a: MatrixSpec::new(DType::F32, SIZE),
        b: MatrixSpec::transposed(DType::F32, SIZE),
        c: MatrixSpec::new(DType::F32, SIZE),
    };
    let made =
        GemmPlan::new(&gpu, spec, 1 << 20).and_then(|plan| Ok((plan, gpu.kernel(&BASIC, "affine", &basic_defines())?)));
    let (plan, kernel) = match made {
        Ok(made) => made,
        Err(error @ Error::MissingLibrary { .. }) => return skip(&error.to_string()),
        Err(error) => panic!("{error}"),
    };
    let len = SIZE * SIZE;
    let mut layout = Layout::new();
    let (product, scratch) = (layout.take_elements::<f32>(len), layout.take(plan.workspace_bytes()));
    let workspace = Workspace::new(&gpu, &layout).unwrap();
    let mut input = gpu.upload(&noise(len, 1)).unwrap();
    let output = gpu.alloc::<f32>(len).unwrap();
    let (input_ptr, output_ptr) = (input.device_ptr(gpu.stream()).0, output.device_ptr(gpu.stream()).0);
    // output = (X · Xᵀ) · 2 · 1 + 0 + 0.5
    let step = || {
        let config = LaunchConfig::linear(len.div_ceil(256) as u32, 256);
        let scale = ScalarArg { device: 0, host: 2.0 };
        let product = workspace.ptr(product);
        // SAFETY: all memory outlives the graph, and holds SIZE × SIZE floats.
        unsafe {
            plan.run(gpu.stream(), 1.0, input_ptr, input_ptr, 0.0, product, workspace.ptr(scratch)).unwrap();
            kernel
                .launch(gpu.stream(), &config, &[&output_ptr, &product, &(len as i64), &scale, &0i32, &1u32])
                .unwrap();
        }
    };
    // The driver may load a kernel's code when it first runs; a capture is no time for that.
    step();
    gpu.synchronize().unwrap();

    // Only this thread's calls are held to the rules of capture: other tests run beside it.
    gpu.stream().begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    step();
    let graph = gpu.stream().end_capture(CUgraphInstantiate_flags(0)).unwrap().expect("a graph");

    for seed in 2..5 {
        let host = noise(len, seed);
        gpu.stream().memcpy_htod(&host, &mut input).unwrap();
        graph.launch().unwrap();
        let found = gpu.download(&output).unwrap();
        for i in 0..SIZE {
            for j in 0..SIZE {
                let sum: f64 = (0..SIZE).map(|l| f64::from(host[i * SIZE + l]) * f64::from(host[j * SIZE + l])).sum();
                let expected = sum * 2.0 + 0.5;
                let found = f64::from(found[i * SIZE + j]);
                assert!((found - expected).abs() < 1e-4, "({i}, {j}): {found} against {expected}");
            }
        }
    }
}
