//! What a search finds.

use std::cmp::Ordering;

use crate::error::Result;
use crate::problem::shape;

/// The best documents of each query, best first. Equal scores are in the order of the documents; NaN comes after every number. Copies of one
/// document score alike: all runs of a search add in one order.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// Documents of each query: k, or all when there are fewer.
    pub per_query: usize,
    /// Documents, `[Nq, per_query]`.
    pub docs: Vec<u32>,
    /// Their scores, `[Nq, per_query]`.
    pub scores: Vec<f32>,
}

impl Ranking {
    /// Ranks scores `[Nq, Nd]` that are there already, on the host. `docs` is Nd.
    ///
    /// # Errors
    /// `Shape` for scores that are no multiple of `docs`.
    pub fn of_scores(scores: &[f32], docs: usize, k: usize) -> Result<Self> {
        if !scores.len().is_multiple_of(docs) {
            return Err(shape("scores", format!("[{}]", scores.len()), format!("[Nq, {docs}]")));
        }
        let per_query = k.min(docs);
        let mut ranking = Self { per_query, docs: Vec::new(), scores: Vec::new() };
        for row in scores.chunks(docs.max(1)) {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| match (row[a].is_nan(), row[b].is_nan()) {
                (false, false) => row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b)),
                (a_is, b_is) => a_is.cmp(&b_is).then(a.cmp(&b)),
            });
            ranking.docs.extend(order.iter().take(per_query).map(|&doc| doc as u32));
            ranking.scores.extend(order.iter().take(per_query).map(|&doc| row[doc]));
        }
        Ok(ranking)
    }

    /// Documents and scores of one query, best first; empty for a query that there is not.
    pub fn query(&self, query: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let from = query.saturating_mul(self.per_query).min(self.docs.len());
        let to = (from + self.per_query).min(self.docs.len());
        self.docs[from..to].iter().map(|&doc| doc as usize).zip(self.scores[from..to].iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rankings_are_stable_and_put_nan_last() {
        let scores = [1.0, f32::NAN, 3.0, 1.0, f32::NEG_INFINITY, 3.0];
        let ranking = Ranking::of_scores(&scores, 6, 6).unwrap();
        assert_eq!(ranking.docs, [2, 5, 0, 3, 4, 1]);
        assert_eq!(Ranking::of_scores(&scores, 3, 9).unwrap().docs, [2, 0, 1, 2, 0, 1]);
        let top = Ranking::of_scores(&scores, 6, 2).unwrap();
        assert_eq!(top.query(0).collect::<Vec<_>>(), [(2, 3.0), (5, 3.0)]);
        assert_eq!(top.query(1).count(), 0);
        assert!(Ranking::of_scores(&scores, 4, 2).unwrap_err().to_string().contains("[Nq, 4]"));
        assert!(Ranking::of_scores(&[], 0, 2).unwrap().docs.is_empty());
    }
}
