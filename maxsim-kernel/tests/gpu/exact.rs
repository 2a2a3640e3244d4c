//! Scores, choices and gradients against reference-cpu.

use maxsim_kernel::kernel_core::half::{bf16, f16};
use maxsim_kernel::{BackwardRoute, Gpu, Inputs, MatrixView, Options, Pairing, Plan, Route, Spans, VectorViewMut};

use crate::case::{Case, Data, Number, Numbers, assert_same, run_exact, run_near, to};
use crate::support::gpu;

pub(crate) const ROUTES: [Route; 2] = [Route::Auto, Route::Portable];

/// One case of each layout.
pub(crate) fn layouts() -> Vec<Case> {
    let case = |queries, docs, pairing| Case { queries, docs, pairing, dim: 32, ..Case::default() };
    vec![
        case(Spans::padded(7, 32), Spans::padded(5, 45), Pairing::Cross),
        case(Spans::padded(3, 150), Spans::padded(4, 300), Pairing::Cross),
        case(Spans::padded(1, 20), Spans::padded(70, 33), Pairing::Cross),
        case(
            Spans::of_lengths([5, 0, 64, 70, 1, 13, 13, 13]),
            Spans::of_lengths([0, 17, 300, 1, 64, 129]),
            Pairing::Cross,
        ),
        case(Spans::padded(200, 1), Spans::of_lengths((0..40).map(|i| i * 37 % 90)), Pairing::Cross),
        case(Spans::padded(4, 32), Spans::padded(12, 50), Pairing::Candidates { per_query: 3 }),
        case(
            Spans::of_lengths([3, 200, 0]),
            Spans::of_lengths([1, 2, 300, 4, 0, 6]),
            Pairing::Candidates { per_query: 2 },
        ),
        case(Spans::padded(9, 70), Spans::padded(9, 80), Pairing::Pairs),
        case(
            Spans::of_lengths([3, 40, 65]),
            Spans::of_lengths([10, 0, 200, 5]),
            Pairing::List(vec![(2, 3), (0, 0), (0, 2), (2, 2), (1, 1), (2, 3), (0, 2)].into()),
        ),
    ]
}

/// Small integers: every sum is exact, so scores and choices, ties included, must be the reference's bits.
#[test]
fn scores_choices_and_gradients_are_exact_on_small_integers() {
    let Some(gpu) = gpu() else { return };
    for case in layouts() {
        for masks in [(false, false), (true, false), (false, true), (true, true)] {
            for route in ROUTES {
                for backward in [BackwardRoute::LowMemory, BackwardRoute::Unified] {
                    let case = Case { masks, options: Options { route, backward }, ..case.clone() };
                    run_exact::<f32>(&gpu, &case);
                    run_exact::<f16>(&gpu, &case);
                    run_exact::<bf16>(&gpu, &case);
                }
            }
        }
    }
}

#[test]
fn every_dimension_class_is_exact() {
    let Some(gpu) = gpu() else { return };
    for dim in [8, 9, 15, 48, 64, 96, 100, 127, 128, 129, 136, 200, 256, 300, 512, 768, 1000, 1024] {
        for route in ROUTES {
            let options = Options { route, ..Options::default() };
            let (queries, docs) = (Spans::padded(5, 33), Spans::of_lengths([200, 3, 77]));
            let case = Case { queries, docs, dim, options, masks: (false, true), ..Case::default() };
            run_exact::<f32>(&gpu, &case);
            run_exact::<bf16>(&gpu, &case);
        }
    }
}

#[test]
fn normalised_scores_and_gradients_are_near_the_reference() {
    let Some(gpu) = gpu() else { return };
    for case in layouts() {
        for (route, normalize) in
            [(Route::Auto, true), (Route::Portable, true), (Route::Auto, false), (Route::Portable, false)]
        {
            for backward in [BackwardRoute::LowMemory, BackwardRoute::Unified] {
                let options = Options { route, backward };
                let case = Case { normalize, options, masks: (true, true), dim: 72, ..case.clone() };
                run_near::<f32>(&gpu, &case);
                run_near::<f16>(&gpu, &case);
                run_near::<bf16>(&gpu, &case);
            }
        }
    }
}

