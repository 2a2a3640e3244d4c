//! Every mistake of a caller gives an error of its own kind that names what was wrong, and nothing is written.

use cudarc::driver::CudaContext;
use gpu_testing::{alias, assert_kind};
use maxsim_kernel::kernel_core::Error;
use maxsim_kernel::kernel_core::half::{bf16, f16};
use maxsim_kernel::{
    DType, Gpu, MatrixView, MatrixViewMut, Options, Pairing, Plan, Problem, Route, Spans, VectorView, VectorViewMut,
    workspace_bytes,
};

use crate::case::{Case, Data, Device, Number, from, vector};
use crate::support::{gpu, say};

const DIM: usize = 16;
/// Rows of queries and of documents, scores and choices.
const QUERY_ROWS: usize = 3 * 8;
const DOC_ROWS: usize = 4 * 10;
const SCORES: usize = 3 * 4;
const CHOICES: usize = QUERY_ROWS * 4;

struct Fixture<T> {
    gpu: Gpu,
    plan: Plan,
    device: Device<T>,
}

impl<T: Number> Fixture<T> {
    fn new(masks: (bool, bool)) -> Option<Self> {
        let gpu = gpu()?;
        let (queries, docs) = (Spans::padded(3, 8), Spans::padded(4, 10));
        let data = Data::<T>::new(&Case { queries, docs, dim: DIM, masks, ..Case::default() });
        let plan = Plan::new(&gpu, data.problem.clone(), Options::default()).unwrap();
        let device = Device::new(&gpu, &data);
        Some(Self { gpu, plan, device })
    }

    fn nothing_was_written(&self) {
        let found = self.device.results(&self.gpu);
        assert!(found.scores.iter().all(|score| score.is_nan()), "a score was written");
        assert!(found.argmax.iter().all(|choice| *choice == -7), "a choice was written");
        assert!(found.d_queries.iter().chain(&found.d_docs).all(|x| from(*x).is_nan()), "a gradient was written");
    }
}

/// The GPU error behind a result that must be one.
fn kind<R: std::fmt::Debug>(result: maxsim_kernel::Result<R>) -> Error {
    match result {
        Err(maxsim_kernel::Error::Gpu(error)) => error,
        other => panic!("expected an error of the GPU side, found {other:?}"),
    }
}

/// The error of a call with one view replaced. An input that the scores refuse the gradients must refuse too, in the same words.
macro_rules! call_with {
    ($f:ident, scores_only inputs.$field:ident = $value:expr) => {{
        let (mut inputs, mut outputs) = $f.device.views();
        inputs.$field = $value;
        let error = kind($f.plan.forward(&inputs, &mut outputs.scores, Some(&mut outputs.argmax)));
        let alone = kind($f.plan.forward(&inputs, &mut outputs.scores, None));
        assert_eq!(error.to_string(), alone.to_string());
        $f.nothing_was_written();
        error
    }};
    ($f:ident, inputs.$field:ident = $value:expr) => {{
        let d_scores = $f.gpu.alloc::<f32>(SCORES).unwrap();
        let choices = $f.gpu.alloc::<i32>(CHOICES).unwrap();
        let (mut inputs, mut outputs) = $f.device.views();
        inputs.$field = $value;
        let error = kind($f.plan.forward(&inputs, &mut outputs.scores, Some(&mut outputs.argmax)));
        let alone = kind($f.plan.forward(&inputs, &mut outputs.scores, None));
        let (d_scores, choices) = (vector("d_scores", &d_scores), vector("argmax", &choices));
        let backward = kind($f.plan.backward(&inputs, &d_scores, &choices, &mut outputs.gradients));
        assert_eq!(error.to_string(), alone.to_string());
        assert_eq!(error.to_string(), backward.to_string());
        $f.nothing_was_written();
        error
    }};
    ($f:ident, $output:ident = $value:expr) => {{
        let (inputs, mut outputs) = $f.device.views();
        outputs.$output = $value;
        let error = kind($f.plan.forward(&inputs, &mut outputs.scores, Some(&mut outputs.argmax)));
        $f.nothing_was_written();
        error
    }};
    ($f:ident, gradients.$field:ident = $value:expr) => {{
        let d_scores = $f.gpu.alloc::<f32>(SCORES).unwrap();
        let choices = $f.gpu.alloc::<i32>(CHOICES).unwrap();
        let (inputs, mut outputs) = $f.device.views();
        outputs.gradients.$field = $value;
        let (d_scores, choices) = (vector("d_scores", &d_scores), vector("argmax", &choices));
        let error = kind($f.plan.backward(&inputs, &d_scores, &choices, &mut outputs.gradients));
        $f.nothing_was_written();
        error
    }};
    ($f:ident, backward $d_scores:expr, $argmax:expr) => {{
        let (inputs, mut outputs) = $f.device.views();
        let error = kind($f.plan.backward(&inputs, &$d_scores, &$argmax, &mut outputs.gradients));
        $f.nothing_was_written();
        error
    }};
}

