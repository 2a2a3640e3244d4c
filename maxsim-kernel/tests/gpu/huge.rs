//! More than 2³¹ elements: of the documents, and of the choices. Some seconds and 20 GB of device memory, so only when asked for: `-- --ignored`.
//!
//! Texts repeat with a period, so what belongs to texts far out must equal what belongs to those at the beginning, which reference-cpu computes.

use cudarc::driver::CudaSlice;
use maxsim_kernel::kernel_core::half::bf16;
use maxsim_kernel::{
    BackwardRoute, DType, Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, Options, Plan, Problem, Route, Spans,
    VectorViewMut, argmax_offset,
};

use crate::case::{Case, Data, to, vector};
use crate::support::{gpu, has_memory};

/// `times` copies of what `period` holds, made on the device.
fn repeated(gpu: &Gpu, period: &[bf16], times: usize) -> CudaSlice<bf16> {
    let mut all = gpu.alloc::<bf16>(period.len() * times).unwrap();
    gpu.stream().memcpy_htod(period, &mut all.slice_mut(..period.len())).unwrap();
    let mut filled = period.len();
    while filled < all.len() {
        let (from, mut to) = all.split_at_mut(filled);
        let more = from.len().min(to.len());
        gpu.stream().memcpy_dtod(&from.slice(..more), &mut to.slice_mut(..more)).unwrap();
        filled += more;
    }
    all
}

/// In whole numbers, as f32 data and as what the device is given.
fn period(queries: Spans, docs: Spans, dim: usize) -> (Data<f32>, [Vec<bf16>; 2]) {
    let data = Data::<f32>::new(&Case { queries, docs, dim, ..Case::default() });
    let narrow = |of: &[f32]| of.iter().map(|x| to::<bf16>(*x)).collect();
    let both = [narrow(&data.queries), narrow(&data.docs)];
    (data, both)
}

#[test]
#[ignore = "5 GB of documents"]
fn documents_beyond_two_to_the_31_elements() {
    const DIM: usize = 128;
    const LENGTH: usize = 1000;
    const PERIOD: usize = 300;
    const TIMES: usize = 56;
    // The period divides no power of two, so that an offset that wraps finds other tokens.
    const { assert!(PERIOD * TIMES * LENGTH * DIM > 1 << 31) };
    let Some(gpu) = gpu() else { return };
    if !has_memory(&gpu, 12 << 30) {
        return;
    }
    for queries in [Spans::padded(1, 20), Spans::padded(5, 32)] {
        let (data, [q, d]) = period(queries.clone(), Spans::padded(PERIOD, LENGTH), DIM);
        let expected = data.on_host();
        let (on_device, docs) = (gpu.upload(&q).unwrap(), repeated(&gpu, &d, TIMES));
        let count = PERIOD * TIMES;
        let problem = Problem::cross(queries, Spans::padded(count, LENGTH), DIM, DType::Bf16);
        let inputs = Inputs {
            queries: MatrixView::new("queries", &on_device, [problem.queries.rows(), DIM]).unwrap(),
            docs: MatrixView::new("docs", &docs, [count * LENGTH, DIM]).unwrap(),
            query_mask: None,
            doc_mask: None,
        };
        let mut d_docs = gpu.alloc::<bf16>(count * LENGTH * DIM).unwrap();
        for route in [Route::Auto, Route::Portable] {
            let mut plan = Plan::new(&gpu, problem.clone(), Options { route, ..Options::default() }).unwrap();
            let mut scores = gpu.upload(&vec![f32::NAN; problem.scores()]).unwrap();
            let mut argmax = gpu.upload(&vec![-7; problem.argmaxes()]).unwrap();
            plan.forward(
                &inputs,
                &mut VectorViewMut::new("scores", &mut scores, [problem.scores()]).unwrap(),
                Some(&mut VectorViewMut::new("argmax", &mut argmax, [problem.argmaxes()]).unwrap()),
            )
            .unwrap();
            let (found, choices) = (gpu.download(&scores).unwrap(), gpu.download(&argmax).unwrap());
            for (slot, score) in found.iter().enumerate() {
                let same = slot / count * PERIOD + slot % count % PERIOD;
                assert_eq!(*score, expected.scores[same], "score {slot}, {route}");
                let entries = |problem: &Problem, slot| {
                    argmax_offset(problem, slot)..argmax_offset(problem, slot) + problem.queries.longest()
                };
                let (at, of) = (entries(&problem, slot), entries(&data.problem, same));
                assert!(choices[at] == expected.argmax[of], "choices of score {slot}, {route}");
            }
            // Each document's gradient is its own queries'.
            let d_scores: Vec<f32> = (0..problem.scores())
                .map(|slot| data.d_scores[slot / count * PERIOD + slot % count % PERIOD])
                .collect();
            let d_scores = gpu.upload(&d_scores).unwrap();
            gpu.stream().memset_zeros(&mut d_docs).unwrap();
            let mut gradients = Gradients {
                d_queries: None,
                d_docs: Some(MatrixViewMut::new("d_docs", &mut d_docs, [count * LENGTH, DIM]).unwrap()),
            };
            plan.backward(&inputs, &vector("d_scores", &d_scores), &vector("argmax", &argmax), &mut gradients).unwrap();
            let a_period = PERIOD * LENGTH * DIM;
            let of_period: Vec<bf16> = expected.d_docs.iter().map(|x| to(*x)).collect();
            for time in [0, TIMES / 2, TIMES - 2, TIMES - 1] {
                let found = gpu.stream().clone_dtoh(&d_docs.slice(time * a_period..(time + 1) * a_period)).unwrap();
                assert!(found == of_period, "gradient of documents from {} on, {route}", time * PERIOD);
            }
        }
    }
}