/// Few query rows, which many documents' tokens are streamed past: runs that begin and end anywhere in a document, documents of many runs, empty ones,
/// documents that are cut between blocks, and one for each warp.
#[test]
fn documents_streamed_past_few_query_rows_are_exact() {
    let Some(gpu) = gpu() else { return };
    let ragged = || Spans::of_lengths((0..700).map(|i| if i % 50 < 3 { 0 } else { i * 37 % 91 }));
    let long = |i| match i {
        5 => 20_000,
        700 => 9_000,
        _ => i % 3,
    };
    // The last document costs as much as many blocks' shares: blocks behind it have none.
    let long_at_last = || Spans::of_lengths((0..600).map(|i| if i == 599 { 20_000 } else { 1 }));
    let cases = [
        (Spans::padded(1, 32), long_at_last(), 64),
        (Spans::padded(1, 32), ragged(), 48),
        (Spans::padded(3, 20), ragged(), 96),
        (Spans::padded(64, 1), ragged(), 8),
        (Spans::of_lengths([0, 5, 0, 50, 1]), ragged(), 100),
        (Spans::padded(2, 17), Spans::padded(3000, 1), 128),
        (Spans::padded(1, 32), Spans::padded(4100, 23), 48),
        (Spans::padded(2, 30), Spans::padded(950, 31), 128),
        (Spans::padded(1, 9), Spans::padded(659, 9), 112),
        (Spans::padded(1, 64), Spans::padded(600, 77), 128),
        (Spans::padded(1, 33), Spans::padded(540, 150), 64),
        (Spans::padded(1, 5), Spans::of_lengths((0..1000).map(long)), 16),
        (Spans::padded(1, 7), Spans::of_lengths((0..2000).map(|i| if i / 500 % 2 == 1 { 0 } else { i % 4 })), 24),
        // Wide rows.
        (Spans::padded(1, 3), long_at_last(), 136),
        (Spans::padded(3, 5), ragged(), 256),
        (Spans::of_lengths([0, 2, 0, 7, 1]), ragged(), 200),
        (Spans::padded(64, 1), Spans::padded(900, 1), 192),
        (Spans::padded(2, 2), Spans::padded(659, 77), 320),
        (Spans::padded(1, 5), Spans::padded(540, 150), 264),
        (Spans::padded(1, 40), Spans::padded(530, 3), 1024),
        (Spans::padded(1, 2), Spans::of_lengths((0..1000).map(long)), 132),
    ];
    for (queries, docs, dim) in cases {
        for numbers in [Numbers::Integers, Numbers::Ones] {
            let case = Case { queries: queries.clone(), docs: docs.clone(), dim, numbers, ..Case::default() };
            run_exact::<bf16>(&gpu, &case);
        }
        run_exact::<f16>(&gpu, &Case { queries, docs, dim, ..Case::default() });
    }
}

/// Rows of queries and of documents with so many elements of NaN behind each.
fn run_with_gaps<T: Number>(gpu: &Gpu, route: Route, gaps: [usize; 2], queries: &Spans, docs: &Spans) {
    let (dim, options) = (64, Options { route, ..Options::default() });
    let case = Case { queries: queries.clone(), docs: docs.clone(), dim, options, ..Case::default() };
    let data = Data::<T>::new(&case);
    let expected = data.on_host();
    let strides = gaps.map(|gap| dim + gap);
    let spread = |tokens: &[T], gap: usize| {
        let rows = tokens.chunks(dim).flat_map(|row| row.iter().copied().chain(vec![to(f32::NAN); gap]));
        gpu.upload(&rows.collect::<Vec<_>>()).unwrap()
    };
    let (queries, docs) = (spread(&data.queries, gaps[0]), spread(&data.docs, gaps[1]));
    let mut plan = Plan::new(gpu, data.problem.clone(), options).unwrap();
    let inputs = Inputs {
        queries: MatrixView::with_row_stride("queries", &queries, [data.problem.queries.rows(), dim], strides[0])
            .unwrap(),
        docs: MatrixView::with_row_stride("docs", &docs, [data.problem.docs.rows(), dim], strides[1]).unwrap(),
        query_mask: None,
        doc_mask: None,
    };
    let mut scores = gpu.upload(&vec![f32::NAN; data.problem.scores()]).unwrap();
    let mut choices = gpu.upload(&vec![-7i32; data.problem.argmaxes()]).unwrap();
    let mut scores_view = VectorViewMut::new("scores", &mut scores, [data.problem.scores()]).unwrap();
    let mut argmax = VectorViewMut::new("argmax", &mut choices, [data.problem.argmaxes()]).unwrap();
    plan.forward(&inputs, &mut scores_view, Some(&mut argmax)).unwrap();
    assert_same("scores", &gpu.download(&scores).unwrap(), &expected.scores, &case);
    assert_same("argmax", &gpu.download(&choices).unwrap(), &expected.argmax, &case);
}

/// Rows that begin anywhere: the same choices and, small integers being exact, the same scores as from aligned ones.
#[test]
fn rows_of_any_alignment_score_alike() {
    let Some(gpu) = gpu() else { return };
    for queries in [Spans::padded(1, 20), Spans::padded(5, 33), Spans::padded(2, 150)] {
        // The last: dense documents are streamed past query rows with gaps.
        for (route, gaps) in [(Route::Portable, [1, 1]), (Route::Auto, [8, 8]), (Route::Auto, [8, 0])] {
            run_with_gaps::<bf16>(&gpu, route, gaps, &queries, &Spans::of_lengths([70, 0, 300, 9]));
            run_with_gaps::<f16>(&gpu, route, gaps, &queries, &Spans::padded(600, 5));
        }
    }
}