#[test]
fn wrong_shapes() {
    let Some(mut f) = Fixture::<bf16>::new((true, true)) else { return };
    let gpu = f.gpu.clone();
    let rows = gpu.alloc::<bf16>(DOC_ROWS * DIM).unwrap();
    let mut writable = gpu.alloc::<bf16>(DOC_ROWS * DIM).unwrap();
    let mask = gpu.alloc::<u8>(DOC_ROWS).unwrap();
    let mut floats = gpu.alloc::<f32>(SCORES + 1).unwrap();
    let mut integers = gpu.alloc::<i32>(CHOICES + 1).unwrap();
    let error = call_with!(f, inputs.queries = MatrixView::new("mine", &rows, [DOC_ROWS, DIM]).unwrap());
    assert_eq!(error.to_string(), "mine: wrong shape: found [40, 16], expected [24, 16]");
    let wide = MatrixView::new("wide", &rows, [DIM, DOC_ROWS]).unwrap();
    assert_kind!(call_with!(f, inputs.docs = wide), Error::Shape { what: "wide", .. });
    let error = call_with!(f, inputs.query_mask = Some(vector("query_mask", &mask)));
    assert_kind!(error, Error::Shape { what: "query_mask", .. });
    let short = VectorView::new("doc_mask", mask.slice(..QUERY_ROWS), [QUERY_ROWS]).unwrap();
    assert_kind!(call_with!(f, inputs.doc_mask = Some(short)), Error::Shape { what: "doc_mask", .. });
    let long = VectorViewMut::new("scores", &mut floats, [SCORES + 1]).unwrap();
    assert_kind!(call_with!(f, scores = long), Error::Shape { what: "scores", .. });
    let long = VectorViewMut::new("argmax", &mut integers, [CHOICES + 1]).unwrap();
    assert_kind!(call_with!(f, argmax = long), Error::Shape { what: "argmax", .. });
    let wrong = MatrixViewMut::new("d_queries", &mut writable, [DOC_ROWS, DIM]).unwrap();
    assert_kind!(call_with!(f, gradients.d_queries = Some(wrong)), Error::Shape { what: "d_queries", .. });
    let wrong = MatrixViewMut::new("d_docs", &mut writable, [DOC_ROWS / 2, 2 * DIM]).unwrap();
    assert_kind!(call_with!(f, gradients.d_docs = Some(wrong)), Error::Shape { what: "d_docs", .. });
    let (right, choices) = (gpu.alloc::<f32>(SCORES).unwrap(), gpu.alloc::<i32>(CHOICES).unwrap());
    let error = call_with!(f, backward vector("d_scores", &floats), vector("argmax", &choices));
    assert_kind!(error, Error::Shape { what: "d_scores", .. });
    let error = call_with!(f, backward vector("d_scores", &right), vector("argmax", &integers));
    assert_kind!(error, Error::Shape { what: "argmax", .. });
}

