//! The device memory of a plan, sized ahead.

use kernel_core::{Gpu, Layout, Region, Workspace};

use crate::error::Result;
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
    /// Of the other workspace: see [`Memory`].
    pub(crate) joins: Region,
}

/// What [`Memory`] must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Needs {
    regions: Layout,
    joins: Layout,
}

impl Needs {
    pub(crate) fn bytes(&self) -> usize {
        self.regions.total().saturating_add(self.joins.total())
    }

    /// Enough for either.
    #[must_use]
    pub(crate) fn or(self, other: Self) -> Self {
        let larger = |a: Layout, b: Layout| if a.total() < b.total() { b } else { a };
        Self { regions: larger(self.regions, other.regions), joins: larger(self.joins, other.joins) }
    }
}

/// Device memory of a plan, or of several whose calls follow one another on one stream: of the regions nothing outlives a call, and the
/// joins of [`crate::kernels::join_bytes`], which lie apart, are zeros between calls whatever their number.
#[derive(Debug)]
pub(crate) struct Memory {
    regions: Workspace,
    joins: Workspace,
}

impl Memory {
    pub(crate) fn new(gpu: &Gpu, needs: &Needs) -> Result<Self> {
        Ok(Self { regions: Workspace::new(gpu, &needs.regions)?, joins: Workspace::new(gpu, &needs.joins)? })
    }

    /// The address of one of [`Regions`] but `joins`.
    pub(crate) fn ptr(&self, region: Region) -> u64 {
        self.regions.ptr(region)
    }

    pub(crate) fn joins(&self, regions: &Regions) -> u64 {
        self.joins.ptr(regions.joins)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.regions.bytes() + self.joins.bytes()
    }
}

impl Regions {
    /// Pure arithmetic. `padded`: elements of a padded row, when rows are padded.
    pub(crate) fn layout(
        problem: &Problem,
        division: &Division,
        padded: Option<usize>,
        backward: BackwardRoute,
    ) -> (Needs, Self) {
        let (mut layout, mut joins) = (Layout::new(), Layout::new());
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
            BackwardRoute::None => 0,
            BackwardRoute::Unified => problem.docs.rows(),
            BackwardRoute::Auto | BackwardRoute::LowMemory => when(splits > 1, splits * problem.queries.rows()),
        };
        let regions = Self {
            queries,
            docs,
            prefix: layout.take_elements::<u64>(when(problem.doc_mask, entries + 1)),
            partials: layout.take_elements::<f32>(division.partials(problem)),
            scratch: layout.take_elements::<f32>(scratch.saturating_mul(problem.dim)),
            joins: joins.take(when(division.streamed, join_bytes(&problem.docs, division.blocks))),
        };
        (Needs { regions: layout, joins }, regions)
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
