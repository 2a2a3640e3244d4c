//! Random problems, run on the GPU and by reference-cpu.

#![allow(unreachable_pub)]

use maxsim_kernel::kernel_core;
use maxsim_kernel::kernel_core::half;
use maxsim_kernel::{
    Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, Options, Pairing, Plan, Problem, Ranking, Route, Spans, TopK,
    VectorView, VectorViewMut, cpu,
};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::{HostMatrix, HostMatrixMut};

pub trait Number: kernel_core::Element + reference_cpu::Element {}
impl<T: kernel_core::Element + reference_cpu::Element> Number for T {}

fn to<T: Number>(x: f32) -> T {
    <T as kernel_core::Element>::from_f32(x)
}
fn from<T: Number>(x: T) -> f32 {
    kernel_core::Element::to_f32(x)
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Numbers {
    /// -2 to 2.
    Integers,
    /// All tokens alike: everything ties.
    Ones,
    Normal,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub queries: Spans,
    pub docs: Spans,
    pub pairing: Pairing,
    pub dim: usize,
    pub normalize: bool,
    pub masks: (bool, bool),
    pub options: Options,
    pub numbers: Numbers,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            queries: Spans::padded(1, 1),
            docs: Spans::padded(1, 1),
            pairing: Pairing::Cross,
            dim: 8,
            normalize: false,
            masks: (false, false),
            options: Options::default(),
            numbers: Numbers::Integers,
        }
    }
}

pub(crate) fn gpu() -> Option<Gpu> {
    match Gpu::new(0) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("KERNELS_REQUIRE_GPU").is_none(), "a GPU was required: {error}");
            eprintln!("SKIPPED, nothing was checked: {error}");
            None
        }
    }
}

/// Host data of a case.
struct Data<T> {
    problem: Problem,
    queries: Vec<T>,
    docs: Vec<T>,
    query_mask: Option<Vec<bool>>,
    doc_mask: Option<Vec<bool>>,
    d_scores: Vec<f32>,
}

struct Results<T> {
    scores: Vec<f32>,
    argmax: Vec<i32>,
    d_queries: Vec<T>,
    d_docs: Vec<T>,
}