#[test]
#[ignore = "9 GB of choices"]
fn choices_beyond_two_to_the_31() {
    const DIM: usize = 16;
    const LENGTHS: [usize; 2] = [32, 4];
    const PERIODS: [usize; 2] = [41, 37];
    const TIMES: [usize; 2] = [100, 447];
    const COUNTS: [usize; 2] = [PERIODS[0] * TIMES[0], PERIODS[1] * TIMES[1]];
    const { assert!(COUNTS[0] * LENGTHS[0] * COUNTS[1] > 1 << 31) };
    let Some(gpu) = gpu() else { return };
    if !has_memory(&gpu, 20 << 30) {
        return;
    }
    let (data, [q, d]) = period(Spans::padded(PERIODS[0], LENGTHS[0]), Spans::padded(PERIODS[1], LENGTHS[1]), DIM);
    let expected = data.on_host();
    let (queries, docs) = (repeated(&gpu, &q, TIMES[0]), repeated(&gpu, &d, TIMES[1]));
    let problem =
        Problem::cross(Spans::padded(COUNTS[0], LENGTHS[0]), Spans::padded(COUNTS[1], LENGTHS[1]), DIM, DType::Bf16);
    let shapes = [COUNTS[0] * LENGTHS[0], COUNTS[1] * LENGTHS[1]].map(|rows| [rows, DIM]);
    let inputs = Inputs {
        queries: MatrixView::new("queries", &queries, shapes[0]).unwrap(),
        docs: MatrixView::new("docs", &docs, shapes[1]).unwrap(),
        query_mask: None,
        doc_mask: None,
    };
    let (count, entries) = (problem.scores(), problem.argmaxes());
    let same = |slot: usize| slot / COUNTS[1] % PERIODS[0] * PERIODS[1] + slot % COUNTS[1] % PERIODS[1];
    let d_scores: Vec<f32> = (0..count).map(|slot| data.d_scores[same(slot)]).collect();
    let d_scores = gpu.upload(&d_scores).unwrap();
    let mut scores = gpu.alloc::<f32>(count).unwrap();
    let mut argmax = gpu.alloc::<i32>(entries).unwrap();
    let [mut d_queries, mut d_docs] = shapes.map(|[rows, _]| gpu.alloc::<bf16>(rows * DIM).unwrap());
    for (route, backward) in [(Route::Auto, BackwardRoute::LowMemory), (Route::Portable, BackwardRoute::Unified)] {
        let mut plan = Plan::new(&gpu, problem.clone(), Options { route, backward }).unwrap();
        gpu.stream().memset_zeros(&mut argmax).unwrap();
        plan.forward(
            &inputs,
            &mut VectorViewMut::new("scores", &mut scores, [count]).unwrap(),
            Some(&mut VectorViewMut::new("argmax", &mut argmax, [entries]).unwrap()),
        )
        .unwrap();
        for (slot, score) in gpu.download(&scores).unwrap().iter().enumerate() {
            assert_eq!(*score, expected.scores[same(slot)], "score {slot}, {route}");
        }
        // A thousand scores' choices from everywhere, the last ones among them.
        for slot in (0..1000).map(|i| i * (count / 1000)).chain(count - 20..count) {
            let (at, of) = (argmax_offset(&problem, slot), argmax_offset(&data.problem, same(slot)));
            let found = gpu.stream().clone_dtoh(&argmax.slice(at..at + LENGTHS[0])).unwrap();
            assert_eq!(found, expected.argmax[of..of + LENGTHS[0]], "choices of score {slot}, {route}");
        }
        let mut gradients = Gradients {
            d_queries: Some(MatrixViewMut::new("d_queries", &mut d_queries, shapes[0]).unwrap()),
            d_docs: Some(MatrixViewMut::new("d_docs", &mut d_docs, shapes[1]).unwrap()),
        };
        plan.backward(&inputs, &vector("d_scores", &d_scores), &vector("argmax", &argmax), &mut gradients).unwrap();
        // A query meets every document of a period so many times, and a document every query.
        let sums = [(&expected.d_queries, &d_queries, TIMES[1]), (&expected.d_docs, &d_docs, TIMES[0])];
        for (side, (of_period, found, times)) in sums.into_iter().enumerate() {
            let sums: Vec<bf16> = of_period.iter().map(|x| to(x * times as f32)).collect();
            for (i, found) in gpu.download(found).unwrap().iter().enumerate() {
                assert_eq!(*found, sums[i % sums.len()], "side {side}, element {i}, {backward}");
            }
        }
    }
}
