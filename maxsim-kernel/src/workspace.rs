//! The device memory of a plan, sized ahead.

use kernel_core::{Layout, Region};

use crate::kernels::join_bytes;
use crate::problem::{BackwardRoute, Pairing, Problem, Spans};
use crate::tiles::Division;

/// Query tokens that the queries' gradient is summed for at once, at least: fewer are cut over documents.
const PARALLEL_TOKENS: usize = 4096;
/// Documents that one part of a cut sum has, at least.
const DOCS_PER_SPLIT: usize = 64;

/// Mask and norms of one side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SideRegions {
    pub(crate) ends: Region,
    pub(crate) firsts: Region,
    pub(crate) bits: Region,
    pub(crate) scales: Region,
    /// Rows padded to a multiple of 16 bytes.
    pub(crate) padded: Region,
}

/// The regions of a plan's workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions {
    pub(crate) queries: SideRegions,
    pub(crate) docs: SideRegions,
    /// Costs of documents, summed.
    pub(crate) prefix: Region,
    pub(crate) partials: Region,
    pub(crate) scratch: Region,
    /// Of [`crate::kernels::join_bytes`].
    pub(crate) joins: Region,
}

impl Regions {
    /// Pure arithmetic. `padded`: elements of a padded row, when rows are padded.
    pub(crate) fn layout(
        problem: &Problem,
        division: &Division,
        padded: Option<usize>,
        backward: BackwardRoute,
    ) -> (Layout, Self) {
        let mut layout = Layout::new();
        let when = |needed: bool, count: usize| if needed { count } else { 0 };
        let mut side = |spans: &Spans, mask: bool| SideRegions {
            ends: layout.take_elements::<u32>(when(mask, spans.count())),
            firsts: layout.take_elements::<i32>(when(mask, spans.count())),
            // As `Texts::bit_word` places them, and what a tile reads beyond.
            bits: layout.take_elements::<u32>(when(mask, spans.rows() / 32 + spans.count() + 16)),
            scales: layout.take_elements::<f32>(when(problem.normalize, spans.rows())),
            padded: layout
                .take(padded.map_or(0, |dim| spans.matrix_rows().saturating_mul(dim * problem.dtype.size_bytes()))),
        };
        let (queries, docs) = (side(&problem.queries, problem.query_mask), side(&problem.docs, problem.doc_mask));
        let entries = match problem.pairing {
            Pairing::Cross => problem.docs.count(),
            _ => problem.scores(),
        };
        let splits = splits(problem);
        let scratch = match backward {
            BackwardRoute::Unified => problem.docs.rows(),
            BackwardRoute::Auto | BackwardRoute::LowMemory => when(splits > 1, splits * problem.queries.rows()),
        };
        let regions = Self {
            queries,
            docs,
            prefix: layout.take_elements::<u64>(when(problem.doc_mask, entries + 1)),
            partials: layout.take_elements::<f32>(division.partials(problem)),
            scratch: layout.take_elements::<f32>(scratch.saturating_mul(problem.dim)),
            joins: layout.take(when(division.streamed, join_bytes(&problem.docs, division.blocks))),
        };
        (layout, regions)
    }
}

/// Parts that the queries' gradient is cut into over the documents that a query meets.
pub(crate) fn splits(problem: &Problem) -> usize {
    (PARALLEL_TOKENS / problem.queries.matrix_rows()).clamp(1, (docs_of_query(problem) / DOCS_PER_SPLIT).max(1))
}

/// Documents that a query meets, on average in a list.
pub(crate) fn docs_of_query(problem: &Problem) -> usize {
    match &problem.pairing {
        Pairing::Cross => problem.docs.count(),
        Pairing::Candidates { per_query } => *per_query,
        Pairing::Pairs => 1,
        Pairing::List(list) => list.len().div_ceil(problem.queries.count()),
    }
}
