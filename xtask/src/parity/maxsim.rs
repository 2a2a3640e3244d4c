//! Parity of late-interaction scores: reference-cpu against naive f64, and every GPU route against both, each run twice.

use super::deviation::{Deviation, Floor};
use super::runner::{Group, Line, Measured};
use crate::maxsim::{DeviceCall, Found, Tensors, on_host};
use crate::siglip::{Number, normal};
use half::{bf16, f16};
use indicatif::ProgressBar;
use kernel_core::{DType, Gpu};
use maxsim_kernel::{BackwardRoute, Options, Pairing, Plan, Problem, Route, Spans};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::naive::{self, MaxsimSide};

const OPS: &[&str] = &["score", "score_step"];
pub(crate) const GROUPS: u64 = 3;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Cross,
    Candidates(usize),
    Pairs,
    List(usize),
}

#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    queries: usize,
    docs: usize,
    query_len: usize,
    doc_len: usize,
    dim: usize,
    /// Texts of different lengths, packed with offsets, instead of padded.
    packed: bool,
    /// Share of tokens that the masks drop; no masks at 0.
    dropped: f32,
    normalize: bool,
    data_seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let kind = prop_oneof![
        Just(Kind::Cross),
        (1usize..=4).prop_map(Kind::Candidates),
        Just(Kind::Pairs),
        (1usize..=12).prop_map(Kind::List)
    ];
    let texts = (1usize..=5, 1usize..=6);
    // Mostly small: the f64 version compares every two tokens plainly.
    let lengths =
        (prop_oneof![4 => 1usize..=40, 1 => 41usize..=150], prop_oneof![4 => 1usize..=90, 1 => 91usize..=330]);
    let dropped = prop_oneof![Just(0.0f32), 0.05f32..=1.0];
    (
        kind,
        texts,
        lengths,
        prop_oneof![4 => 1usize..=80, 1 => Just(128usize), 1 => 81usize..=300],
        any::<[bool; 2]>(),
        dropped,
        any::<u64>(),
    )
        .prop_map(|(kind, (queries, docs), (query_len, doc_len), dim, [packed, normalize], dropped, data_seed)| {
            let few = query_len * queries <= 64;
            let (docs, doc_len) = match kind {
                Kind::Candidates(per_query) => (queries * per_query, doc_len),
                Kind::Pairs => (queries, doc_len),
                // Few query rows meet many documents in other ways than many do.
                Kind::Cross if few && docs > 4 => (docs * 120, doc_len.min(20)),
                Kind::Cross | Kind::List(_) => (docs, doc_len),
            };
            Case { kind, queries, docs, query_len, doc_len, dim, packed, dropped, normalize, data_seed }
        })
}

pub(crate) fn cpu_groups(cases_a_group: u32, seed: u64, bar: &ProgressBar) -> Vec<(Vec<Line>, Option<String>)> {
    let group = |dtype: DType| Group {
        family: "maxsim",
        dtype: dtype.to_string(),
        route: "reference-cpu".to_owned(),
        ops: OPS,
        cases: cases_a_group,
        seed,
        on_gpu: false,
        bar,
    };
    vec![
        group(DType::F32).run(&cases(), |case| check::<f32>(case, None)),
        group(DType::F16).run(&cases(), |case| check::<f16>(case, None)),
        group(DType::Bf16).run(&cases(), |case| check::<bf16>(case, None)),
    ]
}

/// A group for each dtype, scoring route and backward route that this device has; what it has not is printed with the reason.
pub(crate) fn gpu_groups(
    gpu: &Gpu,
    cases_a_group: u32,
    seed: u64,
    bar: &ProgressBar,
) -> Vec<(Vec<Line>, Option<String>)> {
    let mut planned = Vec::new();
    for dtype in DType::ALL {
        for route in [Route::Hopper, Route::Portable] {
            let problem = Problem::pairs(Spans::padded(1, 8), Spans::padded(1, 8), 64, dtype);
            match Plan::new(gpu, problem, Options { route, ..Options::default() }) {
                Ok(_) => planned.extend([BackwardRoute::LowMemory, BackwardRoute::Unified].map(|b| (dtype, route, b))),
                Err(error) => bar.suspend(|| println!("maxsim {dtype} {route}: skipped: {error}")),
            }
        }
    }
    bar.inc_length(planned.len() as u64 * u64::from(cases_a_group));
    let run = |(dtype, route, backward): (DType, Route, BackwardRoute)| {
        bar.set_message(format!("maxsim {dtype} {route}, {backward}"));
        let group = Group {
            family: "maxsim",
            dtype: dtype.to_string(),
            route: format!("{route}, {backward}"),
            ops: OPS,
            cases: cases_a_group,
            seed,
            on_gpu: true,
            bar,
        };
        let on = Some((gpu, Options { route, backward }));
        let (mut lines, failure) = match dtype {
            DType::F32 => group.run(&cases(), |case| check::<f32>(case, on)),
            DType::F16 => group.run(&cases(), |case| check::<f16>(case, on)),
            DType::Bf16 => group.run(&cases(), |case| check::<bf16>(case, on)),
        };
        // Atomic additions come in any order: scores are compared bit by bit, these gradients are not.
        for line in lines.iter_mut().filter(|line| line.op == "score_step") {
            line.reproducible &= backward != BackwardRoute::Unified;
        }
        (lines, failure)
    };
    planned.into_iter().map(run).collect()
}

