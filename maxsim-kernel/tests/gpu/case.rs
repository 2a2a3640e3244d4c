//! Random problems, run on the GPU and by reference-cpu.

use cudarc::driver::CudaSlice;
use maxsim_kernel::kernel_core;
use maxsim_kernel::{
    Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, Options, Pairing, Plan, Problem, Result, Spans, VectorView,
    VectorViewMut, cpu,
};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::{HostMatrix, HostMatrixMut};

pub(crate) trait Number: kernel_core::Element + reference_cpu::Element {}
impl<T: kernel_core::Element + reference_cpu::Element> Number for T {}

pub(crate) fn to<T: Number>(x: f32) -> T {
    <T as kernel_core::Element>::from_f32(x)
}
pub(crate) fn from<T: Number>(x: T) -> f32 {
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
    pub(crate) queries: Spans,
    pub(crate) docs: Spans,
    pub(crate) pairing: Pairing,
    pub(crate) dim: usize,
    pub(crate) normalize: bool,
    pub(crate) masks: (bool, bool),
    pub(crate) options: Options,
    pub(crate) numbers: Numbers,
    pub(crate) seed: u64,
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
            seed: 7,
        }
    }
}

/// Host data of a case.
#[derive(Clone)]
pub(crate) struct Data<T> {
    pub(crate) problem: Problem,
    pub(crate) queries: Vec<T>,
    pub(crate) docs: Vec<T>,
    pub(crate) query_mask: Option<Vec<bool>>,
    pub(crate) doc_mask: Option<Vec<bool>>,
    pub(crate) d_scores: Vec<f32>,
}

#[derive(Clone)]
pub(crate) struct Results<T> {
    pub(crate) scores: Vec<f32>,
    pub(crate) argmax: Vec<i32>,
    pub(crate) d_queries: Vec<T>,
    pub(crate) d_docs: Vec<T>,
}

/// The bits of numbers, any NaN alike.
pub(crate) fn bits<T: Number>(of: &[T]) -> Vec<u32> {
    of.iter().map(|x| from(*x)).map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}

impl<T: Number> Results<T> {
    pub(crate) fn bits(&self) -> (Vec<u32>, &[i32], Vec<u32>, Vec<u32>) {
        (bits(&self.scores), &self.argmax, bits(&self.d_queries), bits(&self.d_docs))
    }
}

impl<T: Number> Data<T> {
    pub(crate) fn new(case: &Case) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(case.seed + case.dim as u64);
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

