//! The best documents of each query, against a ranking of all scores.

use maxsim_kernel::kernel_core::half::{bf16, f16};
use maxsim_kernel::{Gpu, MatrixView, Options, Ranking, Route, Spans, TopK, cpu};
use reference_cpu::HostMatrix;

use crate::case::{Case, Data, Number, Numbers, assert_same, to};
use crate::support::gpu;

fn search<T: Number>(gpu: &Gpu, case: &Case, k: usize) {
    let mut data = Data::<T>::new(case);
    let Case { dim, options, .. } = *case;
    // A document that scores NaN comes last.
    let row = data.problem.docs.span(data.problem.docs.count() / 2).start.min(data.problem.docs.rows() - 1);
    data.docs[row * dim] = to(f32::NAN);
    let plan = cpu::Plan::new(data.problem.clone()).unwrap();
    let inputs = cpu::Inputs {
        queries: HostMatrix::new("queries", &data.queries, data.problem.queries.rows(), dim).unwrap(),
        docs: HostMatrix::new("docs", &data.docs, data.problem.docs.rows(), dim).unwrap(),
        query_mask: None,
        doc_mask: None,
    };
    let mut scores = vec![0.0; data.problem.scores()];
    plan.forward(&inputs, &mut scores, None).unwrap();
    let docs = data.problem.docs.count();
    let expected = Ranking::of_scores(&scores, docs, k).unwrap();

    let mut top = TopK::new(gpu, &data.problem, k, options).unwrap();
    let (tokens, corpus) = (gpu.upload(&data.queries).unwrap(), gpu.upload(&data.docs).unwrap());
    let view = MatrixView::new("queries", &tokens, [data.problem.queries.rows(), dim]).unwrap();
    let found = [top.search(&view, &corpus.as_view()).unwrap(), top.search_host(&view, &data.docs).unwrap()];
    for found in found {
        assert_eq!(found.per_query, expected.per_query);
        if !case.normalize {
            assert_same("ranked documents", &found.docs, &expected.docs, case);
            let text = |scores: &[f32]| scores.iter().map(f32::to_string).collect::<Vec<_>>();
            assert_same("ranked scores", &text(&found.scores), &text(&expected.scores), case);
            continue;
        }
        // Rounded: nearly equal scores may change places, and each document's score is its own.
        for (i, (doc, score)) in found.docs.iter().zip(&found.scores).enumerate() {
            let query = i / found.per_query;
            let near =
                |other: f32| (score - other).abs() <= 1e-5 * other.abs().max(1.0) || (score.is_nan() && other.is_nan());
            assert!(near(expected.scores[i]) && near(scores[query * docs + *doc as usize]), "place {i} in {case:?}");
            let before = &found.docs[query * found.per_query..i];
            assert!(!before.contains(doc), "document {doc} twice in {case:?}");
        }
    }
}

fn case(queries: usize, docs: Spans, dim: usize) -> Case {
    Case { queries: Spans::padded(queries, 6), docs, dim, ..Case::default() }
}

/// Ties, NaN scores, empty documents, more wanted than there are, several runs, and the same corpus from host memory.
#[test]
fn ranks_as_the_scores_do() {
    let Some(gpu) = gpu() else { return };
    search::<f16>(&gpu, &case(3, Spans::of_lengths((0..900).map(|i| i % 7)), 64), 10);
    search::<f16>(&gpu, &case(1, Spans::padded(5000, 4), 64), 1024);
    search::<f16>(&gpu, &case(2, Spans::of_lengths([0, 3, 0, 1, 0, 0]), 64), 50);
    // 300 MB of documents: more than one run.
    search::<f16>(&gpu, &case(2, Spans::padded(18_000, 130), 64), 25);
    // More than are kept is no mistake where there are no more.
    search::<f16>(&gpu, &case(1, Spans::padded(9, 4), 64), 1025);
    let many = Data::<f16>::new(&case(1, Spans::padded(1025, 4), 64));
    let error = TopK::new(&gpu, &many.problem, 1025, Options::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("1024"), "{error}");
}

/// Every dtype and route, odd d, normalised.
#[test]
fn every_dtype_route_and_dimension() {
    let Some(gpu) = gpu() else { return };
    for route in [Route::Auto, Route::Portable] {
        for (dim, normalize) in [(64, false), (63, false), (128, true), (127, true), (136, false)] {
            let numbers = if normalize { Numbers::Normal } else { Numbers::Integers };
            for docs in [Spans::of_lengths((0..900).map(|i| i % 7)), Spans::padded(700, 9)] {
                let options = Options { route, ..Options::default() };
                let case = Case { normalize, options, numbers, ..case(3, docs, dim) };
                search::<f32>(&gpu, &case, 20);
                search::<f16>(&gpu, &case, 20);
                search::<bf16>(&gpu, &case, 20);
            }
        }
    }
}

/// Three documents more than a run holds, in two even runs; and one document larger than a run.
#[test]
fn few_more_than_a_run() {
    let Some(gpu) = gpu() else { return };
    // Rows of 254 and 256 bytes, 128 MiB a run.
    for dim in [128, 127] {
        let a_run = (128 << 20) / (2 * dim) / 2000;
        let case = case(2, Spans::padded(a_run + 3, 2000), dim);
        search::<bf16>(&gpu, &case, 30);
    }
    let long = |i| if i == 2 { 140_000 } else { 100 };
    search::<bf16>(&gpu, &case(1, Spans::of_lengths((0..6).map(long)), 512), 6);
}
