//! What a case should give, in f64, and how near an implementation must come.

use super::case::{Case, Kind, Side};
use super::choices;
use super::groups::run_on_gpu;
use crate::maxsim::{Found, Tensors, on_host};
use crate::parity::deviation::{Deviation, Floor};
use crate::parity::runner::Measured;
use crate::siglip::{Number, normal};
use kernel_core::{DType, Gpu};
use maxsim_kernel::{Options, Pairing, Problem};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::naive::{self, MaxsimSide};

/// `on`: a device, and how to compute it there; reference-cpu otherwise.
pub(super) fn check<T: Number>(case: &Case, on: Option<(&Gpu, Options)>) -> Result<Vec<Measured>, String> {
    evaluate::<T>(case, on).map_err(|error| error.to_string())?
}

/// The inner error names a result that had to be exact and was not.
fn evaluate<T: Number>(
    case: &Case,
    on: Option<(&Gpu, Options)>,
) -> maxsim_kernel::Result<Result<Vec<Measured>, String>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(case.data_seed);
    let queries = Side::<T>::queries(case, &mut rng);
    let docs = Side::<T>::docs(case, &mut rng);
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

    if let Err(reason) = choices::check(case, [&queries, &docs], &items, &argmax, &true_argmax) {
        return Ok(Err(reason));
    }
    // The choices of the f32 forward: where similarities nearly tie, the f64 forward may choose another token.
    let (true_d_queries, true_d_docs) =
        naive::maxsim_backward(&wide_queries, &wide_docs, case.dim, &items, case.normalize, &wide_d_scores, &argmax)?;

    let sizes = Sizes::new(case, &queries, &docs, &items, &argmax, &wide_d_scores);
    if let Some(index) = sizes.empty.iter().position(|index| scores[*index] != 0.0) {
        return Ok(Err(format!("score {index} has no tokens to choose from and is {}, expected 0", scores[index])));
    }
    // f32 sums, of which no more than a few roundings show beside the tokens' lengths; gradients are rounded once to their dtype.
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