#[test]
fn masks_as_the_plan_was_made() {
    let Some(mut f) = Fixture::<f16>::new((true, true)) else { return };
    let error = call_with!(f, inputs.query_mask = None);
    assert_kind!(&error, Error::Shape { what: "query_mask", .. });
    assert!(error.to_string().contains("none") && error.to_string().contains("[24]"), "{error}");
    assert_kind!(call_with!(f, inputs.doc_mask = None), Error::Shape { what: "doc_mask", .. });
    let Some(mut f) = Fixture::<f16>::new((false, false)) else { return };
    let mask = f.gpu.alloc::<u8>(DOC_ROWS).unwrap();
    let error = call_with!(f, inputs.doc_mask = Some(vector("doc_mask", &mask)));
    assert_kind!(&error, Error::Shape { what: "doc_mask", .. });
    assert!(error.to_string().contains("with_masks"), "{error}");
    let short = VectorView::new("query_mask", mask.slice(..QUERY_ROWS), [QUERY_ROWS]).unwrap();
    assert_kind!(call_with!(f, inputs.query_mask = Some(short)), Error::Shape { what: "query_mask", .. });
}

#[test]
fn wrong_dtype() {
    let Some(f) = Fixture::<bf16>::new((false, false)) else { return };
    let Some(Fixture { device: mut halves, .. }) = Fixture::<f16>::new((false, false)) else { return };
    let mut plan = f.plan;
    let error = kind(halves.forward(&mut plan, true));
    assert_eq!(error.to_string(), "queries and docs: wrong dtype: found f16, expected bf16");
    assert_kind!(kind(halves.backward(&mut plan)), Error::DType { found: DType::F16, .. });
    let Some(Fixture { device: mut floats, .. }) = Fixture::<f32>::new((false, false)) else { return };
    assert_kind!(kind(floats.forward(&mut plan, false)), Error::DType { found: DType::F32, .. });
}

#[test]
fn strides_and_alignment() {
    let Some(mut f) = Fixture::<bf16>::new((false, false)) else { return };
    let rows = f.gpu.alloc::<bf16>(DOC_ROWS * (DIM + 8)).unwrap();
    let error = MatrixView::with_row_stride("queries", &rows, [QUERY_ROWS, DIM], DIM - 1).unwrap_err();
    assert_kind!(error, Error::Stride { what: "queries", found: 15, minimum: 16 });
    if f.plan.route() != Route::Hopper {
        return say("the route hopper alone asks for an alignment");
    }
    let shifted = MatrixView::new("queries", rows.slice(1..1 + QUERY_ROWS * DIM), [QUERY_ROWS, DIM]).unwrap();
    let address = shifted.address();
    let error = call_with!(f, scores_only inputs.queries = shifted);
    assert!(
        matches!(error, Error::Misaligned { what: "queries", address: a, required: 16 } if a == address),
        "{error}"
    );
    let odd = MatrixView::with_row_stride("docs", rows.slice(..), [DOC_ROWS, DIM], DIM + 1).unwrap();
    assert_kind!(call_with!(f, scores_only inputs.docs = odd), Error::Misaligned { what: "docs", required: 16, .. });
}

#[test]
fn another_device() {
    let Some(mut f) = Fixture::<f32>::new((true, true)) else { return };
    let context = match Gpu::count().unwrap() {
        1 => {
            say("one GPU: a second context of it stands for a second device");
            CudaContext::new_non_primary(0, 0).unwrap()
        }
        _ => CudaContext::new(1).unwrap(),
    };
    let foreign = Gpu::from_stream(context.new_stream().unwrap()).unwrap();
    let mut rows = foreign.alloc::<f32>(DOC_ROWS * DIM).unwrap();
    let mask = foreign.alloc::<u8>(DOC_ROWS).unwrap();
    let mut floats = foreign.alloc::<f32>(SCORES).unwrap();
    let mut integers = foreign.alloc::<i32>(CHOICES).unwrap();
    let theirs = MatrixView::new("docs", &rows, [DOC_ROWS, DIM]).unwrap();
    assert_kind!(call_with!(f, inputs.docs = theirs), Error::WrongDevice { what: "docs", expected: 0, .. });
    let theirs = Some(vector("doc_mask", &mask));
    assert_kind!(call_with!(f, inputs.doc_mask = theirs), Error::WrongDevice { what: "doc_mask", .. });
    let ours = f.gpu.alloc::<i32>(CHOICES).unwrap();
    let error = call_with!(f, backward vector("d_scores", &floats), vector("argmax", &ours));
    assert_kind!(error, Error::WrongDevice { what: "d_scores", .. });
    let ours = f.gpu.alloc::<f32>(SCORES).unwrap();
    let error = call_with!(f, backward vector("d_scores", &ours), vector("argmax", &integers));
    assert_kind!(error, Error::WrongDevice { what: "argmax", .. });
    let theirs = VectorViewMut::new("scores", &mut floats, [SCORES]).unwrap();
    assert_kind!(call_with!(f, scores = theirs), Error::WrongDevice { what: "scores", .. });
    let theirs = VectorViewMut::new("argmax", &mut integers, [CHOICES]).unwrap();
    assert_kind!(call_with!(f, argmax = theirs), Error::WrongDevice { what: "argmax", .. });
    let theirs = Some(MatrixViewMut::new("d_docs", &mut rows, [DOC_ROWS, DIM]).unwrap());
    assert_kind!(call_with!(f, gradients.d_docs = theirs), Error::WrongDevice { what: "d_docs", .. });
}