    pub(crate) fn on_host(&self) -> Results<T> {
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
    pub(crate) fn on_gpu(&self, gpu: &Gpu, options: Options, argmax: Option<&[i32]>) -> Results<T> {
        let mut plan = Plan::new(gpu, self.problem.clone(), options).unwrap();
        let mut device = Device::new(gpu, self);
        device.forward(&mut plan, false).unwrap();
        let alone = gpu.download(&device.scores).unwrap();
        device.poison(gpu);
        device.forward(&mut plan, true).unwrap();
        let found = device.results(gpu);
        assert!(bits(&found.scores) == bits(&alone), "with and without argmax differ");
        if let Some(argmax) = argmax.filter(|argmax| !argmax.is_empty()) {
            device.argmax = gpu.upload(argmax).unwrap();
        }
        let mut gradients = [(); 2].map(|()| {
            device.poison_gradients(gpu);
            device.backward(&mut plan).unwrap();
            device.results(gpu)
        });
        if plan.backward_route() == maxsim_kernel::BackwardRoute::LowMemory {
            let [first, second] = [0, 1].map(|i| [&gradients[i].d_queries, &gradients[i].d_docs].map(|x| bits(x)));
            assert!(first[0] == second[0], "d_queries: other bits on a second run");
            assert!(first[1] == second[1], "d_docs: other bits on a second run");
        }
        let [first, _] = &mut gradients;
        let (d_queries, d_docs) = (std::mem::take(&mut first.d_queries), std::mem::take(&mut first.d_docs));
        Results { d_queries, d_docs, ..found }
    }
}

/// Inputs and outputs of a case on the device; the outputs poisoned until something writes them.
pub(crate) struct Device<T> {
    pub(crate) problem: Problem,
    pub(crate) queries: CudaSlice<T>,
    pub(crate) docs: CudaSlice<T>,
    pub(crate) query_mask: Option<CudaSlice<u8>>,
    pub(crate) doc_mask: Option<CudaSlice<u8>>,
    pub(crate) d_scores: CudaSlice<f32>,
    pub(crate) scores: CudaSlice<f32>,
    pub(crate) argmax: CudaSlice<i32>,
    pub(crate) d_queries: CudaSlice<T>,
    pub(crate) d_docs: CudaSlice<T>,
}

/// Bytes of a mask, one where it has none; any that is not 0 keeps.
fn bytes(mask: &[bool]) -> Vec<u8> {
    let mut bytes: Vec<_> = mask.iter().zip([1, 255, 128].into_iter().cycle()).map(|(k, b)| u8::from(*k) * b).collect();
    bytes.resize(bytes.len().max(1), 1);
    bytes
}

impl<T: Number> Device<T> {
    pub(crate) fn new(gpu: &Gpu, data: &Data<T>) -> Self {
        let problem = data.problem.clone();
        let dim = problem.dim;
        let poisoned = |spans: &Spans| vec![to::<T>(f32::NAN); spans.matrix_rows() * dim];
        // What stands in for the tokens of a side that has none.
        let poison = vec![to::<T>(f32::NAN); dim];
        let tokens = |tokens: &[T]| gpu.upload(if tokens.is_empty() { &poison } else { tokens }).unwrap();
        let mask = |mask: &Option<Vec<bool>>| mask.as_ref().map(|mask| gpu.upload(&bytes(mask)).unwrap());
        Self {
            queries: tokens(&data.queries),
            docs: tokens(&data.docs),
            query_mask: mask(&data.query_mask),
            doc_mask: mask(&data.doc_mask),
            d_scores: gpu.upload(&data.d_scores).unwrap(),
            scores: gpu.upload(&vec![f32::NAN; problem.scores()]).unwrap(),
            argmax: gpu.upload(&vec![-7; problem.argmaxes().max(1)]).unwrap(),
            d_queries: gpu.upload(&poisoned(&problem.queries)).unwrap(),
            d_docs: gpu.upload(&poisoned(&problem.docs)).unwrap(),
            problem,
        }
    }

    /// Other inputs of the same problem into the same memory.
    pub(crate) fn load(&mut self, gpu: &Gpu, data: &Data<T>) {
        let stream = gpu.stream();
        stream.memcpy_htod(&data.queries, &mut self.queries).unwrap();
        stream.memcpy_htod(&data.docs, &mut self.docs).unwrap();
        stream.memcpy_htod(&data.d_scores, &mut self.d_scores).unwrap();
        for (mask, to) in [(&data.query_mask, &mut self.query_mask), (&data.doc_mask, &mut self.doc_mask)] {
            if let (Some(mask), Some(to)) = (mask, to) {
                stream.memcpy_htod(&bytes(mask), to).unwrap();
            }
        }
    }

    pub(crate) fn poison(&mut self, gpu: &Gpu) {
        gpu.stream().memcpy_htod(&vec![f32::NAN; self.scores.len()], &mut self.scores).unwrap();
        gpu.stream().memcpy_htod(&vec![-7; self.argmax.len()], &mut self.argmax).unwrap();
        self.poison_gradients(gpu);
    }

    pub(crate) fn poison_gradients(&mut self, gpu: &Gpu) {
        for gradient in [&mut self.d_queries, &mut self.d_docs] {
            gpu.stream().memcpy_htod(&vec![to::<T>(f32::NAN); gradient.len()], gradient).unwrap();
        }
    }

    pub(crate) fn forward(&mut self, plan: &mut Plan, with_argmax: bool) -> Result<()> {
        let (inputs, outputs) = self.views();
        let Outputs { mut scores, mut argmax, .. } = outputs;
        plan.forward(&inputs, &mut scores, with_argmax.then_some(&mut argmax))
    }

