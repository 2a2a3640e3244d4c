//! What is computed, and how.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kernel_core::DType;

use crate::error::{Error, Result};
pub(crate) use crate::spans::Spans;
use crate::tiles::TILE_ROWS;

/// The largest token dimension.
pub const MAX_DIM: usize = 1024;
/// Rows of a text, 0 of one that there is not.
fn length(spans: &Spans, index: usize) -> usize {
    if index < spans.count() { spans.length(index) } else { 0 }
}

/// Which queries meet which documents; Nq and Nd are their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pairing {
    /// Every query meets every document: scores `[Nq, Nd]`, argmax `[Nq, Nd, Lq]`.
    #[default]
    Cross,
    /// Query `q` meets documents `q * per_query + k`, of which there are Nq · `per_query` (knowledge distillation, reranking): scores
    /// `[Nq, K]`, argmax `[Nq, K, Lq]`.
    Candidates {
        /// K, the documents of one query.
        per_query: usize,
    },
    /// Query `i` meets document `i`: scores `[Nq]`, argmax `[Nq, Lq]`.
    Pairs,
    /// The queries and documents named, in this order: one score each, and an argmax for each token of its query.
    List(Arc<[(usize, usize)]>),
}

/// Texts, which of them meet, and how tokens are compared.
///
/// With packed queries the Lq of an argmax layout is each query's own: the entries of a score follow those of the score before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The queries.
    pub queries: Spans,
    /// The documents.
    pub docs: Spans,
    /// Token dimension d.
    pub dim: usize,
    /// Element type of tokens and gradients. Scores are f32.
    pub dtype: DType,
    /// Which meet.
    pub pairing: Pairing,
    /// Divide each token by √max(|x|², 1e-12).
    pub normalize: bool,
    /// Whether calls come with a mask of the query tokens.
    pub query_mask: bool,
    /// Whether calls come with a mask of the document tokens.
    pub doc_mask: bool,
}

impl Problem {
    /// `queries` against `docs` as `pairing` says, without masks or normalisation.
    pub fn new(queries: Spans, docs: Spans, dim: usize, dtype: DType, pairing: Pairing) -> Self {
        Self { queries, docs, dim, dtype, pairing, normalize: false, query_mask: false, doc_mask: false }
    }

    /// Every query against every document: `[Nq, Lq, d]` × `[Nd, Ld, d]` → `[Nq, Nd]`, or packed likewise.
    pub fn cross(queries: Spans, docs: Spans, dim: usize, dtype: DType) -> Self {
        Self::new(queries, docs, dim, dtype, Pairing::Cross)
    }

    /// Each query against its own K documents: `[Nq, Lq, d]` × `[Nq, K, Ld, d]` → `[Nq, K]`.
    pub fn candidates(queries: Spans, docs: Spans, per_query: usize, dim: usize, dtype: DType) -> Self {
        Self::new(queries, docs, dim, dtype, Pairing::Candidates { per_query })
    }

    /// Query i against document i: `[B, Lq, d]` × `[B, Ld, d]` → `[B]`.
    pub fn pairs(queries: Spans, docs: Spans, dim: usize, dtype: DType) -> Self {
        Self::new(queries, docs, dim, dtype, Pairing::Pairs)
    }

    /// The (query, document) pairs of a list → one score each.
    pub fn list(
        queries: Spans,
        docs: Spans,
        pairs: impl Into<Arc<[(usize, usize)]>>,
        dim: usize,
        dtype: DType,
    ) -> Self {
        Self::new(queries, docs, dim, dtype, Pairing::List(pairs.into()))
    }

    /// The same with tokens normalised.
    #[must_use]
    pub fn with_normalize(self, normalize: bool) -> Self {
        Self { normalize, ..self }
    }

    /// The same with masks.
    #[must_use]
    pub fn with_masks(self, queries: bool, docs: bool) -> Self {
        Self { query_mask: queries, doc_mask: docs, ..self }
    }

    /// Number of scores.
    pub fn scores(&self) -> usize {
        match &self.pairing {
            Pairing::Cross => self.queries.count().saturating_mul(self.docs.count()),
            Pairing::Candidates { .. } => self.docs.count(),
            Pairing::Pairs => self.queries.count(),
            Pairing::List(list) => list.len(),
        }
    }

    /// Number of argmax entries: one for each token of each score's query. Where that is 0, calls on the GPU take one entry that is not used.
    pub fn argmaxes(&self) -> usize {
        match &self.pairing {
            Pairing::Cross => self.queries.rows().saturating_mul(self.docs.count()),
            Pairing::Candidates { per_query } => self.queries.rows().saturating_mul(*per_query),
            Pairing::Pairs => self.queries.rows(),
            Pairing::List(list) => list.iter().map(|&(q, _)| length(&self.queries, q)).fold(0, usize::saturating_add),
        }
    }