impl<T: Number> Data<T> {
    fn new(case: &Case) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7 + case.dim as u64);
        let problem = Problem::new(
            case.queries.clone(),
            case.docs.clone(),
            case.dim,
            <T as kernel_core::Element>::DTYPE,
            case.pairing.clone(),
        )
        .with_normalize(case.normalize)
        .with_masks(case.masks.0, case.masks.1);
        let mut number = || match case.numbers {
            Numbers::Integers => rng.random_range(-2i32..=2) as f32,
            Numbers::Ones => 1.0,
            Numbers::Normal => rng.random_range(-1.0f32..1.0) + rng.random_range(-1.0f32..1.0),
        };
        let mut fill = |rows: usize| (0..rows * case.dim).map(|_| to::<T>(number())).collect::<Vec<T>>();
        let (mut queries, mut docs) = (fill(problem.queries.rows()), fill(problem.docs.rows()));
        // What a masked token holds must not matter.
        let mut mask = |wanted: bool, spans: &Spans, rows: &mut [T]| {
            wanted.then(|| {
                let mut mask: Vec<bool> = (0..spans.rows()).map(|_| rng.random_range(0..3) != 0).collect();
                for text in (0..spans.count()).step_by(5) {
                    let keep_some = text % 10 != 0;
                    let span = spans.span(text);
                    let half = span.start + span.len() / 2;
                    mask[half..span.end].fill(false);
                    mask[span.start..half].fill(keep_some);
                }
                for (row, _) in mask.iter().enumerate().filter(|(_, keep)| !**keep) {
                    rows[row * case.dim..][..case.dim].fill(to(if row % 2 == 0 { f32::NAN } else { f32::INFINITY }));
                }
                mask
            })
        };
        let query_mask = mask(case.masks.0, &problem.queries, &mut queries);
        let doc_mask = mask(case.masks.1, &problem.docs, &mut docs);
        let d_scores = (0..problem.scores()).map(|_| rng.random_range(-2i32..=2) as f32).collect();
        Self { problem, queries, docs, query_mask, doc_mask, d_scores }
    }

    fn on_host(&self) -> Results<T> {
        let Problem { queries, docs, dim, .. } = &self.problem;
        let plan = cpu::Plan::new(self.problem.clone()).unwrap();
        let inputs = cpu::Inputs {
            queries: HostMatrix::new("queries", &self.queries, queries.rows(), *dim).unwrap(),
            docs: HostMatrix::new("docs", &self.docs, docs.rows(), *dim).unwrap(),
            query_mask: self.query_mask.as_deref(),
            doc_mask: self.doc_mask.as_deref(),
        };
        let mut results = Results {
            scores: vec![f32::NAN; self.problem.scores()],
            argmax: vec![-7; self.problem.argmaxes()],
            d_queries: vec![to(f32::NAN); self.queries.len()],
            d_docs: vec![to(f32::NAN); self.docs.len()],
        };
        plan.forward(&inputs, &mut results.scores, Some(&mut results.argmax)).unwrap();
        let mut d_queries = HostMatrixMut::new("d_queries", &mut results.d_queries, queries.rows(), *dim).unwrap();
        let mut d_docs = HostMatrixMut::new("d_docs", &mut results.d_docs, docs.rows(), *dim).unwrap();
        plan.backward(&inputs, &self.d_scores, &results.argmax, Some(&mut d_queries), Some(&mut d_docs)).unwrap();
        results
    }

    /// `argmax`: used for the gradients instead of the GPU's own.
    fn on_gpu(&self, gpu: &Gpu, options: Options, argmax: Option<&[i32]>) -> Results<T> {
        let Problem { queries: query_spans, docs: doc_spans, dim, .. } = &self.problem;
        let mut plan = Plan::new(gpu, self.problem.clone(), options).unwrap();
        let poison = vec![to::<T>(f32::NAN); *dim];
        // What stands in for the tokens of a side that has none.
        let tokens = |tokens: &[T]| gpu.upload(if tokens.is_empty() { &poison } else { tokens }).unwrap();
        let (queries, docs) = (tokens(&self.queries), tokens(&self.docs));
        let bytes = |mask: &Option<Vec<bool>>| {
            mask.as_ref().map(|mask| {
                let mut bytes: Vec<_> = mask.iter().map(|keep| u8::from(*keep)).collect();
                bytes.resize(bytes.len().max(1), 1);
                gpu.upload(&bytes).unwrap()
            })
        };
        let (query_mask, doc_mask) = (bytes(&self.query_mask), bytes(&self.doc_mask));
        let mask_view = |mask| VectorView::new("mask", mask, [cudarc::driver::DeviceSlice::len(mask)]).unwrap();
        let inputs = Inputs {
            queries: MatrixView::new("queries", &queries, [query_spans.matrix_rows(), *dim]).unwrap(),
            docs: MatrixView::new("docs", &docs, [doc_spans.matrix_rows(), *dim]).unwrap(),
            query_mask: query_mask.as_ref().map(mask_view),
            doc_mask: doc_mask.as_ref().map(mask_view),
        };
        let mut scores = gpu.upload(&vec![f32::NAN; self.problem.scores()]).unwrap();
        let mut alone = gpu.upload(&vec![f32::NAN; self.problem.scores()]).unwrap();
        let argmaxes = self.problem.argmaxes().max(1);
        let mut choices = gpu.upload(&vec![-7i32; argmaxes]).unwrap();
        let count = [self.problem.scores()];
        let view = |scores| VectorViewMut::new("scores", scores, count).unwrap();
        plan.forward(&inputs, &mut view(&mut alone), None).unwrap();
        let mut argmax_view = VectorViewMut::new("argmax", &mut choices, [argmaxes]).unwrap();
        plan.forward(&inputs, &mut view(&mut scores), Some(&mut argmax_view)).unwrap();
        let bits = |scores: &[f32]| scores.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let scores = gpu.download(&scores).unwrap();
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let alone = gpu.download(&alone).unwrap();
        assert!(
            scores.iter().zip(&alone).all(same),
            "with and without argmax differ: {:?}",
            (bits(&scores), bits(&alone))
        );
        let mut found = gpu.download(&choices).unwrap();
        found.truncate(self.problem.argmaxes());
        if let Some(argmax) = argmax.filter(|argmax| !argmax.is_empty()) {
            choices = gpu.upload(argmax).unwrap();
        }
        let d_scores = gpu.upload(&self.d_scores).unwrap();
        let mut gradients = Vec::new();
        for _ in 0..2 {
            let mut d_queries = gpu.upload(&vec![to::<T>(f32::NAN); query_spans.matrix_rows() * dim]).unwrap();
            let mut d_docs = gpu.upload(&vec![to::<T>(f32::NAN); doc_spans.matrix_rows() * dim]).unwrap();
            let mut outputs = Gradients {
                d_queries: Some(
                    MatrixViewMut::new("d_queries", &mut d_queries, [query_spans.matrix_rows(), *dim]).unwrap(),
                ),
                d_docs: Some(MatrixViewMut::new("d_docs", &mut d_docs, [doc_spans.matrix_rows(), *dim]).unwrap()),
            };
            let d_scores = VectorView::new("d_scores", &d_scores, count).unwrap();
            let argmax = VectorView::new("argmax", &choices, [argmaxes]).unwrap();
            plan.backward(&inputs, &d_scores, &argmax, &mut outputs).unwrap();
            let (mut d_queries, mut d_docs) = (gpu.download(&d_queries).unwrap(), gpu.download(&d_docs).unwrap());
            d_queries.truncate(self.queries.len());
            d_docs.truncate(self.docs.len());
            gradients.push((d_queries, d_docs));
        }
        if plan.backward_route() == maxsim_kernel::BackwardRoute::LowMemory {
            let bits = |values: &[T]| values.iter().map(|x| from(*x).to_bits()).collect::<Vec<_>>();
            assert!(bits(&gradients[0].0) == bits(&gradients[1].0), "d_queries: other bits on a second run");
            assert!(bits(&gradients[0].1) == bits(&gradients[1].1), "d_docs: other bits on a second run");
        }
        let (d_queries, d_docs) = gradients.remove(0);
        Results { scores, argmax: found, d_queries, d_docs }
    }
}