    pub(crate) fn backward(&mut self, plan: &mut Plan) -> Result<()> {
        let problem = &self.problem;
        let inputs = inputs(problem, &self.queries, &self.docs, &self.query_mask, &self.doc_mask);
        let (d_scores, argmax) = (vector("d_scores", &self.d_scores), vector("argmax", &self.argmax));
        let mut gradients = gradients(problem, &mut self.d_queries, &mut self.d_docs);
        plan.backward(&inputs, &d_scores, &argmax, &mut gradients)
    }

    pub(crate) fn views(&mut self) -> (Inputs<'_, T>, Outputs<'_, T>) {
        let problem = &self.problem;
        let outputs = Outputs {
            scores: VectorViewMut::new("scores", &mut self.scores, [problem.scores()]).unwrap(),
            argmax: VectorViewMut::new("argmax", &mut self.argmax, [problem.argmaxes().max(1)]).unwrap(),
            gradients: gradients(problem, &mut self.d_queries, &mut self.d_docs),
        };
        (inputs(problem, &self.queries, &self.docs, &self.query_mask, &self.doc_mask), outputs)
    }

    pub(crate) fn results(&self, gpu: &Gpu) -> Results<T> {
        let Problem { queries, docs, dim, .. } = &self.problem;
        let rows = |of: &CudaSlice<T>, spans: &Spans| gpu.download(of).unwrap()[..spans.rows() * dim].to_vec();
        Results {
            scores: gpu.download(&self.scores).unwrap(),
            argmax: gpu.download(&self.argmax).unwrap()[..self.problem.argmaxes()].to_vec(),
            d_queries: rows(&self.d_queries, queries),
            d_docs: rows(&self.d_docs, docs),
        }
    }
}

pub(crate) struct Outputs<'a, T> {
    pub(crate) scores: VectorViewMut<'a, f32>,
    pub(crate) argmax: VectorViewMut<'a, i32>,
    pub(crate) gradients: Gradients<'a, T>,
}

pub(crate) fn vector<'a, E: cudarc::driver::DeviceRepr>(what: &'static str, of: &'a CudaSlice<E>) -> VectorView<'a, E> {
    VectorView::new(what, of, [of.len()]).unwrap()
}

fn inputs<'a, T: Number>(
    problem: &Problem,
    queries: &'a CudaSlice<T>,
    docs: &'a CudaSlice<T>,
    query_mask: &'a Option<CudaSlice<u8>>,
    doc_mask: &'a Option<CudaSlice<u8>>,
) -> Inputs<'a, T> {
    Inputs {
        queries: MatrixView::new("queries", queries, [problem.queries.matrix_rows(), problem.dim]).unwrap(),
        docs: MatrixView::new("docs", docs, [problem.docs.matrix_rows(), problem.dim]).unwrap(),
        query_mask: query_mask.as_ref().map(|mask| vector("query_mask", mask)),
        doc_mask: doc_mask.as_ref().map(|mask| vector("doc_mask", mask)),
    }
}

fn gradients<'a, T: Number>(
    problem: &Problem,
    d_queries: &'a mut CudaSlice<T>,
    d_docs: &'a mut CudaSlice<T>,
) -> Gradients<'a, T> {
    let (queries, docs) = (problem.queries.matrix_rows(), problem.docs.matrix_rows());
    Gradients {
        d_queries: Some(MatrixViewMut::new("d_queries", d_queries, [queries, problem.dim]).unwrap()),
        d_docs: Some(MatrixViewMut::new("d_docs", d_docs, [docs, problem.dim]).unwrap()),
    }
}

pub(crate) fn assert_same<A: PartialEq + std::fmt::Debug>(what: &str, found: &[A], expected: &[A], case: &Case) {
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
pub(crate) fn assert_near(what: &str, found: &[f32], expected: &[f32], bound: f32, case: &Case) {
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