    /// Query and document of a score, which must be one of the problem's.
    ///
    /// # Panics
    /// For a list as an index of a slice does, where there is no such score, and where there is nothing to divide by: a cross without documents, or no
    /// candidates. Else it says where that score would be.
    pub fn pair(&self, slot: usize) -> (usize, usize) {
        match &self.pairing {
            Pairing::Cross => (slot / self.docs.count(), slot % self.docs.count()),
            Pairing::Candidates { per_query } => (slot / per_query, slot),
            Pairing::Pairs => (slot, slot),
            Pairing::List(list) => list[slot],
        }
    }

    fn find_pair(&self, slot: usize) -> Option<(usize, usize)> {
        match &self.pairing {
            Pairing::List(list) => list.get(slot).copied(),
            Pairing::Candidates { per_query: 0 } => None,
            _ => Some(self.pair(slot)),
        }
    }

    /// Floating-point operations of the scores: 2·d for each pair of tokens that meet (masks not counted). A pair of a text that there is not
    /// counts for nothing, here and in [`Problem::argmaxes`].
    pub fn forward_flop(&self) -> f64 {
        let pairs = match &self.pairing {
            Pairing::Cross => self.queries.rows() as f64 * self.docs.rows() as f64,
            _ => (0..self.scores())
                .filter_map(|slot| self.find_pair(slot))
                .map(|(q, d)| length(&self.queries, q) as f64 * length(&self.docs, d) as f64)
                .sum(),
        };
        2.0 * pairs * self.dim as f64
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.queries.check("queries")?;
        self.docs.check("docs")?;
        if self.dim == 0 {
            return Err(kernel_core::Error::ZeroSize { what: "dim" }.into());
        }
        if self.dim > MAX_DIM {
            return Err(shape("dim", self.dim, format!("at most {MAX_DIM}")));
        }
        let (nq, nd) = (self.queries.count(), self.docs.count());
        match &self.pairing {
            Pairing::Cross => {}
            Pairing::Candidates { per_query } => {
                if *per_query == 0 {
                    return Err(kernel_core::Error::ZeroSize { what: "K, the documents of one query" }.into());
                }
                if nq.checked_mul(*per_query) != Some(nd) {
                    return Err(shape(
                        "docs",
                        format!("{nd} documents"),
                        format!("{per_query} for each of {nq} queries"),
                    ));
                }
            }
            Pairing::Pairs if nq != nd => {
                return Err(shape("docs", format!("{nd} documents"), format!("{nq}, one a query")));
            }
            Pairing::Pairs => {}
            Pairing::List(list) => {
                if list.is_empty() {
                    return Err(kernel_core::Error::ZeroSize { what: "pairs in the list" }.into());
                }
                for (index, &(q, d)) in list.iter().enumerate() {
                    if q >= nq || d >= nd {
                        let expected = format!("a query below {nq} and a document below {nd}");
                        return Err(shape("pair list", format!("entry {index} = ({q}, {d})"), expected));
                    }
                }
            }
        }
        // Kernels number the pieces of TILE_ROWS query rows that each score has, all together.
        let pieces = self.queries.longest().div_ceil(TILE_ROWS).max(1);
        if !matches!(self.pairing, Pairing::Cross) && self.scores().saturating_mul(pieces) > i32::MAX as usize {
            let found = format!("{} of at most {pieces} times {TILE_ROWS} query tokens", self.scores());
            return Err(shape("scores", found, format!("at most {} such pieces", i32::MAX)));
        }
        if self.argmaxes().checked_mul(size_of::<i32>()).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            return Err(shape("argmax", format!("[{nq}, {nd}, Lq]"), "fewer than 2^63 bytes"));
        }
        Ok(())
    }
}

/// Which kernels compute the scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Route {
    /// The fastest that the device and the dtype allow.
    #[default]
    Auto,
    /// On Hopper, f16 and bf16: tensor cores fed by the bulk copy engine, by warpgroup products but where few query rows
    /// meet many documents.
    Hopper,
    /// On any GPU from sm_80, every dtype: f16 and bf16 on tensor cores (rows that begin at no multiple of 16 bytes though d is a multiple of 8:
    /// on f32 units, many times slower), f32 in f32.
    Portable,
}

/// How gradients are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackwardRoute {
    /// `LowMemory`: on an H200 it was the faster in every shape measured.
    #[default]
    Auto,
    /// One pass over the choices; the documents' gradient in f32 by atomic additions, in a workspace as large as their tokens in f32. Bits may
    /// differ from run to run.
    Unified,
    /// Every token's gradient is summed by its owner in a fixed order: the same bits on every run, and no f32 copy of a gradient.
    LowMemory,
    /// No gradients: nothing is held for them, and [`Plan::backward`](crate::Plan::backward) is an error.
    None,
}

macro_rules! names {
    ($type:ident, $what:literal, $($variant:ident = $name:literal),+) => {
        impl $type {
            /// Every one.
            pub const ALL: &'static [$type] = &[$($type::$variant),+];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($type::$variant => $name),+ })
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($name => Ok($type::$variant),)+
                    _ => Err(shape($what, format!("{text:?}"), format!("one of {}", [$($name),+].join(", ")))),
                }
            }
        }
    };
}
names!(Route, "route", Auto = "auto", Hopper = "hopper", Portable = "portable");
names!(BackwardRoute, "backward route", Auto = "auto", Unified = "unified", LowMemory = "lowmemory", None = "none");

