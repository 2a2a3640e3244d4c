//! Parity of late-interaction scores: so far reference-cpu against naive f64 (there are no GPU kernels yet).

use super::deviation::{Deviation, Floor};
use super::runner::{Group, Line, Measured};
use crate::siglip::{Number, normal};
use half::{bf16, f16};
use indicatif::ProgressBar;
use kernel_core::DType;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::maxsim::{Pairing, Problem, Tokens, backward, forward};
use reference_cpu::naive::{self, MaxsimSide};
use reference_cpu::{HostMatrix, HostMatrixMut, HostTensor};

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
    let lengths = (0usize..=40, prop_oneof![4 => 1usize..=90, 1 => Just(0)]);
    let dropped = prop_oneof![Just(0.0f32), 0.05f32..=1.0];
    (kind, texts, lengths, 1usize..=160, any::<[bool; 2]>(), dropped, any::<u64>()).prop_map(
        |(kind, (queries, docs), (query_len, doc_len), dim, [packed, normalize], dropped, data_seed)| {
            let docs = match kind {
                Kind::Candidates(per_query) => queries * per_query,
                Kind::Pairs => queries,
                Kind::Cross | Kind::List(_) => docs,
            };
            Case { kind, queries, docs, query_len, doc_len, dim, packed, dropped, normalize, data_seed }
        },
    )
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
        group(DType::F32).run(&cases(), check::<f32>),
        group(DType::F16).run(&cases(), check::<f16>),
        group(DType::Bf16).run(&cases(), check::<bf16>),
    ]
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

    fn view(&self, case: &Case, what: &'static str, length: usize) -> reference_cpu::Result<Tokens<'_, T>> {
        let count = self.offsets.len() - 1;
        let tokens = if case.packed {
            Tokens::packed(HostMatrix::new(what, &self.tokens, self.offsets[count], case.dim)?, &self.offsets)?
        } else {
            Tokens::padded(HostTensor::new(what, &self.tokens, [count, length, case.dim])?)?
        };
        match &self.mask {
            Some(mask) => tokens.with_mask(mask),
            None => Ok(tokens),
        }
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

fn check<T: Number>(case: &Case) -> Result<Vec<Measured>, String> {
    evaluate::<T>(case).map_err(|error| error.to_string())?
}

/// The inner error names a result that had to be exact and was not.
fn evaluate<T: Number>(case: &Case) -> reference_cpu::Result<Result<Vec<Measured>, String>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(case.data_seed);
    let queries = Side::<T>::random(case, case.queries, case.query_len, &mut rng);
    let docs = Side::<T>::random(case, case.docs, case.doc_len, &mut rng);
    let cross = (0..case.queries).flat_map(|q| (0..case.docs).map(move |d| (q, d)));
    let items: Vec<(usize, usize)> = match case.kind {
        Kind::Cross => cross.collect(),
        Kind::Candidates(per_query) => (0..case.docs).map(|d| (d / per_query, d)).collect(),
        Kind::Pairs => (0..case.queries).map(|i| (i, i)).collect(),
        Kind::List(length) => {
            (0..length).map(|_| (rng.random_range(0..case.queries), rng.random_range(0..case.docs))).collect()
        }
    };
    let pairing = match case.kind {
        Kind::Cross => Pairing::Cross,
        Kind::Candidates(per_query) => Pairing::Candidates { per_query },
        Kind::Pairs => Pairing::Pairs,
        Kind::List(_) => Pairing::List(&items),
    };
    let problem = Problem {
        queries: queries.view(case, "queries", case.query_len)?,
        docs: docs.view(case, "docs", case.doc_len)?,
        pairing,
        normalize: case.normalize,
    };
    let (mut scores, mut argmax) = (vec![f32::NAN; items.len()], vec![i32::MIN; problem.argmaxes()?]);
    forward(&problem, &mut scores, Some(&mut argmax))?;

    let (query_spans, doc_spans) = (queries.spans(), docs.spans());
    let side = |side: &'_ Side<T>, spans| (side.wide.clone(), spans, side.mask.clone());
    let ((q, q_spans, q_mask), (d, d_spans, d_mask)) = (side(&queries, &query_spans), side(&docs, &doc_spans));
    let wide_queries = MaxsimSide { tokens: &q, spans: q_spans, mask: q_mask.as_deref() };
    let wide_docs = MaxsimSide { tokens: &d, spans: d_spans, mask: d_mask.as_deref() };
    let (truth, true_argmax) = naive::maxsim(&wide_queries, &wide_docs, case.dim, &items, case.normalize)?;

    let d_scores: Vec<f32> = items.iter().map(|_| normal(&mut rng)).collect();
    let wide_d_scores: Vec<f64> = d_scores.iter().map(|x| f64::from(*x)).collect();
    let nan = T::rounded(f32::NAN);
    let (mut d_queries, mut d_docs) = (vec![nan; queries.tokens.len()], vec![nan; docs.tokens.len()]);
    backward(
        &problem,
        &d_scores,
        &argmax,
        Some(&mut HostMatrixMut::new("d_queries", &mut d_queries, queries.tokens.len() / case.dim, case.dim)?),
        Some(&mut HostMatrixMut::new("d_docs", &mut d_docs, docs.tokens.len() / case.dim, case.dim)?),
    )?;
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
    let dtype = <T as kernel_core::Element>::DTYPE;
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