/// Queries or documents: their tokens, where each text lies, and which tokens count.
struct Side<T> {
    tokens: Vec<T>,
    wide: Vec<f64>,
    offsets: Vec<usize>,
    mask: Option<Vec<bool>>,
}

impl<T: Number> Side<T> {
    fn random(case: &Case, count: usize, length: usize, rng: &mut Xoshiro256PlusPlus) -> Self {
        let mut offsets = vec![0];
        for _ in 0..count {
            let length = if case.packed { rng.random_range(0..=length) } else { length };
            offsets.push(offsets[offsets.len() - 1] + length);
        }
        let rows = offsets[count];
        // Rows of about unit length, or of any length where they are normalised.
        let scale = (case.dim as f32).sqrt().recip() * if case.normalize { 3.0 } else { 1.0 };
        let tokens: Vec<T> = (0..rows * case.dim).map(|_| T::rounded(normal(rng) * scale)).collect();
        let mask = (case.dropped > 0.0).then(|| (0..rows).map(|_| rng.random::<f32>() >= case.dropped).collect());
        Self { wide: tokens.iter().map(|x| x.wide()).collect(), tokens, offsets, mask }
    }

    fn layout(&self, case: &Case, length: usize) -> Spans {
        if case.packed { Spans::packed(self.offsets.clone()) } else { Spans::padded(self.offsets.len() - 1, length) }
    }

    fn spans(&self) -> Vec<(usize, usize)> {
        self.offsets.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    /// Length of a token, and the factor that normalising multiplies it by.
    fn length(&self, case: &Case, row: usize) -> (f64, f64) {
        let square: f64 = self.wide[row * case.dim..][..case.dim].iter().map(|x| x * x).sum();
        if case.normalize { (1.0, 1.0 / square.max(1e-12).sqrt()) } else { (square.sqrt(), 1.0) }
    }
}

/// `on`: a device, and how to compute it there; reference-cpu otherwise.
fn check<T: Number>(case: &Case, on: Option<(&Gpu, Options)>) -> Result<Vec<Measured>, String> {
    evaluate::<T>(case, on).map_err(|error| error.to_string())?
}

/// The same problem twice, and once without choices. The inner error tells of bits that differ.
fn run_on_gpu<T: Number>(
    gpu: &Gpu,
    tensors: &Tensors<T>,
    options: Options,
) -> maxsim_kernel::Result<Result<Found<T>, String>> {
    let mut call = DeviceCall::new(gpu, tensors, options)?;
    let ((alone, found), (_, again)) = (call.run()?, call.run()?);
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let narrow_bits = |values: &[T]| values.iter().map(|x| x.wide().to_bits()).collect::<Vec<_>>();
    let checks = [
        ("scores of a second run", bits(&found.scores) == bits(&again.scores)),
        ("scores without choices", bits(&found.scores) == bits(&alone)),
        ("choices of a second run", found.argmax == again.argmax),
        (
            "gradients of a second run",
            options.backward == BackwardRoute::Unified
                || (narrow_bits(&found.d_queries) == narrow_bits(&again.d_queries)
                    && narrow_bits(&found.d_docs) == narrow_bits(&again.d_docs)),
        ),
    ];
    Ok(match checks.iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(format!("{what} have other bits")),
        None => Ok(found),
    })
}

