//! The gradients: which kernels, in which order.

use kernel_core::Gpu;

use crate::error::Result;
use crate::kernels::{
    BackwardDocs, BackwardQueries, Choosers, FinishGradients, FinishParams, GradientParams, ItemsArg, MOST_PLACES,
    MeetingsArg, TextsArg, places_log2,
};
use crate::problem::{BackwardRoute, Pairing, Problem, shape};
use crate::programs;
use crate::rows::RowAccess;
use crate::workspace::{docs_of_query, splits};

/// One call. Of `texts`, `meetings` and `gradients` the queries' is first; gradients are address and row stride, address 0 when not wanted.
pub(crate) struct Call<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) problem: &'a Problem,
    pub(crate) items: ItemsArg,
    pub(crate) texts: [TextsArg; 2],
    pub(crate) meetings: [MeetingsArg; 2],
    pub(crate) d_scores: u64,
    pub(crate) argmax: u64,
    pub(crate) gradients: [(u64, u64); 2],
    pub(crate) scratch: u64,
    pub(crate) aligned: bool,
}

/// Kernels for one way of reading rows.
struct Kernels {
    access: RowAccess,
    queries: BackwardQueries,
    /// The documents' gradient too, by atomics.
    both: Option<BackwardQueries>,
    docs: BackwardDocs,
    finish: FinishGradients,
}

pub(crate) struct Backward {
    route: BackwardRoute,
    gpu: Gpu,
    splits: usize,
    /// Places, as [`places_log2`] counts them, of the query tokens that may choose in one document: the most of any.
    places: usize,
    /// Query tokens that may choose in one document, the most of any but for a list's, where it is a bound.
    tokens: usize,
    /// Loaded when first used: a plan that is never asked for gradients compiles none.
    kernels: Vec<Kernels>,
}

impl Backward {
    pub(crate) fn new(gpu: &Gpu, route: BackwardRoute, problem: &Problem) -> Self {
        let meetings = most_meetings(problem);
        let places = meetings.saturating_mul(1 << places_log2(problem.queries.longest()));
        // What pads short queries to places fills no lists.
        let tokens = match problem.pairing {
            Pairing::Cross => problem.queries.rows(),
            _ => meetings.saturating_mul(problem.queries.longest()),
        };
        Self { route, gpu: gpu.clone(), splits: splits(problem), places, tokens, kernels: Vec::new() }
    }

    pub(crate) fn route(&self) -> BackwardRoute {
        self.route
    }

    fn kernels(&mut self, problem: &Problem, access: RowAccess) -> Result<&Kernels> {
        let at = match self.kernels.iter().position(|kernels| kernels.access == access) {
            Some(at) => at,
            None => {
                let (gpu, dtype) = (&self.gpu, problem.dtype);
                let (unified, choosers) = (self.route == BackwardRoute::Unified, Choosers::of_places(self.places));
                let mut variants = vec![programs::backward_docs(dtype, access, choosers)];
                let of_queries = |docs| programs::backward_queries(dtype, access, docs);
                variants.extend(unified.then(|| of_queries(true)).into_iter().chain([of_queries(false)]));
                variants.extend(FinishGradients::variants(dtype, access));
                gpu.compile(&variants)?;
                self.kernels.push(Kernels {
                    access,
                    queries: BackwardQueries::new(gpu, dtype, access, false)?,
                    both: unified.then(|| BackwardQueries::new(gpu, dtype, access, true)).transpose()?,
                    docs: BackwardDocs::new(gpu, dtype, access, choosers)?,
                    finish: FinishGradients::new(gpu, dtype, access)?,
                });
                self.kernels.len() - 1
            }
        };
        Ok(&self.kernels[at])
    }

    /// # Safety
    /// The addresses in `call` must be live memory of the sizes that its problem says.
    pub(crate) unsafe fn run(&mut self, call: &Call<'_>) -> Result<()> {
        let Call { problem, gpu, .. } = *call;
        let access = RowAccess::choose(problem.dtype, problem.dim, call.aligned);
        let (split, places, tokens) = (self.splits, self.places, self.tokens);
        let (stream, info) = (gpu.stream(), gpu.info());
        let kernels = self.kernels(problem, access)?;
        let (queries, longest_query) = (problem.queries.count(), problem.queries.longest());
        let rows = [problem.queries.rows(), problem.docs.rows()];
        let [wants_queries, wants_docs] = [0, 1].map(|side| call.gradients[side].0 != 0 && rows[side] > 0);
        if wants_docs && kernels.both.is_none() && places > MOST_PLACES {
            let expected =
                format!("at most {MOST_PLACES} in queries as long as the longest, rounded up to a power of two");
            return Err(shape("query tokens beside one document", places, expected));
        }
        let params = |side: usize, splits: usize, sharers: usize| GradientParams {
            items: call.items,
            queries: call.texts[0],
            docs: call.texts[1],
            meetings: call.meetings[side],
            dim: problem.dim as u32,
            d_scores: call.d_scores,
            argmax: call.argmax,
            gradient: call.gradients[side].0,
            gradient_stride: call.gradients[side].1,
            scratch: call.scratch,
            splits: splits as u32,
            behind_queries: u32::from(side == 1 && wants_queries),
            sharers: sharers as u32,
            choosing: 0,
            parts: 0,
            pieces: 0,
        };
        let finish = |side: usize, tokens: usize, splits: usize| FinishParams {
            texts: call.texts[side],
            tokens: tokens as u64,
            dim: problem.dim as u32,
            splits: splits as u32,
            scratch: call.scratch,
            gradient: call.gradients[side].0,
            gradient_stride: call.gradients[side].1,
        };
        // SAFETY (of all launches below): the caller's promise; `scratch` is sized for the route and the splits.
        if let (Some(both), true) = (&kernels.both, wants_docs) {
            // SAFETY: as above.
            unsafe {
                kernels.finish.clear(stream, info, call.scratch, rows[1] as u64 * problem.dim as u64)?;
                if rows[0] > 0 {
                    both.launch(gpu, queries, longest_query, &params(0, 1, 1))?;
                }
                kernels.finish.finish(stream, info, &finish(1, rows[1], 1))?;
            }
            return Ok(());
        }
        if wants_queries {
            // In the unified route the scratch may be smaller than the parts of a cut sum.
            let split = if kernels.both.is_some() { 1 } else { split };
            let sharers = BackwardQueries::sharers(info, rows[0] * split, docs_of_query(problem) / split);
            // SAFETY: as above.
            unsafe { kernels.queries.launch(gpu, queries, longest_query, &params(0, split, sharers)) }?;
            if split > 1 {
                // SAFETY: as above.
                unsafe { kernels.finish.finish(stream, info, &finish(0, rows[0], split)) }?;
            }
        }
        if wants_docs {
            let params = params(1, places_log2(longest_query) as usize, 1);
            // SAFETY: as above.
            unsafe { kernels.docs.launch(gpu, &problem.docs, tokens, &params) }?;
        }
        Ok(())
    }
}

/// Queries that meet one document, the most of any.
fn most_meetings(problem: &Problem) -> usize {
    match &problem.pairing {
        Pairing::Cross => problem.queries.count(),
        Pairing::Candidates { .. } | Pairing::Pairs => 1,
        Pairing::List(list) => {
            let mut meetings = vec![0usize; problem.docs.count()];
            list.iter().for_each(|&(_, doc)| meetings[doc] += 1);
            meetings.into_iter().max().unwrap_or(0)
        }
    }
}
