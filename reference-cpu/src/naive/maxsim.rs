//! MaxSim, plainly.

use super::{add_scaled, dot, exactly};
use crate::error::{Error, Result};
use crate::host::positive;

/// Queries or documents in f64: any spans of dense rows `[tokens, dim]`.
#[derive(Debug, Clone, Copy)]
pub struct MaxsimSide<'a> {
    /// `[tokens, dim]`
    pub tokens: &'a [f64],
    /// First row and end of each text.
    pub spans: &'a [(usize, usize)],
    /// Which tokens count; all when absent.
    pub mask: Option<&'a [bool]>,
}

impl MaxsimSide<'_> {
    fn check(&self, what: &'static str, dim: usize) -> Result<()> {
        positive("token dimension", dim)?;
        let rows = self.tokens.len() / dim;
        exactly(what, self.tokens, &[rows, dim])?;
        for (index, &(start, end)) in self.spans.iter().enumerate() {
            if start > end || end > rows {
                let expected = format!("a span within {rows} rows, not before {start}");
                return Err(Error::Offset { what: "spans", index, found: end, expected });
            }
        }
        match self.mask {
            Some(mask) if mask.len() != rows => {
                Err(Error::Shape { what: "mask", found: format!("[{}]", mask.len()), expected: format!("[{rows}]") })
            }
            _ => Ok(()),
        }
    }

    fn span(&self, text: usize, bound: &'static str) -> Result<std::ops::Range<usize>> {
        self.spans.get(text).map(|&(start, end)| start..end).ok_or_else(|| Error::Index {
            what: bound,
            index: 0,
            found: i64::try_from(text).unwrap_or(i64::MAX),
            expected: format!("less than {}", self.spans.len()),
        })
    }

    fn keeps(&self, row: usize) -> bool {
        self.mask.is_none_or(|mask| mask[row])
    }

    /// Row `row`, normalised if asked, and the factor that was.
    fn row(&self, row: usize, dim: usize, normalize: bool) -> (Vec<f64>, f64) {
        let x = &self.tokens[row * dim..][..dim];
        let factor = if normalize { 1.0 / dot(x, x).max(1e-12).sqrt() } else { 1.0 };
        (x.iter().map(|x| x * factor).collect(), factor)
    }
}

/// Scores of the pairs `items` of (query, document), and the chosen document token (-1 for none) of each token of each item's query, one
/// item's after the other's.
///
/// # Errors
/// [`Shape`](Error::Shape), [`Offset`](Error::Offset) or [`Index`](Error::Index) for slices, spans or items that do not fit.
pub fn maxsim(
    queries: &MaxsimSide<'_>,
    docs: &MaxsimSide<'_>,
    dim: usize,
    items: &[(usize, usize)],
    normalize: bool,
) -> Result<(Vec<f64>, Vec<i32>)> {
    queries.check("queries", dim)?;
    docs.check("docs", dim)?;
    let (mut scores, mut argmax) = (Vec::new(), Vec::new());
    for &(query, doc) in items {
        let (query, doc) = (queries.span(query, "query of an item")?, docs.span(doc, "document of an item")?);
        let mut score = 0.0;
        for i in query {
            let mut best: Option<(f64, usize)> = None;
            for j in doc.clone() {
                if !queries.keeps(i) || !docs.keeps(j) {
                    continue;
                }
                let similarity = dot(&queries.row(i, dim, normalize).0, &docs.row(j, dim, normalize).0);
                if best.is_none_or(|(b, _)| similarity > b || (similarity.is_nan() && !b.is_nan())) {
                    best = Some((similarity, j - doc.start));
                }
            }
            score += best.map_or(0.0, |(similarity, _)| similarity);
            argmax.push(best.map_or(-1, |(_, j)| j as i32));
        }
        scores.push(score);
    }
    Ok((scores, argmax))
}

/// Gradients `(d_queries, d_docs)` of the scores, shaped like the tokens, for the gradients `d_scores` of the items' scores and the choices
/// `argmax` (see [`maxsim`]; those of an f32 forward may differ from it where similarities are nearly equal).
///
/// # Errors
/// As [`maxsim`], and [`Shape`](Error::Shape) or [`Index`](Error::Index) for `d_scores` and `argmax`.
pub fn maxsim_backward(
    queries: &MaxsimSide<'_>,
    docs: &MaxsimSide<'_>,
    dim: usize,
    items: &[(usize, usize)],
    normalize: bool,
    d_scores: &[f64],
    argmax: &[i32],
) -> Result<(Vec<f64>, Vec<f64>)> {
    queries.check("queries", dim)?;
    docs.check("docs", dim)?;
    exactly("d_scores", d_scores, &[items.len()])?;
    let (mut d_queries, mut d_docs) = (vec![0.0; queries.tokens.len()], vec![0.0; docs.tokens.len()]);
    let mut choices = argmax.iter().enumerate();
    for (&(query, doc), &d_score) in items.iter().zip(d_scores) {
        let (query, doc) = (queries.span(query, "query of an item")?, docs.span(doc, "document of an item")?);
        for i in query {
            let (index, &choice) = choices.next().ok_or_else(|| Error::Shape {
                what: "argmax",
                found: format!("[{}]", argmax.len()),
                expected: "one entry for each query token of each item".to_owned(),
            })?;
            let Ok(choice) = usize::try_from(choice) else { continue };
            if choice >= doc.len() {
                let expected = format!("less than {}", doc.len());
                return Err(Error::Index { what: "argmax", index, found: choice as i64, expected });
            }
            let j = doc.start + choice;
            let ((q, q_factor), (d, d_factor)) = (queries.row(i, dim, normalize), docs.row(j, dim, normalize));
            // d<q, d>/dx of q = x·f: f·(d - q·<q, d>) where the norm divides, f·d where it is held at its floor.
            let inner = if normalize { dot(&q, &d) } else { 0.0 };
            let along = |factor: f64| if factor < 1e6 { inner } else { 0.0 };
            let (dq, dd) = (&mut d_queries[i * dim..][..dim], &mut d_docs[j * dim..][..dim]);
            add_scaled(dq, d_score * q_factor, &d);
            add_scaled(dq, -d_score * q_factor * along(q_factor), &q);
            add_scaled(dd, d_score * d_factor, &q);
            add_scaled(dd, -d_score * d_factor * along(d_factor), &d);
        }
    }
    Ok((d_queries, d_docs))
}