/// The inner error names a result that had to be exact and was not.
fn evaluate<T: Number>(
    case: &Case,
    on: Option<(&Gpu, Options)>,
) -> maxsim_kernel::Result<Result<Vec<Measured>, String>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(case.data_seed);
    let queries = Side::<T>::random(case, case.queries, case.query_len, &mut rng);
    let docs = Side::<T>::random(case, case.docs, case.doc_len, &mut rng);
    let pairing = match case.kind {
        Kind::Cross => Pairing::Cross,
        Kind::Candidates(per_query) => Pairing::Candidates { per_query },
        Kind::Pairs => Pairing::Pairs,
        Kind::List(length) => {
            let mut pair = || (rng.random_range(0..case.queries), rng.random_range(0..case.docs));
            Pairing::List((0..length).map(|_| pair()).collect())
        }
    };
    let dtype = <T as kernel_core::Element>::DTYPE;
    let (query_layout, doc_layout) = (queries.layout(case, case.query_len), docs.layout(case, case.doc_len));
    let problem = Problem::new(query_layout, doc_layout, case.dim, dtype, pairing)
        .with_normalize(case.normalize)
        .with_masks(queries.mask.is_some(), docs.mask.is_some());
    let items: Vec<(usize, usize)> = (0..problem.scores()).map(|slot| problem.pair(slot)).collect();
    let d_scores: Vec<f32> = items.iter().map(|_| normal(&mut rng)).collect();
    let wide_d_scores: Vec<f64> = d_scores.iter().map(|x| f64::from(*x)).collect();
    let tensors = Tensors {
        problem,
        queries: queries.tokens.clone(),
        docs: docs.tokens.clone(),
        query_mask: queries.mask.clone(),
        doc_mask: docs.mask.clone(),
        d_scores: Some(d_scores),
    };
    let found = match on {
        None => on_host(&tensors)?,
        Some((gpu, options)) => match run_on_gpu(gpu, &tensors, options)? {
            Ok(found) => found,
            Err(reason) => return Ok(Err(reason)),
        },
    };
    let Found { scores, argmax, d_queries, d_docs } = found;

    let (query_spans, doc_spans) = (queries.spans(), docs.spans());
    let side = |side: &'_ Side<T>, spans| (side.wide.clone(), spans, side.mask.clone());
    let ((q, q_spans, q_mask), (d, d_spans, d_mask)) = (side(&queries, &query_spans), side(&docs, &doc_spans));
    let wide_queries = MaxsimSide { tokens: &q, spans: q_spans, mask: q_mask.as_deref() };
    let wide_docs = MaxsimSide { tokens: &d, spans: d_spans, mask: d_mask.as_deref() };
    let (truth, true_argmax) = naive::maxsim(&wide_queries, &wide_docs, case.dim, &items, case.normalize)?;

    // The choices of the f32 forward: where similarities nearly tie, the f64 forward may choose another token.
    let (true_d_queries, true_d_docs) =
        naive::maxsim_backward(&wide_queries, &wide_docs, case.dim, &items, case.normalize, &wide_d_scores, &argmax)?;

    let sizes = Sizes::new(case, &queries, &docs, &items, &argmax, &wide_d_scores);
    if let Some(index) = sizes.empty.iter().position(|index| scores[*index] != 0.0) {
        return Ok(Err(format!("score {index} has no tokens to choose from and is {}, expected 0", scores[index])));
    }
    let none = |argmax: &[i32]| argmax.iter().map(|choice| *choice < 0).collect::<Vec<_>>();
    if none(&argmax) != none(&true_argmax) {
        return Ok(Err("argmax is -1 elsewhere than in the naive version".to_owned()));
    }
    // Similarities of up to 160 products in f32; gradients are rounded once to their dtype.
    let rounding = if dtype == DType::F32 { 0.0 } else { f64::from(dtype.epsilon()) / 2.0 };
    let (f32_class, rounded) = (Deviation::both(4e-6), Deviation::both(4e-6 + 1.1 * rounding));
    let gradient = |what, found: &[T], truth: &[f64], floor| Measured {
        op: "score_step",
        what,
        deviation: Deviation::of(found.iter().map(|x| x.wide()), truth, floor),
        tolerance: rounded,
    };
    let scores = scores.iter().map(|score| f64::from(*score));
    Ok(Ok(vec![
        Measured {
            op: "score",
            what: "scores",
            deviation: Deviation::of(scores, &truth, sizes.scores),
            tolerance: f32_class,
        },
        gradient("d_queries", &d_queries, &true_d_queries, sizes.d_queries),
        gradient("d_docs", &d_docs, &true_d_docs, sizes.d_docs),
    ]))
}

/// Sizes of the terms that the results are sums of (see [`Floor`]).
#[derive(Default)]
struct Sizes {
    scores: Floor,
    d_queries: Floor,
    d_docs: Floor,
    /// Scores without a single chosen token.
    empty: Vec<usize>,
}

impl Sizes {
    fn new<T: Number>(
        case: &Case,
        queries: &Side<T>,
        docs: &Side<T>,
        items: &[(usize, usize)],
        argmax: &[i32],
        d_scores: &[f64],
    ) -> Self {
        let mut sizes = Self::default();
        let mut choices = argmax.iter();
        for (index, (&(query, doc), d_score)) in items.iter().zip(d_scores).enumerate() {
            let mut score = 0.0;
            for (i, &choice) in (queries.offsets[query]..queries.offsets[query + 1]).zip(&mut choices) {
                let Ok(choice) = usize::try_from(choice) else { continue };
                let (q, q_factor) = queries.length(case, i);
                let (d, d_factor) = docs.length(case, docs.offsets[doc] + choice);
                score += q * d;
                sizes.d_queries.add(d_score * q_factor * d);
                sizes.d_docs.add(d_score * d_factor * q);
            }
            if score == 0.0 {
                sizes.empty.push(index);
            }
            sizes.scores.add(score);
        }
        for floor in [&mut sizes.scores, &mut sizes.d_queries, &mut sizes.d_docs] {
            floor.l2 = floor.l2.sqrt();
        }
        for floor in [&mut sizes.d_queries, &mut sizes.d_docs] {
            floor.max /= (case.dim as f64).sqrt();
        }
        sizes
    }
}

impl Floor {
    /// Takes a term into the largest and into the sum of squares.
    fn add(&mut self, term: f64) {
        self.max = self.max.max(term.abs());
        self.l2 += term * term;
    }
}