/// How to compute it; the default is right for nearly everyone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Options {
    /// Kernels of the scores.
    pub route: Route,
    /// Kernels of the gradients.
    pub backward: BackwardRoute,
}

pub(crate) fn shape(what: &'static str, found: impl ToString, expected: impl Into<String>) -> Error {
    kernel_core::Error::Shape { what, found: found.to_string(), expected: expected.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spans::MAX_TOKENS;

    fn message(problem: &Problem) -> String {
        problem.check().unwrap_err().to_string()
    }

    #[test]
    fn names_read_as_they_print() {
        for route in Route::ALL {
            assert_eq!(route.to_string().parse::<Route>().unwrap(), *route);
        }
        for route in BackwardRoute::ALL {
            assert_eq!(route.to_string().parse::<BackwardRoute>().unwrap(), *route);
        }
        let text = "fast".parse::<Route>().unwrap_err().to_string();
        assert!(text.contains("\"fast\"") && text.contains("portable"), "{text}");
    }

    #[test]
    fn impossible_problems_are_named() {
        let good = Problem::cross(Spans::padded(2, 3), Spans::padded(4, 5), 8, DType::F32);
        assert!(good.check().is_ok());
        assert!(message(&Problem { dim: 0, ..good.clone() }).contains("dim"));
        assert!(message(&Problem { dim: 1025, ..good.clone() }).contains("1024"));
        assert!(message(&Problem { queries: Spans::padded(0, 3), ..good.clone() }).contains("queries"));
        assert!(
            Problem { queries: Spans::padded(3, 0), docs: Spans::of_lengths([0, 0]), ..good.clone() }.check().is_ok()
        );
        assert!(
            message(&Problem { docs: Spans::packed(vec![0, 4, 2]), ..good.clone() }).contains("offset 2 = 2 after 4")
        );
        assert!(message(&Problem { docs: Spans::packed(vec![1, 4]), ..good.clone() }).contains("first offset of 1"));
        assert!(message(&Problem { pairing: Pairing::Pairs, ..good.clone() }).contains("4 documents"));
        let list = Pairing::List(vec![(0, 0), (2, 1)].into());
        assert!(message(&Problem { pairing: list, ..good.clone() }).contains("entry 1 = (2, 1)"));
        let candidates = Pairing::Candidates { per_query: 3 };
        assert!(message(&Problem { pairing: candidates, ..good }).contains("3 for each of 2 queries"));
    }

    #[test]
    fn scores_are_bounded_with_the_pieces_of_their_queries() {
        let pairs = |length, scores: usize| {
            let queries = Spans::of_lengths([1, length]);
            Problem::list(queries, Spans::padded(1, 1), vec![(0, 0); scores], 8, DType::F32)
        };
        // 4096 pieces for one query, so for every score.
        assert!(pairs(MAX_TOKENS, 524_287).check().is_ok());
        assert!(message(&pairs(MAX_TOKENS, 524_288)).contains("at most 2147483647 such pieces"));
        assert!(pairs(64, 524_288).check().is_ok());
    }

    #[test]
    fn sizes_of_what_is_not_checked_do_not_panic() {
        let list = vec![(0, 0), (7, 0), (0, usize::MAX)];
        let problem = Problem::list(Spans::padded(2, 3), Spans::padded(4, 5), list, 8, DType::F32);
        assert_eq!((problem.scores(), problem.argmaxes(), problem.forward_flop()), (3, 6, 2.0 * 8.0 * 15.0));
        let endless =
            Problem::list(Spans::padded(3, usize::MAX), Spans::padded(4, 5), vec![(1, 0), (2, 0)], 8, DType::F32);
        assert_eq!(endless.argmaxes(), usize::MAX);
        let candidates = Problem::candidates(Spans::padded(2, 3), Spans::padded(4, 5), 0, 8, DType::F32);
        assert_eq!(candidates.argmaxes(), 0);
        assert_eq!(candidates.forward_flop(), 0.0);
    }

    #[test]
    fn sizes_follow_the_layout() {
        let queries = Spans::of_lengths([3, 0, 2]);
        let docs = Spans::padded(6, 4);
        let problem = |pairing| Problem::new(queries.clone(), docs.clone(), 8, DType::F32, pairing);
        let cross = problem(Pairing::Cross);
        assert_eq!((cross.scores(), cross.argmaxes()), (18, 30));
        let candidates = problem(Pairing::Candidates { per_query: 2 });
        assert_eq!((candidates.scores(), candidates.argmaxes(), candidates.pair(5)), (6, 10, (2, 5)));
        let list = problem(Pairing::List(vec![(0, 5), (1, 0), (0, 1)].into()));
        assert_eq!((list.scores(), list.argmaxes(), list.pair(2)), (3, 6, (0, 1)));
        assert_eq!(list.forward_flop(), 2.0 * 8.0 * 24.0);
    }
}
