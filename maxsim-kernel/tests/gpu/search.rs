//! Searches of corpora that are scored in several runs, against the scores of reference-cpu.

use maxsim_kernel::kernel_core::half::f16;
use maxsim_kernel::kernel_core::{self, Element};
use maxsim_kernel::{
    BackwardRoute, Gpu, MatrixView, Options, Plan, Problem, Ranking, Spans, TopK, cpu, workspace_bytes,
};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::HostMatrix;

use crate::support::gpu;

/// Tokens of a document, and elements of each, that are more than the 128 MB of a run.
const LARGE: usize = 258_000;
const LARGE_DIM: usize = 264;

/// Small integers: every score is exact, and many are equal.
fn tokens<T: Element>(elements: usize) -> Vec<T> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(elements as u64);
    (0..elements).map(|_| T::from_f32(rng.random_range(-2i32..=2) as f32)).collect()
}

fn ranked<T: cpu::Element>(problem: &Problem, queries: &[T], docs: &[T], k: usize) -> Ranking {
    let plan = cpu::Plan::new(problem.clone()).unwrap();
    let inputs = cpu::Inputs {
        queries: HostMatrix::new("queries", queries, problem.queries.rows(), problem.dim).unwrap(),
        docs: HostMatrix::new("docs", docs, problem.docs.rows(), problem.dim).unwrap(),
        query_mask: None,
        doc_mask: None,
    };
    let mut scores = vec![0.0; problem.scores()];
    plan.forward(&inputs, &mut scores, None).unwrap();
    Ranking::of_scores(&scores, problem.docs.count(), k).unwrap()
}

/// From the device, twice from the host, and from the device again: the memory that the runs share is in no state that matters.
fn run<T: cpu::Element>(gpu: &Gpu, queries: Spans, docs: Spans, dim: usize, k: usize) -> TopK {
    let problem = Problem::cross(queries, docs, dim, <T as Element>::DTYPE);
    let (query_tokens, corpus) = (tokens::<T>(problem.queries.rows() * dim), tokens::<T>(problem.docs.rows() * dim));
    let expected = ranked(&problem, &query_tokens, &corpus, k);
    let options = Options::default();
    let mut top = TopK::new(gpu, &problem, k, options).unwrap();
    assert!(top.runs() > 1, "one run");
    let held = top.workspace_bytes();
    assert_eq!(held, TopK::required_bytes(gpu, &problem, k, &options).unwrap());
    let (device_queries, device_corpus) = (gpu.upload(&query_tokens).unwrap(), gpu.upload(&corpus).unwrap());
    let view = MatrixView::new("queries", &device_queries, [problem.queries.rows(), dim]).unwrap();
    for (pass, host) in [false, true, true, false].into_iter().enumerate() {
        let found = match host {
            true => top.search_host(&view, &corpus).unwrap(),
            false => top.search(&view, &device_corpus.as_view()).unwrap(),
        };
        assert!(found == expected, "pass {pass} of {problem:?}");
        let buffers = top.workspace_bytes() - held;
        let most = 2 * (128 << 20).max(LARGE * dim * size_of::<T>() * usize::from(dim == LARGE_DIM));
        assert!(if pass == 0 { buffers == 0 } else { (1..=most).contains(&buffers) }, "pass {pass}: {buffers}");
    }
    let other = gpu.upload(&[0f32; 8]).unwrap();
    let wrong = MatrixView::new("queries", &other, [1, 8]).unwrap();
    if <T as Element>::DTYPE != kernel_core::DType::F32 {
        let error = top.search_host(&wrong, &vec![0f32; corpus.len()]).unwrap_err().to_string();
        assert!(error.contains("queries and corpus") && error.contains("f32"), "{error}");
    }
    top
}

#[test]
fn runs_share_one_workspace() {
    let Some(gpu) = gpu() else { return };
    // Padded rows, streamed, of three even runs; without sharing, 300 MB would be held.
    let top = run::<f16>(&gpu, Spans::padded(1, 3), Spans::padded(17_001, 139), 63, 10);
    let copy_of_a_run = (128 << 20) * 64 / 63;
    assert!(top.workspace_bytes() < 2 * (128 << 20) + copy_of_a_run + (2 << 20), "{}", top.workspace_bytes());
    // Ragged, tiles of several queries.
    let lengths = (0..9000).map(|i| if i == 4000 { 260_000 } else { i * 37 % 90 });
    run::<f16>(&gpu, Spans::padded(9, 7), Spans::of_lengths(lengths), 130, 100);
    // A document that is larger than a run, and one run without a token.
    let lengths = (0..300).map(|i| if i == 100 { LARGE } else { i * 37 % 90 });
    run::<f16>(&gpu, Spans::padded(2, 7), Spans::of_lengths(lengths), LARGE_DIM, 100);
    run::<f16>(&gpu, Spans::padded(2048, 1), Spans::of_lengths((0..20_000).map(|i| usize::from(i < 9000))), 5, 10);
    // f32, few tokens, many queries: runs by the scores that they hold.
    run::<f32>(&gpu, Spans::padded(2048, 1), Spans::padded(9000, 1), 5, 1024);
}

#[test]
fn memory_is_what_was_said() {
    let Some(gpu) = gpu() else { return };
    let padded = Problem::cross(Spans::padded(3, 20), Spans::padded(500, 30), 100, kernel_core::DType::F16);
    let ragged = Problem { docs: Spans::of_lengths((0..500).map(|i| i % 60)), ..padded.clone() }.with_masks(true, true);
    let list = Problem::list(Spans::padded(3, 200), Spans::padded(9, 30), vec![(0, 1), (2, 8)], 64, padded.dtype);
    for problem in [padded, ragged, list] {
        for backward in [BackwardRoute::LowMemory, BackwardRoute::Unified, BackwardRoute::None] {
            let options = Options { backward, ..Options::default() };
            let plan = Plan::new(&gpu, problem.clone(), options).unwrap();
            assert_eq!(plan.workspace_bytes(), workspace_bytes(&gpu, &problem, &options).unwrap(), "{problem:?}");
        }
    }
}
