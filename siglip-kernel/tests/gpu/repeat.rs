//! The same bits on every run: call after call, plan after plan, replayed from a graph, and beside another thread.

use siglip_kernel::cpu::Element;
use siglip_kernel::kernel_core::cudarc::driver::CudaGraph;
use siglip_kernel::kernel_core::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use siglip_kernel::{Chunk, Gpu, Options, Plan, Positives, workspace_bytes};

use crate::case::{Case, Device, Host, Step, WIDE_TILES};
use crate::support::{gpu, gpu_without_events, per_dtype, rounded, routes};

/// Several blocks, edges everywhere.
fn case(route: siglip_kernel::Route) -> Case {
    let options = Options { route, chunk: Chunk::Rows(256) };
    Case { options, positives: Positives::Diagonal { offset: 9 }, ..Case::new(900, 1100, 104) }
}

fn plan<T: Element>(gpu: &Gpu, case: &Case) -> Plan {
    Plan::new(gpu, case.problem::<T>(), case.options).unwrap()
}

/// Both calls on fresh memory.
fn fresh<T: Element>(gpu: &Gpu, plan: &mut Plan, case: Case, host: &Host<T>) -> Step<T> {
    Device::new(gpu, case, host).run(gpu, plan, host).unwrap()
}

fn calls_and_plans<T: Element>() {
    let Some(gpu) = gpu() else { return };
    let [rows, cols] = WIDE_TILES;
    let wide = |route| Case { options: Options { route, chunk: Chunk::Auto }, rows, cols, ..case(route) };
    for (route, case) in routes::<T>(&gpu).iter().flat_map(|route| [(route, case(*route)), (route, wide(*route))]) {
        let host = Host::<T>::unit(&case, 3);
        let mut first = plan::<T>(&gpu, &case);
        let expected = fresh(&gpu, &mut first, case, &host).bits();
        // Allocations that stay, so that addresses differ from call to call.
        let mut kept = Vec::new();
        for call in 0..20 {
            let mut device = Device::new(&gpu, case, &host);
            assert_eq!(device.run(&gpu, &mut first, &host).unwrap().bits(), expected, "{route}, call {call}");
            kept.push(device);
        }
        let mut other = plan::<T>(&gpu, &case);
        assert_eq!(fresh(&gpu, &mut other, case, &host).bits(), expected, "{route}, another plan");
        let fork = gpu.fork().unwrap();
        let mut forked = plan::<T>(&fork, &case);
        assert_eq!(fresh(&fork, &mut forked, case, &host).bits(), expected, "{route}, another stream");
    }
}

/// One plan on two sets of memory in turn: what it keeps of the last call's addresses must not reach the next.
fn memory_in_turn<T: Element>() {
    let Some(gpu) = gpu() else { return };
    for route in routes::<T>(&gpu) {
        let case = case(*route);
        let hosts = [Host::<T>::unit(&case, 5), Host::<T>::unit(&case, 7)];
        let expected = [0, 1].map(|i| fresh(&gpu, &mut plan::<T>(&gpu, &case), case, &hosts[i]).bits());
        assert_ne!(expected[0], expected[1]);
        let mut shared = plan::<T>(&gpu, &case);
        let mut devices = [0, 1].map(|i| Device::new(&gpu, case, &hosts[i]));
        for turn in 0..6 {
            let i = turn % 2;
            let found = devices[i].run(&gpu, &mut shared, &hosts[i]).unwrap();
            assert_eq!(found.bits(), expected[i], "{route}, turn {turn}");
        }
    }
}

fn threads<T: Element>() {
    let Some(gpu) = gpu() else { return };
    for route in routes::<T>(&gpu) {
        let case = case(*route);
        std::thread::scope(|scope| {
            for seed in [11, 13] {
                let gpu = &gpu;
                scope.spawn(move || {
                    let host = Host::<T>::unit(&case, seed);
                    let gpu = gpu.fork().unwrap();
                    let mut plan = plan::<T>(&gpu, &case);
                    let expected = fresh(&gpu, &mut plan, case, &host).bits();
                    for call in 0..20 {
                        let found = fresh(&gpu, &mut plan, case, &host).bits();
                        assert_eq!(found, expected, "{route}, seed {seed}, call {call}");
                    }
                });
            }
        });
    }
}

