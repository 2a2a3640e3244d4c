//! Calls captured into a graph give the bits of calls that are made, on whatever the memory holds at replay.

use maxsim_kernel::kernel_core::cudarc::driver::CudaGraph;
use maxsim_kernel::kernel_core::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use maxsim_kernel::kernel_core::half::{bf16, f16};
use maxsim_kernel::{BackwardRoute, Gpu, Options, Pairing, Plan, Result, Spans};

use crate::case::{Case, Data, Device, Number, to};
use crate::exact::ROUTES;
use crate::support::gpu_without_events;

fn cases() -> Vec<Case> {
    let case = |queries, docs, pairing, dim, masks| Case { queries, docs, pairing, dim, masks, ..Case::default() };
    let pairs: Vec<_> = (0..40).map(|i| (i * 7 % 4, i * 5 % 6)).collect();
    vec![
        case(Spans::padded(7, 32), Spans::padded(5, 150), Pairing::Cross, 64, (true, true)),
        case(
            Spans::of_lengths([5, 64, 0, 70]),
            Spans::of_lengths([17, 300, 0, 64, 129, 9]),
            Pairing::List(pairs.into()),
            128,
            (false, true),
        ),
        // Streamed past few query rows, and rows that are copied to where they are aligned.
        case(
            Spans::padded(1, 32),
            Spans::of_lengths((0..700).map(|i| i * 37 % 91)),
            Pairing::Cross,
            128,
            (false, false),
        ),
        case(Spans::padded(5, 40), Spans::padded(6, 70), Pairing::Cross, 70, (false, false)),
        Case { normalize: true, ..case(Spans::padded(5, 40), Spans::padded(6, 70), Pairing::Cross, 136, (true, true)) },
    ]
}

fn capture(gpu: &Gpu, queue: impl FnOnce() -> Result<()>) -> CudaGraph {
    gpu.synchronize().unwrap();
    gpu.stream().begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let queued = queue();
    let graph = gpu.stream().end_capture(CUgraphInstantiate_flags(0)).unwrap();
    queued.unwrap();
    graph.expect("a graph")
}

/// The same case's data of another seed, with a NaN in the first document token that counts if wanted.
fn data<T: Number>(case: &Case, seed: u64, nan: bool) -> Data<T> {
    let mut data = Data::<T>::new(&Case { seed, ..case.clone() });
    if nan {
        let row = data.doc_mask.as_ref().map_or(0, |mask| mask.iter().position(|keep| *keep).unwrap());
        data.docs[row * case.dim + 3] = to(f32::NAN);
    }
    data
}

fn graphs<T: Number>() {
    let Some(gpu) = gpu_without_events() else { return };
    for (case, route) in cases().iter().flat_map(|case| ROUTES.map(|route| (case.clone(), route))) {
        for backward in [BackwardRoute::LowMemory, BackwardRoute::Unified] {
            // Atomic additions come in any order, which only sums of integers do not show.
            if backward == BackwardRoute::Unified && case.normalize {
                continue;
            }
            let options = Options { route, backward };
            let inputs = [(17, false), (19, false), (23, true)].map(|(seed, nan)| data::<T>(&case, seed, nan));
            let mut plan = Plan::new(&gpu, inputs[0].problem.clone(), options).unwrap();
            let eager = inputs.clone().map(|data| {
                let mut device = Device::new(&gpu, &data);
                device.forward(&mut plan, true).unwrap();
                device.backward(&mut plan).unwrap();
                device.results(&gpu)
            });
            assert!(eager[2].scores.iter().any(|score| score.is_nan()));
            // Outside of the captures first: the driver loads code when it first runs, and the plan meets this memory.
            let mut device = Device::new(&gpu, &inputs[0]);
            device.forward(&mut plan, true).unwrap();
            device.forward(&mut plan, false).unwrap();
            device.backward(&mut plan).unwrap();
            let step = capture(&gpu, || {
                device.forward(&mut plan, true)?;
                device.backward(&mut plan)
            });
            let scores = capture(&gpu, || device.forward(&mut plan, false));
            let mut other = Device::new(&gpu, &inputs[2]);
            // Input of the replay, and whether a call on NaN, with the same plan, comes before it.
            for (turn, (i, between)) in
                [(0, false), (1, false), (2, false), (0, false), (2, true), (1, true), (2, false), (0, true)]
                    .into_iter()
                    .enumerate()
            {
                if between {
                    other.poison(&gpu);
                    other.forward(&mut plan, true).unwrap();
                    other.backward(&mut plan).unwrap();
                    assert!(other.results(&gpu).bits() == eager[2].bits(), "a call between, turn {turn} of {case:?}");
                }
                device.load(&gpu, &inputs[i]);
                device.poison(&gpu);
                scores.launch().unwrap();
                let alone = gpu.download(&device.scores).unwrap();
                assert!(crate::case::bits(&alone) == eager[i].bits().0, "scores alone, turn {turn} of {case:?}");
                device.poison(&gpu);
                step.launch().unwrap();
                let (found, expected) = (device.results(&gpu), &eager[i]);
                let same = [
                    found.bits().0 == expected.bits().0,
                    found.argmax == expected.argmax,
                    found.bits().2 == expected.bits().2,
                    found.bits().3 == expected.bits().3,
                ];
                assert_eq!(
                    same, [true; 4],
                    "scores, argmax, d_queries, d_docs of turn {turn}, input {i}, of {case:?}, {options:?}"
                );
            }
        }
    }
}

#[test]
fn graphs_f32() {
    graphs::<f32>();
}

#[test]
fn graphs_f16() {
    graphs::<f16>();
}

#[test]
fn graphs_bf16() {
    graphs::<bf16>();
}
