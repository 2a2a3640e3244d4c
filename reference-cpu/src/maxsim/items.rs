//! Which query meets which document, and where the result goes: every layout is a list of (query, document, slot).

use std::ops::Range;

use super::tokens::Tokens;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::host::positive;

/// Which queries meet which documents; Nq and Nd are their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing<'a> {
    /// Every query meets every document: scores `[Nq, Nd]`, argmax `[Nq, Nd, Lq]`.
    Cross,
    /// Query `q` meets documents `q * per_query + k`, of which there are Nq · `per_query`: scores `[Nq, K]`, argmax `[Nq, K, Lq]`.
    Candidates {
        /// K, the documents of one query.
        per_query: usize,
    },
    /// Query `i` meets document `i`: scores `[Nq]`, argmax `[Nq, Lq]`.
    Pairs,
    /// The queries and documents named, in this order: one score each, and an argmax for each token of its query.
    List(&'a [(usize, usize)]),
}

/// Inputs of the scores.
///
/// With packed queries, the Lq of an argmax layout is each query's own: the entries of a score follow those of the score before.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a, T> {
    /// The queries.
    pub queries: Tokens<'a, T>,
    /// The documents.
    pub docs: Tokens<'a, T>,
    /// Which meet.
    pub pairing: Pairing<'a>,
    /// Divide each token by its norm.
    pub normalize: bool,
}

impl<'a, T: Element> Problem<'a, T> {
    /// Number of scores.
    ///
    /// # Errors
    /// [`Error::Shape`] for unequal token dimensions or numbers of texts that the pairing cannot pair, [`Error::ZeroSize`] for an empty
    /// pairing, [`Error::Index`] for a list that names what is not there.
    pub fn scores(&self) -> Result<usize> {
        Ok(self.items()?.len())
    }

    /// Number of argmax entries.
    ///
    /// # Errors
    /// As [`Problem::scores`].
    pub fn argmaxes(&self) -> Result<usize> {
        let items = self.items()?;
        Ok(items.argmax(&self.queries, items.len() - 1).end)
    }

    /// Checks the problem; gives its items.
    pub(super) fn items(&self) -> Result<Items<'a>> {
        let (nq, nd) = (self.queries.count(), self.docs.count());
        let shape = |what, found: String, expected: String| Err(Error::Shape { what, found, expected });
        if self.docs.dim() != self.queries.dim() {
            let expected = format!("[tokens, {}], as the queries", self.queries.dim());
            return shape(self.docs.what(), format!("[{}, {}]", self.docs.rows(), self.docs.dim()), expected);
        }
        if i32::try_from(self.docs.longest()).is_err() {
            let expected = format!("documents of at most {} tokens, which argmax can name", i32::MAX);
            return shape(self.docs.what(), format!("a document of {} tokens", self.docs.longest()), expected);
        }
        let documents = format!("{nd} documents");
        let mut items = Items { pairing: self.pairing, queries: nq, docs: nd, bases: Vec::new() };
        match self.pairing {
            Pairing::Cross => {
                // Masks and scores are slices, so only their number can overflow.
                let tokens = self.queries.rows().max(nq);
                if tokens.checked_mul(nd).is_none() {
                    return shape("scores", format!("[{nq}, {nd}]"), "a size that fits usize".to_owned());
                }
            }
            Pairing::Candidates { per_query } => {
                positive("K, the documents of one query", per_query)?;
                if nq.checked_mul(per_query) != Some(nd) {
                    return shape(self.docs.what(), documents, format!("{per_query} for each of {nq} queries"));
                }
            }
            Pairing::Pairs if nq != nd => return shape(self.docs.what(), documents, format!("{nq}, one a query")),
            Pairing::Pairs => {}
            Pairing::List(list) => {
                positive("pairs in the list", list.len())?;
                let mut base = 0usize;
                for (index, &(q, d)) in list.iter().enumerate() {
                    for (what, found, bound) in
                        [("query of the pair list", q, nq), ("document of the pair list", d, nd)]
                    {
                        if found >= bound {
                            let found = i64::try_from(found).unwrap_or(i64::MAX);
                            return Err(Error::Index { what, index, found, expected: format!("less than {bound}") });
                        }
                    }
                    items.bases.push(base);
                    base = base.saturating_add(self.queries.span(q).len());
                }
            }
        }
        Ok(items)
    }
}