/// What `queue` queues, as a graph.
fn capture(gpu: &Gpu, queue: impl FnOnce() -> siglip_kernel::Result<()>) -> CudaGraph {
    gpu.synchronize().unwrap();
    gpu.stream().begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let queued = queue();
    let graph = gpu.stream().end_capture(CUgraphInstantiate_flags(0)).unwrap();
    queued.unwrap();
    graph.expect("a graph")
}

/// A captured loss and a captured step give the bits of calls, on whatever the memory holds at replay.
fn graphs<T: Element>() {
    let Some(gpu) = gpu_without_events() else { return };
    for route in routes::<T>(&gpu) {
        let case = case(*route);
        let hosts = [Host::<T>::unit(&case, 17), Host::<T>::unit(&case, 19)];
        let mut plan = plan::<T>(&gpu, &case);
        let mut device = Device::new(&gpu, case, &hosts[0]);
        let eager = hosts.clone().map(|host| Device::new(&gpu, case, &host).run(&gpu, &mut plan, &host).unwrap());
        // Outside of the captures first: the driver loads code when it first runs, and the plan meets this memory.
        device.forward(&mut plan).unwrap();
        device.step(&mut plan).unwrap();
        let forward = capture(&gpu, || device.forward(&mut plan));
        let step = capture(&gpu, || device.step(&mut plan));

        for (host, eager) in hosts.iter().zip(&eager) {
            let stream = gpu.stream();
            stream.memcpy_htod(&host.img, &mut device.img).unwrap();
            stream.memcpy_htod(&host.txt, &mut device.txt).unwrap();
            for replay in 0..2 {
                stream.memcpy_htod(&vec![rounded::<T>(f32::NAN); host.img.len()], &mut device.d_img).unwrap();
                stream.memcpy_htod(&vec![rounded::<T>(f32::NAN); host.txt.len()], &mut device.d_txt).unwrap();
                for scalar in [&mut device.loss, &mut device.d_log_temp, &mut device.d_bias] {
                    stream.memcpy_htod(&[f32::NAN], scalar).unwrap();
                }
                forward.launch().unwrap();
                let loss = gpu.download(&device.loss).unwrap()[0];
                stream.memcpy_htod(&[f32::NAN], &mut device.loss).unwrap();
                step.launch().unwrap();
                let found = Step {
                    forward: loss,
                    loss: gpu.download(&device.loss).unwrap()[0],
                    d_img: gpu.download(&device.d_img).unwrap(),
                    d_txt: gpu.download(&device.d_txt).unwrap(),
                    d_log_temp: gpu.download(&device.d_log_temp).unwrap()[0],
                    d_bias: gpu.download(&device.d_bias).unwrap()[0],
                };
                assert_eq!(found.bits(), eager.bits(), "{route}, replay {replay}");
            }
        }
    }
}

fn workspace_is_what_was_announced<T: Element>() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols, dim) in [(1, 1, 8), (300, 517, 72), (5000, 20000, 65), (9000, 3, 7)] {
        for route in routes::<T>(&gpu) {
            for chunk in [Chunk::Auto, Chunk::Rows(1), Chunk::Rows(777)] {
                let case = Case { options: Options { route: *route, chunk }, ..Case::new(rows, cols, dim) };
                let announced = workspace_bytes(&gpu, &case.problem::<T>(), &case.options).unwrap();
                let plan = plan::<T>(&gpu, &case);
                assert_eq!(announced, plan.workspace_bytes(), "{case:?}");
                assert!(announced > 0 && !format!("{plan:?}").is_empty());
                assert_eq!(*plan.problem(), case.problem::<T>());
            }
        }
    }
}

per_dtype!(calls_and_plans, memory_in_turn, threads, graphs, workspace_is_what_was_announced);