fn assert_same<A: PartialEq + std::fmt::Debug>(what: &str, found: &[A], expected: &[A], case: &Case) {
    assert_eq!(found.len(), expected.len(), "{what} of {case:?}");
    let wrong: Vec<usize> = (0..found.len()).filter(|&i| found[i] != expected[i]).collect();
    if let Some(&i) = wrong.first() {
        panic!(
            "{what}[{i}]: found {:?}, expected {:?}; {} of {} wrong in {case:?}",
            found[i],
            expected[i],
            wrong.len(),
            found.len()
        );
    }
}

pub(crate) fn run_exact<T: Number>(gpu: &Gpu, case: &Case) {
    let data = Data::<T>::new(case);
    let (found, expected) = (data.on_gpu(gpu, case.options, None), data.on_host());
    let case = &Case { dim: case.dim, ..case.clone() };
    let dtype = <T as kernel_core::Element>::DTYPE;
    assert_same(&format!("{dtype} scores"), &found.scores, &expected.scores, case);
    assert_same(&format!("{dtype} argmax"), &found.argmax, &expected.argmax, case);
    let wide = |values: &[T]| values.iter().map(|x| from(*x)).collect::<Vec<_>>();
    assert_same(&format!("{dtype} d_queries"), &wide(&found.d_queries), &wide(&expected.d_queries), case);
    assert_same(&format!("{dtype} d_docs"), &wide(&found.d_docs), &wide(&expected.d_docs), case);
}