/// A checked pairing.
pub(super) struct Items<'a> {
    pub(super) pairing: Pairing<'a>,
    pub(super) queries: usize,
    pub(super) docs: usize,
    /// Where the argmax of each slot of a list begins.
    bases: Vec<usize>,
}

impl Items<'_> {
    /// Number of scores, at least 1.
    pub(super) fn len(&self) -> usize {
        match self.pairing {
            Pairing::Cross => self.queries * self.docs,
            Pairing::Candidates { .. } => self.docs,
            Pairing::Pairs => self.queries,
            Pairing::List(list) => list.len(),
        }
    }

    /// Query and document of a slot.
    pub(super) fn pair(&self, slot: usize) -> (usize, usize) {
        match self.pairing {
            Pairing::Cross => (slot / self.docs, slot % self.docs),
            Pairing::Candidates { per_query } => (slot / per_query, slot),
            Pairing::Pairs => (slot, slot),
            Pairing::List(list) => list[slot],
        }
    }

    /// Argmax entries of a slot; they follow each other in the order of the slots.
    pub(super) fn argmax<T: Element>(&self, queries: &Tokens<'_, T>, slot: usize) -> Range<usize> {
        let (query, doc) = self.pair(slot);
        let span = queries.span(query);
        let base = match self.pairing {
            Pairing::Cross => span.start * self.docs + doc * span.len(),
            Pairing::Candidates { per_query } => span.start * per_query + slot % per_query * span.len(),
            Pairing::Pairs => span.start,
            Pairing::List(_) => self.bases[slot],
        };
        base..base + span.len()
    }

    /// Slots of each query.
    pub(super) fn by_query(&self) -> Groups {
        match self.pairing {
            Pairing::Cross => Groups::Regular { first: self.docs, step: 1, count: self.docs },
            Pairing::Candidates { per_query } => Groups::Regular { first: per_query, step: 1, count: per_query },
            Pairing::Pairs => Groups::Regular { first: 1, step: 1, count: 1 },
            Pairing::List(list) => Groups::listed(self.queries, list.iter().map(|pair| pair.0)),
        }
    }

    /// Slots of each document.
    pub(super) fn by_doc(&self) -> Groups {
        match self.pairing {
            Pairing::Cross => Groups::Regular { first: 1, step: self.docs, count: self.queries },
            Pairing::Candidates { .. } | Pairing::Pairs => Groups::Regular { first: 1, step: 1, count: 1 },
            Pairing::List(list) => Groups::listed(self.docs, list.iter().map(|pair| pair.1)),
        }
    }
}

/// The slots in which each text takes part, ascending.
pub(super) enum Groups {
    /// Text `i` has slots `i * first + j * step`, j in 0..count.
    Regular { first: usize, step: usize, count: usize },
    /// Text `i` has `slots[starts[i]..starts[i + 1]]`.
    Listed { starts: Vec<usize>, slots: Vec<usize> },
}

impl Groups {
    fn listed(texts: usize, members: impl Iterator<Item = usize> + Clone) -> Self {
        let mut starts = vec![0; texts + 1];
        members.clone().for_each(|text| starts[text + 1] += 1);
        for text in 0..texts {
            starts[text + 1] += starts[text];
        }
        let mut next = starts.clone();
        let mut slots = vec![0; starts[texts]];
        for (slot, text) in members.enumerate() {
            slots[next[text]] = slot;
            next[text] += 1;
        }
        Self::Listed { starts, slots }
    }

    pub(super) fn slots(&self, text: usize) -> impl Iterator<Item = usize> + '_ {
        let count = match self {
            Self::Regular { count, .. } => *count,
            Self::Listed { starts, .. } => starts[text + 1] - starts[text],
        };
        (0..count).map(move |j| match self {
            Self::Regular { first, step, .. } => text * first + j * step,
            Self::Listed { starts, slots } => slots[starts[text] + j],
        })
    }
}
