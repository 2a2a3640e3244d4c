//! Compiling, loading and launching kernels.

use kernel_core::{Error, Gpu, Kernel, LaunchConfig, Scalar, ScalarArg, TensorView, TensorViewMut};

use crate::programs::{BASIC, basic_defines};
use crate::support::{gpu, hopper, noise, skip};

/// A kernel of [`BASIC`], or a printed reason.
fn kernel(gpu: &Gpu, entry: &str) -> Option<Kernel> {
    match gpu.kernel(&BASIC, entry, &basic_defines()) {
        Ok(kernel) => Some(kernel),
        Err(error @ Error::MissingLibrary { .. }) => {
            skip(&format!("no NVRTC ({error})"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Runs `affine` over `len` elements and checks it.
fn affine(gpu: &Gpu, kernel: &Kernel, len: usize, scale: &Scalar<'_>, scale_value: f32) {
    let host = noise(len, len as u64);
    let input = gpu.upload(&host).unwrap();
    let mut output = gpu.alloc::<f32>(len).unwrap();
    {
        let input = TensorView::new("in", &input, [len]).unwrap();
        let mut output = TensorViewMut::new("out", &mut output, [len]).unwrap();
        let (in_ptr, _in_guard) = input.device_ptr(gpu.stream());
        let (out_ptr, _out_guard) = output.device_ptr(gpu.stream());
        let (scale_arg, _scale_guard) = scale.to_arg(gpu.stream());
        let config = LaunchConfig::linear(len.div_ceil(256) as u32, 256);
        // SAFETY: the arguments are those of `affine`; it writes `len` floats to the output and reads as many.
        unsafe {
            kernel
                .launch(gpu.stream(), &config, &[&out_ptr, &in_ptr, &(len as i64), &scale_arg, &-3i32, &2u32])
                .unwrap();
        }
    }
    let expected: Vec<f32> = host.iter().map(|x| x * scale_value * 2.0 - 3.0 + 0.5).collect();
    for (found, expected) in gpu.download(&output).unwrap().iter().zip(expected) {
        assert!((found - expected).abs() <= 2e-6, "{found} against {expected}");
    }
}

#[test]
fn a_kernel_takes_its_arguments_in_order() {
    let Some(gpu) = gpu() else { return };
    let Some(kernel) = kernel(&gpu, "affine") else { return };
    assert_eq!(kernel.entry(), "affine");
    assert!(kernel.attributes().registers > 0);
    affine(&gpu, &kernel, 1000, &Scalar::Host(1.5), 1.5);
    let scale = gpu.upload(&[-0.25f32]).unwrap();
    affine(&gpu, &kernel, 1001, &Scalar::device("scale", &scale).unwrap(), -0.25);
}

#[test]
fn threads_and_streams_share_a_kernel() {
    let Some(gpu) = gpu() else { return };
    let Some(kernel) = kernel(&gpu, "affine") else { return };
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (gpu, kernel) = (gpu.fork().unwrap(), kernel.clone());
            scope.spawn(move || {
                let again = gpu.kernel(&BASIC, "affine", &basic_defines()).unwrap();
                assert_eq!(again.function().cu_function(), kernel.function().cu_function(), "loaded once");
                for round in 0..8 {
                    affine(&gpu, &again, 5000 + thread * 100 + round, &Scalar::Host(0.5), 0.5);
                }
            });
        }
    });
}

#[test]
fn memory_written_on_one_stream_is_read_on_another() {
    let Some(gpu) = gpu() else { return };
    let Some(kernel) = kernel(&gpu, "slow_producer") else { return };
    let Some(consumer) = self::kernel(&gpu, "consumer") else { return };
    let other = gpu.fork().unwrap();
    let mut data = gpu.alloc::<u32>(256).unwrap();
    let mut out = other.alloc::<u32>(256).unwrap();
    for round in 1..=4u32 {
        {
            let mut data = TensorViewMut::new("data", &mut data, [256]).unwrap();
            let (pointer, _guard) = data.device_ptr(gpu.stream());
            // SAFETY: 256 threads write one element each.
            unsafe { kernel.launch(gpu.stream(), &LaunchConfig::linear(2, 128), &[&pointer, &round]).unwrap() };
        }
        {
            let data = TensorView::new("data", &data, [256]).unwrap();
            let mut out = TensorViewMut::new("out", &mut out, [256]).unwrap();
            let (from, _from_guard) = data.device_ptr(other.stream());
            let (to, _to_guard) = out.device_ptr(other.stream());
            // SAFETY: 256 threads read and write one element each.
            unsafe { consumer.launch(other.stream(), &LaunchConfig::linear(2, 128), &[&to, &from]).unwrap() };
        }
        assert_eq!(other.download(&out).unwrap(), vec![round + 1; 256]);
    }
}

#[test]
fn large_shared_memory_is_opted_in_to() {
    let Some(gpu) = gpu() else { return };
    let Some(kernel) = kernel(&gpu, "through_shared") else { return };
    let most = gpu.info().shared_bytes_optin as u32 - kernel.attributes().shared_bytes;
    let mut out = gpu.alloc::<u32>(4).unwrap();
    for bytes in [1024, most / 4 * 4, 64 * 1024] {
        let words = bytes / 4;
        {
            let mut out = TensorViewMut::new("out", &mut out, [4]).unwrap();
            let (pointer, _guard) = out.device_ptr(gpu.stream());
            let config = LaunchConfig::linear(4, 128).with_shared(bytes);
            // SAFETY: four blocks write one element each, and use the shared memory that they were given.
            unsafe { kernel.launch(gpu.stream(), &config, &[&pointer, &words]).unwrap() };
        }
        let expected: Vec<u32> = (0..4).map(|block| block * words + words - 1).collect();
        assert_eq!(gpu.download(&out).unwrap(), expected);
        assert!(kernel.max_active_blocks(128, bytes).unwrap() >= 1);
    }
    let config = LaunchConfig::linear(1, 128).with_shared(most + 1);
    // SAFETY: refused before anything is launched.
    let error = unsafe { kernel.launch(gpu.stream(), &config, &[&0u64, &0u32]) }.unwrap_err();
    assert!(matches!(error, Error::UnsupportedDevice { .. }), "{error}");
    assert!(error.to_string().contains(&most.to_string()), "{error}");
}

#[test]
fn clusters_have_the_size_that_was_asked_for() {
    let Some(gpu) = hopper() else { return };
    let Some(kernel) = kernel(&gpu, "cluster_rank") else { return };
    let mut out = gpu.alloc::<u32>(16).unwrap();
    for size in [1u32, 2, 4, 8] {
        let config = LaunchConfig::linear(16, 32).with_cluster([size, 1, 1]);
        assert!(kernel.max_active_clusters(&config).unwrap() >= 1);
        {
            let mut out = TensorViewMut::new("out", &mut out, [16]).unwrap();
            let (pointer, _guard) = out.device_ptr(gpu.stream());
            // SAFETY: sixteen blocks write one element each.
            unsafe { kernel.launch(gpu.stream(), &config, &[&pointer]).unwrap() };
        }
        let expected: Vec<u32> = (0..16).map(|block| size * 100 + block % size).collect();
        assert_eq!(gpu.download(&out).unwrap(), expected);
    }
}

#[test]
fn a_dependent_launch_waits_for_what_it_reads() {
    let Some(gpu) = hopper() else { return };
    let (Some(producer), Some(consumer)) = (kernel(&gpu, "slow_producer"), kernel(&gpu, "consumer")) else { return };
    let mut data = gpu.alloc::<u32>(256).unwrap();
    let mut out = gpu.alloc::<u32>(256).unwrap();
    for round in 1..=4u32 {
        {
            let mut data = TensorViewMut::new("data", &mut data, [256]).unwrap();
            let mut out = TensorViewMut::new("out", &mut out, [256]).unwrap();
            let (from, _from_guard) = data.device_ptr(gpu.stream());
            let (to, _to_guard) = out.device_ptr(gpu.stream());
            let plain = LaunchConfig::linear(2, 128);
            let overlapped = plain.with_programmatic(true).with_cluster([2, 1, 1]);
            // SAFETY: both kernels touch 256 elements; the second waits for the first before it reads.
            unsafe {
                producer.launch(gpu.stream(), &plain, &[&from, &round]).unwrap();
                consumer.launch(gpu.stream(), &overlapped, &[&to, &from]).unwrap();
            }
        }
        assert_eq!(gpu.download(&out).unwrap(), vec![round + 1; 256]);
    }
}

#[test]
fn unknown_kernels_and_foreign_streams_are_errors() {
    let Some(gpu) = gpu() else { return };
    let Some(kernel) = kernel(&gpu, "affine") else { return };
    let error = gpu.kernel(&BASIC, "no_such_kernel", &basic_defines()).unwrap_err();
    assert!(error.to_string().contains("no_such_kernel"), "{error}");
    assert!(matches!(gpu.kernel(&BASIC, "a\0b", &basic_defines()), Err(Error::Unsupported { .. })));
    // OFFSET is not defined: the compiler's message reaches the error.
    match gpu.kernel(&BASIC, "affine", &[]) {
        Err(Error::Compile { log, .. }) => assert!(log.contains("OFFSET"), "{log}"),
        other => panic!("expected a compile error, got {other:?}"),
    }

    let context = kernel_core::cudarc::driver::CudaContext::new_non_primary(0, 0).unwrap();
    let stream = context.new_stream().unwrap();
    let scale = ScalarArg { device: 0, host: 1.0 };
    // SAFETY: refused before anything is launched.
    let error =
        unsafe { kernel.launch(&stream, &LaunchConfig::linear(1, 32), &[&0u64, &0u64, &0i64, &scale, &0i32, &0u32]) }
            .unwrap_err();
    assert!(matches!(error, Error::WrongDevice { what: "stream", .. }), "{error}");
}