#[test]
fn overlaps() {
    let Some(mut f) = Fixture::<f32>::new((true, false)) else { return };
    let gpu = f.gpu.clone();
    let mut docs = alias(&gpu, &f.device.docs, f.device.docs.len());
    let mut d_docs = alias(&gpu, &f.device.d_docs, f.device.d_docs.len());
    let over = Some(MatrixViewMut::new("d_docs", &mut *docs, [DOC_ROWS, DIM]).unwrap());
    let error = call_with!(f, gradients.d_docs = over);
    assert_eq!(error.to_string(), "docs and d_docs overlap in memory: expected them to be disjoint");
    let over = VectorViewMut::new("scores", docs.slice_mut(5..5 + SCORES), [SCORES]).unwrap();
    assert_kind!(call_with!(f, scores = over), Error::Overlap { a: "docs", b: "scores" });
    let over = Some(MatrixViewMut::new("d_queries", d_docs.slice_mut(..QUERY_ROWS * DIM), [QUERY_ROWS, DIM]).unwrap());
    assert_kind!(call_with!(f, gradients.d_queries = over), Error::Overlap { a: "d_queries", b: "d_docs" });
    // A gradient over the scores' gradients, which it is made from.
    let choices = gpu.alloc::<i32>(CHOICES).unwrap();
    let (inputs, mut outputs) = f.device.views();
    let short = VectorView::new("d_scores", d_docs.slice(..SCORES), [SCORES]).unwrap();
    let error = kind(f.plan.backward(&inputs, &short, &vector("argmax", &choices), &mut outputs.gradients));
    assert_kind!(error, Error::Overlap { a: "d_scores", b: "d_docs" });
    f.nothing_was_written();
}

#[test]
fn impossible_problems() {
    let Some(gpu) = gpu() else { return };
    let texts = || Spans::padded(2, 8);
    let cross = |queries, docs, dim| Problem::cross(queries, docs, dim, DType::Bf16);
    let with = |pairing| Problem::new(texts(), texts(), 8, DType::Bf16, pairing);
    for problem in [
        cross(texts(), texts(), 0),
        cross(texts(), texts(), 1025),
        cross(Spans::padded(0, 8), texts(), 8),
        cross(texts(), Spans::packed(vec![0, 5, 3]), 8),
        cross(texts(), Spans::padded(1, (1 << 18) + 1), 8),
        with(Pairing::Candidates { per_query: 2 }),
        with(Pairing::List(vec![(0, 2)].into())),
        Problem::pairs(texts(), Spans::padded(3, 8), 8, DType::Bf16),
    ] {
        let plan = kind(Plan::new(&gpu, problem.clone(), Options::default()));
        let bytes = kind(workspace_bytes(&gpu, &problem, &Options::default()));
        assert_eq!(plan.to_string(), bytes.to_string());
        assert_kind!(plan, Error::Shape { .. } | Error::ZeroSize { .. });
    }
    let options = Options { route: Route::Hopper, ..Options::default() };
    let error = kind(Plan::new(&gpu, Problem::cross(texts(), texts(), 8, DType::F32), options));
    assert_kind!(error, Error::DType { found: DType::F32, .. });
}