/// Relative to the largest.
fn assert_near(what: &str, found: &[f32], expected: &[f32], bound: f32, case: &Case) {
    let largest = expected.iter().fold(1e-30f32, |a, b| a.max(b.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / largest;
        assert!(error <= bound, "{what}[{i}]: found {found}, expected {expected}, off by {error:e} in {case:?}");
    }
}

pub(crate) fn run_near<T: Number>(gpu: &Gpu, case: &Case) {
    let case = &Case { numbers: Numbers::Normal, ..case.clone() };
    let data = Data::<T>::new(case);
    let expected = data.on_host();
    let found = data.on_gpu(gpu, case.options, Some(&expected.argmax));
    let unit = match <T as kernel_core::Element>::DTYPE {
        kernel_core::DType::F32 => 2e-6,
        kernel_core::DType::F16 => 1e-3,
        kernel_core::DType::Bf16 => 8e-3,
    };
    assert_near("scores", &found.scores, &expected.scores, 2e-6, case);
    let wide = |values: &[T]| values.iter().map(|x| from(*x)).collect::<Vec<_>>();
    assert_near("d_queries", &wide(&found.d_queries), &wide(&expected.d_queries), unit, case);
    assert_near("d_docs", &wide(&found.d_docs), &wide(&expected.d_docs), unit, case);
    let differ = found.argmax.iter().zip(&expected.argmax).filter(|(a, b)| a != b).count();
    assert!(differ * 200 <= found.argmax.len() + 200, "{differ} of {} choices differ in {case:?}", found.argmax.len());
}

/// One bad element in a document and in a query that count, and in masked ones.
pub(crate) fn run_not_finite<T: Number>(gpu: &Gpu, route: Route, value: f32) {
    for (queries, masked, normalize) in [(6, true, false), (6, true, true), (3, false, false), (3, false, true)] {
        let case = Case {
            queries: Spans::padded(queries, 20),
            docs: Spans::padded(if masked { 9 } else { 600 }, 170),
            dim: 64,
            masks: (masked, masked),
            normalize,
            options: Options { route, ..Options::default() },
            ..Case::default()
        };
        let mut data = Data::<T>::new(&case);
        let kept = |mask: &Option<Vec<bool>>, from: usize| {
            mask.as_ref().map_or(from, |mask| (from..mask.len()).find(|&row| mask[row]).unwrap())
        };
        let (query_row, doc_row) = (kept(&data.query_mask, 2 * 20), kept(&data.doc_mask, 3 * 170 + 5));
        data.queries[query_row * 64 + 3] = to(value);
        data.docs[doc_row * 64 + 9] = to(value);
        let expected = data.on_host();
        let found = data.on_gpu(gpu, case.options, Some(&expected.argmax));
        for (i, (found, expected)) in found.scores.iter().zip(&expected.scores).enumerate() {
            let same = found == expected || (found.is_nan() && expected.is_nan());
            let near = normalize && (found - expected).abs() < 1e-4;
            assert!(same || near, "score {i}: found {found}, expected {expected} for {value} in {case:?}");
        }
        assert!(expected.scores.iter().any(|score| !score.is_finite()));
        if !normalize {
            assert_same("argmax", &found.argmax, &expected.argmax, &case);
        }
    }
}

/// Rows of queries and of documents with so many elements of NaN behind each.
pub(crate) fn run_with_gaps<T: Number>(gpu: &Gpu, route: Route, gaps: [usize; 2], queries: &Spans, docs: &Spans) {
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

pub fn run_top_k(gpu: &Gpu, queries: usize, docs: Spans, k: usize) {
    let case = Case { queries: Spans::padded(queries, 6), docs, dim: 64, ..Case::default() };
    let mut data = Data::<half::f16>::new(&case);
    // A document that scores NaN comes last.
    let row = data.problem.docs.span(data.problem.docs.count() / 2).start.min(data.problem.docs.rows() - 1);
    data.docs[row * case.dim] = half::f16::NAN;
    let plan = cpu::Plan::new(data.problem.clone()).unwrap();
    let inputs = cpu::Inputs {
        queries: HostMatrix::new("queries", &data.queries, data.problem.queries.rows(), case.dim).unwrap(),
        docs: HostMatrix::new("docs", &data.docs, data.problem.docs.rows(), case.dim).unwrap(),
        query_mask: None,
        doc_mask: None,
    };
    let mut scores = vec![0.0; data.problem.scores()];
    plan.forward(&inputs, &mut scores, None).unwrap();
    let expected = Ranking::of_scores(&scores, data.problem.docs.count(), k);

    let mut top = TopK::new(gpu, &data.problem, k, Options::default()).unwrap();
    let (tokens, corpus) = (gpu.upload(&data.queries).unwrap(), gpu.upload(&data.docs).unwrap());
    let view = MatrixView::new("queries", &tokens, [data.problem.queries.rows(), case.dim]).unwrap();
    let found = [top.search(&view, &corpus.as_view()).unwrap(), top.search_host(&view, &data.docs).unwrap()];
    for found in found {
        assert_eq!(found.per_query, expected.per_query);
        assert_same("ranked documents", &found.docs, &expected.docs, &case);
        let text = |scores: &[f32]| scores.iter().map(f32::to_string).collect::<Vec<_>>();
        assert_same("ranked scores", &text(&found.scores), &text(&expected.scores), &case);
    }
    let error = TopK::new(gpu, &data.problem, 1025, Options::default()).unwrap_err().to_string();
    assert!(error.contains("1024"), "{error}");
}