/// More queries than a block of the launch can keep: it takes over others again and again, some of them short, some documents empty.
#[test]
fn queries_are_taken_over_one_after_another() {
    let Some(gpu) = gpu() else { return };
    for dim in [40, 128, 252, 512, 1024] {
        let queries = Spans::of_lengths((0..300).map(|i| i * 7 % 90));
        let docs = Spans::of_lengths((0..600).map(|i| i * 11 % 45));
        let pairs: Vec<_> = (0..900).map(|i| (i * 7 % 300, i * 11 % 600)).collect();
        for pairing in [Pairing::Candidates { per_query: 2 }, Pairing::List(pairs.into())] {
            let case = Case { queries: queries.clone(), docs: docs.clone(), pairing, dim, ..Case::default() };
            run_exact::<bf16>(&gpu, &case);
        }
        let (queries, docs) = (Spans::padded(150, 200), Spans::of_lengths([3, 0, 200]));
        run_exact::<bf16>(&gpu, &Case { queries, docs, dim, ..Case::default() });
    }
}

/// Every length that a document's last tile can have, in a ragged batch and alone, in tiles of each width.
#[test]
fn documents_of_every_length_are_exact() {
    let Some(gpu) = gpu() else { return };
    for (queries, dim) in [(5, 64), (5, 128), (1, 128), (5, 136)].map(|(count, dim)| (Spans::padded(count, 32), dim)) {
        for longest in [64, 96, 310] {
            let (docs, numbers) = (Spans::of_lengths(0..=longest), Numbers::Ones);
            run_exact::<bf16>(&gpu, &Case { queries: queries.clone(), docs: docs.clone(), dim, ..Case::default() });
            run_exact::<bf16>(&gpu, &Case { queries: queries.clone(), docs, dim, numbers, ..Case::default() });
        }
    }
    for length in 1..=160 {
        let (queries, docs) = (Spans::padded(5, 32), Spans::padded(3, length));
        run_exact::<bf16>(&gpu, &Case { queries, docs, dim: 128, ..Case::default() });
    }
    let (queries, docs) = (Spans::padded(5, 32), Spans::of_lengths(0..=310));
    let case = Case { queries, docs, dim: 128, normalize: true, numbers: Numbers::Normal, ..Case::default() };
    run_near::<bf16>(&gpu, &case);
}

/// Sides without a single token: scores and gradients of exactly 0, choices of -1.
#[test]
fn sides_without_tokens_score_zero() {
    let Some(gpu) = gpu() else { return };
    let (empty, texts) = (Spans::of_lengths([0, 0, 0]), Spans::padded(3, 20));
    for (queries, docs) in
        [(&empty, &texts), (&texts, &empty), (&empty, &empty), (&Spans::padded(3, 0), &Spans::padded(3, 0))]
    {
        for pairing in [Pairing::Cross, Pairing::Pairs, Pairing::List(vec![(0, 2), (1, 1)].into())] {
            for route in ROUTES {
                for backward in [BackwardRoute::LowMemory, BackwardRoute::Unified] {
                    let options = Options { route, backward };
                    for (dim, masks) in [(32, (false, false)), (30, (true, true))] {
                        let (queries, docs, pairing) = (queries.clone(), docs.clone(), pairing.clone());
                        let case = Case { queries, docs, pairing, dim, masks, options, ..Case::default() };
                        run_exact::<f32>(&gpu, &case);
                        run_exact::<bf16>(&gpu, &case);
                    }
                }
            }
        }
    }
}

/// Many query tokens for few document tokens: long lists, lists that do not fit at once, cut sums.
#[test]
fn crowded_documents_and_long_texts_are_exact() {
    let Some(gpu) = gpu() else { return };
    let cases = [
        (Spans::padded(200, 32), Spans::of_lengths([3, 500, 70]), 64),
        (Spans::padded(2, 5000), Spans::of_lengths([3, 500, 70]), 128),
        (Spans::padded(3, 40), Spans::padded(300, 20), 40),
        (Spans::padded(2, 7), Spans::of_lengths([32768, 20000]), 16),
    ];
    for (queries, docs, dim) in cases {
        for numbers in [Numbers::Integers, Numbers::Ones] {
            let case = Case { queries: queries.clone(), docs: docs.clone(), dim, numbers, ..Case::default() };
            run_exact::<bf16>(&gpu, &case);
            run_exact::<f32>(&gpu, &case);
        }
    }
}

/// Most bests lie beyond token 65,536: in a batch, of one query (streamed, and with masks not), of d above 128.
#[test]
fn choices_far_into_a_document_are_exact() {
    let Some(gpu) = gpu() else { return };
    let sizes = [(5, 30, 32), (1, 20, 48), (1, 20, 136), (1, 70, 136)];
    for (queries, dim) in sizes.map(|(count, length, dim)| (Spans::padded(count, length), dim)) {
        for masks in [(false, false), (false, true)] {
            let docs = Spans::of_lengths([5, 140_000]);
            run_exact::<bf16>(&gpu, &Case { queries: queries.clone(), docs, dim, masks, ..Case::default() });
        }
    }
    for (queries, dim) in [(Spans::padded(2, 40), 64), (Spans::padded(1, 20), 136)] {
        let docs = Spans::of_lengths([5, 70_000]);
        let case = Case {
            queries,
            docs,
            dim,
            normalize: true,
            masks: (false, true),
            numbers: Numbers::Normal,
            ..Case::default()
        };
        run_near::<bf16>(&gpu, &case);
    }
}
