//! Gradients. Each token's gradient is summed by one task in the order of the slots, so no scheduling changes it.

use rayon::prelude::*;

use super::forward::check_length;
use super::items::{Items, Problem};
use super::tokens::{Tokens, inverse_norm};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::host::HostMatrixMut;
use crate::product::add_scaled;
use crate::vector::dot_product;

/// The gradients of the scores for their gradients `d_scores`, given the `argmax` of [`forward`](super::forward). `d_queries` and `d_docs` are
/// shaped like the tokens' rows, `[tokens, d]`, each made only when asked for, and overwritten; masked tokens get exact zeros.
/// Memory: f32 sums of one text a thread, and with `normalize` one f32 for each token.
///
/// # Errors
/// As [`forward`](super::forward), for the gradients also; [`Index`](Error::Index) when `argmax` names a token that its document does not
/// have, or that is masked.
pub fn backward<T: Element>(
    problem: &Problem<'_, T>,
    d_scores: &[f32],
    argmax: &[i32],
    d_queries: Option<&mut HostMatrixMut<'_, T>>,
    d_docs: Option<&mut HostMatrixMut<'_, T>>,
) -> Result<()> {
    let items = problem.items()?;
    check_length("d_scores", d_scores.len(), items.len())?;
    check_length("argmax", argmax.len(), problem.argmaxes()?)?;
    if let Some(d_queries) = &d_queries {
        d_queries.expect(problem.queries.rows(), problem.queries.dim())?;
    }
    if let Some(d_docs) = &d_docs {
        d_docs.expect(problem.docs.rows(), problem.docs.dim())?;
    }
    let pass = Pass { problem, items, d_scores, argmax };
    pass.check_argmax()?;
    if let Some(d_queries) = d_queries {
        let groups = pass.items.by_query();
        let docs = Source::new(&problem.docs, problem.normalize);
        each_text(&problem.queries, d_queries, problem.normalize, |query, sums, scratch| {
            for slot in groups.slots(query) {
                pass.chosen(slot, |token, doc_row, d_score| docs.add_to(doc_row, d_score, sums, token, scratch));
            }
        });
    }
    if let Some(d_docs) = d_docs {
        let groups = pass.items.by_doc();
        let queries = Source::new(&problem.queries, problem.normalize);
        each_text(&problem.docs, d_docs, problem.normalize, |doc, sums, scratch| {
            let start = problem.docs.span(doc).start;
            for slot in groups.slots(doc) {
                let span = problem.queries.span(pass.items.pair(slot).0);
                pass.chosen(slot, |token, doc_row, d_score| {
                    queries.add_to(span.start + token, d_score, sums, doc_row - start, scratch);
                });
            }
        });
    }
    Ok(())
}

struct Pass<'a, T> {
    problem: &'a Problem<'a, T>,
    items: Items<'a>,
    d_scores: &'a [f32],
    argmax: &'a [i32],
}

impl<T: Element> Pass<'_, T> {
    fn check_argmax(&self) -> Result<()> {
        (0..self.items.len()).into_par_iter().try_for_each(|slot| {
            let (query, doc) = self.items.pair(slot);
            let (queries, span) = (self.problem.queries.span(query), self.problem.docs.span(doc));
            let entries = self.items.argmax(&self.problem.queries, slot);
            for (token, index) in queries.zip(entries) {
                let found = self.argmax[index];
                let named = usize::try_from(found).ok();
                let fits = match named {
                    None => found == -1,
                    Some(named) => named < span.len() && self.problem.docs.keeps(span.start + named),
                };
                if !fits && self.problem.queries.keeps(token) {
                    let expected = format!("-1, or a kept token of a document of {}", span.len());
                    return Err(Error::Index { what: "argmax", index, found: i64::from(found), expected });
                }
            }
            Ok(())
        })
    }

    /// Calls `found(index of the query token, row of the document token, gradient)` for each choice of a slot.
    fn chosen(&self, slot: usize, mut found: impl FnMut(usize, usize, f32)) {
        let (query, doc) = self.items.pair(slot);
        let (queries, docs) = (self.problem.queries.span(query), self.problem.docs.span(doc));
        let choices = &self.argmax[self.items.argmax(&self.problem.queries, slot)];
        for (token, &choice) in choices.iter().enumerate() {
            if let Ok(choice) = usize::try_from(choice)
                && self.problem.queries.keeps(queries.start + token)
            {
                found(token, docs.start + choice, self.d_scores[slot]);
            }
        }
    }
}

/// The tokens of the other side.
struct Source<'a, T> {
    tokens: &'a Tokens<'a, T>,
    /// What each token is multiplied by, when tokens are normalised; 0 for masked ones, which are not read.
    scales: Option<Vec<f32>>,
}

impl<'a, T: Element> Source<'a, T> {
    fn new(tokens: &'a Tokens<'a, T>, normalize: bool) -> Self {
        let scale = |values: &mut Vec<f32>, row| {
            values.resize(tokens.dim(), 0.0);
            if !tokens.keeps(row) {
                return 0.0;
            }
            tokens.widen(row, values);
            inverse_norm(values).0 as f32
        };
        let scales = normalize.then(|| (0..tokens.rows()).into_par_iter().map_init(Vec::new, scale).collect());
        Self { tokens, scales }
    }

    /// Adds `d_score` times the token in `row` to row `target` of the sums.
    fn add_to(&self, row: usize, d_score: f32, sums: &mut [f32], target: usize, scratch: &mut [f32]) {
        let dim = self.tokens.dim();
        let scale = self.scales.as_ref().map_or(1.0, |scales| scales[row]);
        self.tokens.widen(row, scratch);
        add_scaled(&mut sums[target * dim..][..dim], d_score * scale, scratch);
    }
}

/// Fills the gradient of every text by `sum(text, sums, scratch of one token)`; the sums are of the tokens as they met the other side.
fn each_text<T: Element>(
    tokens: &Tokens<'_, T>,
    gradient: &mut HostMatrixMut<'_, T>,
    normalize: bool,
    sum: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let dim = tokens.dim();
    let buffers = || (Vec::new(), vec![0f32; dim]);
    tokens.cut(gradient).into_par_iter().enumerate().for_each_init(buffers, |(sums, scratch), (text, rows)| {
        sums.clear();
        sums.resize(rows.len() * dim, 0.0);
        // The group after the last text's is the rows of none, whose gradient is 0.
        let first = if text < tokens.count() {
            sum(text, sums, scratch);
            tokens.span(text).start
        } else {
            tokens.rows() - rows.len()
        };
        for (index, (target, source)) in rows.into_iter().zip(sums.chunks_mut(dim)).enumerate() {
            // What a token holds that no other chose must not reach its gradient through its norm.
            let chosen = source.iter().any(|sum| *sum != 0.0);
            if normalize && chosen && text < tokens.count() && tokens.keeps(first + index) {
                tokens.widen(first + index, scratch);
                through_norm(scratch, source);
            }
            T::narrow(source, target);
        }
    });
}

/// Turns the gradient of `x / √max(|x|², 1e-12)` into that of `x`, in f64: what is left beside the part along `x` may be small.
fn through_norm(x: &[f32], gradient: &mut [f32]) {
    let (inverse, divided) = inverse_norm(x);
    let along = if divided { dot_product(x, gradient) * inverse * inverse } else { 0.0 };
    for (g, &x) in gradient.iter_mut().zip(x) {
        *g = (inverse * (f64::from(*g) - f64::from(x) * along)) as f32;
    }
}
