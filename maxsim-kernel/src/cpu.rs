//! The same calls on host memory, by [`reference_cpu`]: f32 arithmetic, all cores of the surrounding rayon pool, the same bits on every run.
//!
//! [`Problem`] is that of the GPU; [`Plan`] and [`Inputs`] have the names, fields and argument order of their namesakes, with host matrices for device views
//! and `bool` masks. A side without a token is a matrix of no rows. The crate's page has an example; [`Ranking::of_scores`](crate::Ranking::of_scores) ranks
//! what [`Plan::forward`] scores.

use reference_cpu::maxsim;

pub use reference_cpu::{HostMatrix, HostMatrixMut};

use crate::error::Result;
use crate::problem::{Pairing, Problem, Spans, shape};

/// The element types: `f32`, `half::f16` and `half::bf16`.
pub trait Element: kernel_core::Element + reference_cpu::Element {}

impl<T: kernel_core::Element + reference_cpu::Element> Element for T {}

/// The inputs of a call.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, T> {
    /// Query tokens, one a row: `[Nq · Lq, d]` padded, `[total, d]` packed.
    pub queries: HostMatrix<'a, T>,
    /// Document tokens, likewise.
    pub docs: HostMatrix<'a, T>,
    /// Which query tokens to keep.
    pub query_mask: Option<&'a [bool]>,
    /// Which document tokens to keep.
    pub doc_mask: Option<&'a [bool]>,
}

/// As [`Plan`](crate::Plan), without a device.
#[derive(Clone, Debug)]
pub struct Plan {
    problem: Problem,
    query_offsets: Vec<usize>,
    doc_offsets: Vec<usize>,
}

impl Plan {
    /// Checks the problem.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with `ZeroSize` or `Shape` for an impossible problem.
    pub fn new(problem: Problem) -> Result<Self> {
        problem.check()?;
        let offsets = |spans: &Spans| {
            let ends = (0..spans.count()).map(|text| spans.span(text).end);
            std::iter::once(0).chain(ends).collect()
        };
        Ok(Self { query_offsets: offsets(&problem.queries), doc_offsets: offsets(&problem.docs), problem })
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// As [`Plan::forward`](crate::Plan::forward).
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with `DType` for another type of elements and `Shape` for tokens and masks, [`Error::Cpu`](crate::Error::Cpu)
    /// for other arguments that do not fit.
    pub fn forward<T: Element>(
        &self,
        inputs: &Inputs<'_, T>,
        scores: &mut [f32],
        argmax: Option<&mut [i32]>,
    ) -> Result<()> {
        Ok(maxsim::forward(&self.reference(inputs)?, scores, argmax)?)
    }

    /// As [`Plan::backward`](crate::Plan::backward).
    ///
    /// # Errors
    /// As [`Plan::forward`], and [`Error::Cpu`](crate::Error::Cpu) for an argmax beyond its document.
    pub fn backward<T: Element>(
        &self,
        inputs: &Inputs<'_, T>,
        d_scores: &[f32],
        argmax: &[i32],
        d_queries: Option<&mut HostMatrixMut<'_, T>>,
        d_docs: Option<&mut HostMatrixMut<'_, T>>,
    ) -> Result<()> {
        Ok(maxsim::backward(&self.reference(inputs)?, d_scores, argmax, d_queries, d_docs)?)
    }

    fn reference<'a, T: Element>(&'a self, inputs: &Inputs<'a, T>) -> Result<maxsim::Problem<'a, T>> {
        let Problem { queries, docs, dim, dtype, query_mask, doc_mask, .. } = &self.problem;
        if T::DTYPE != *dtype {
            let expected = dtype.to_string();
            return Err(kernel_core::Error::DType { what: "queries and docs", found: T::DTYPE, expected }.into());
        }
        let side = |rows: HostMatrix<'a, T>,
                    what,
                    spans: &Spans,
                    offsets: &'a [usize],
                    mask: Option<&'a [bool]>,
                    planned: bool| {
            if (rows.rows(), rows.cols()) != (spans.rows(), *dim) {
                return Err(shape(
                    what,
                    format!("[{}, {}]", rows.rows(), rows.cols()),
                    format!("[{}, {dim}]", spans.rows()),
                ));
            }
            if mask.is_some() != planned {
                let words = |is| if is { "a mask" } else { "no mask" };
                return Err(shape(what, words(mask.is_some()), format!("{}, as the plan was made", words(planned))));
            }
            let tokens = maxsim::Tokens::packed(rows, offsets)?;
            Ok(match mask {
                Some(mask) => tokens.with_mask(mask)?,
                None => tokens,
            })
        };
        Ok(maxsim::Problem {
            queries: side(inputs.queries, "queries", queries, &self.query_offsets, inputs.query_mask, *query_mask)?,
            docs: side(inputs.docs, "docs", docs, &self.doc_offsets, inputs.doc_mask, *doc_mask)?,
            pairing: match &self.problem.pairing {
                Pairing::Cross => maxsim::Pairing::Cross,
                Pairing::Candidates { per_query } => maxsim::Pairing::Candidates { per_query: *per_query },
                Pairing::Pairs => maxsim::Pairing::Pairs,
                Pairing::List(list) => maxsim::Pairing::List(list),
            },
            normalize: self.problem.normalize,
        })
    }
}
