//! The plan: checks, buffers, and the order of launches.

use std::sync::Arc;

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{Element, Gpu, MatrixView, MatrixViewMut, Variant, VectorView, VectorViewMut};

use crate::backward::Backward;
use crate::design::Design;
use crate::error::Result;
use crate::io::{Gradients, Inputs};
use crate::kernels::{ForwardParams, MaskParams, NormParams, Prepare, ReduceParams, ScheduleParams, TextsArg};
use crate::problem::{BackwardRoute, Options, Pairing, Problem, Route, shape};
use crate::scorer::{Scorer, Scratch};
use crate::tables::Tables;
use crate::tiles::{Division, ENTRY_COST};
use crate::workspace::{Memory, Regions, SideRegions};

/// Everything decided ahead for one problem on one device: kernels, tiles, division of work, workspace.
///
/// A plan is made once and called many times; a batch of other lengths needs a plan of its own, which costs a few uploads and one
/// allocation once its kernels are loaded. A call queues its work on the plan's stream and returns; it neither waits for the device nor
/// allocates on it, so it can be captured into a graph (after one call outside of the capture, see [`Gpu`]).
///
/// Making a plan compiles the kernels of its scores if no earlier process did (seconds, once); those of the gradients the first [`Plan::backward`] compiles.
///
/// ```no_run
/// use maxsim_kernel::{Gpu, Inputs, MatrixView, Options, Plan, Problem, Spans, VectorViewMut, kernel_core::half::bf16};
///
/// let gpu = Gpu::new(0)?;
/// let (queries, docs) = (Spans::padded(16, 32), Spans::padded(1000, 300));
/// let problem = Problem::cross(queries, docs, 128, maxsim_kernel::DType::Bf16);
/// let q = gpu.upload(&vec![bf16::ONE; 16 * 32 * 128])?;
/// let d = gpu.upload(&vec![bf16::ONE; 1000 * 300 * 128])?;
/// let mut scores = gpu.alloc::<f32>(problem.scores())?;
/// let mut plan = Plan::new(&gpu, problem, Options::default())?;
/// let inputs = Inputs {
///     queries: MatrixView::new("queries", &q, [16 * 32, 128])?,
///     docs: MatrixView::new("docs", &d, [1000 * 300, 128])?,
///     query_mask: None,
///     doc_mask: None,
/// };
/// plan.forward(&inputs, &mut VectorViewMut::new("scores", &mut scores, [16 * 1000])?, None)?;
/// assert_eq!(gpu.download(&scores)?[0], 32.0 * 128.0);
/// # Ok::<(), maxsim_kernel::Error>(())
/// ```
pub struct Plan {
    gpu: Gpu,
    problem: Problem,
    division: Division,
    tables: Tables,
    scorer: Scorer,
    prepare: Prepare,
    backward: Backward,
    regions: Regions,
    memory: Arc<Memory>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("problem", &self.problem)
            .field("route", &self.route())
            .field("backward_route", &self.backward_route())
            .field("workspace_bytes", &self.workspace_bytes())
            .finish()
    }
}

impl Plan {
    /// Decides, compiles the kernels of the scores, uploads the tables and allocates.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with: `ZeroSize` or `Shape` for an impossible problem, `DType` for a route that the dtype does not
    /// have, `UnsupportedDevice`, `MissingLibrary` without NVRTC, `Compile`, `OutOfMemory`, `Driver`.
    pub fn new(gpu: &Gpu, problem: Problem, options: Options) -> Result<Self> {
        let design = Design::new(gpu.info(), &problem, &options)?;
        let memory = Memory::new(gpu, &design.needs)?;
        Self::with_memory(gpu, problem, design, Arc::new(memory))
    }

    /// The kernels that a plan of `design` loads: those of the scores.
    pub(crate) fn variants(gpu: &Gpu, problem: &Problem, design: &Design) -> Vec<Variant> {
        let scores = Scorer::variants(gpu.info(), design.route, problem, design.division.streamed);
        scores.into_iter().chain(Prepare::variants(problem.dtype)).collect()
    }

    /// A plan of `design`, which was made for this device and problem, in memory that holds what it needs.
    pub(crate) fn with_memory(gpu: &Gpu, problem: Problem, design: Design, memory: Arc<Memory>) -> Result<Self> {
        gpu.compile(&Self::variants(gpu, &problem, &design))?;
        let Design { route, backward, division, regions, .. } = design;
        Ok(Self {
            tables: Tables::new(Some(gpu), &problem, &division)?,
            scorer: Scorer::new(gpu, route, &problem, division.streamed)?,
            prepare: Prepare::new(gpu, problem.dtype)?,
            backward: Backward::new(gpu, backward, &problem),
            memory,
            gpu: gpu.clone(),
            problem,
            division,
            regions,
        })
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The route of the scores.
    pub fn route(&self) -> Route {
        self.scorer.route()
    }

    /// The route of the gradients.
    pub fn backward_route(&self) -> BackwardRoute {
        self.backward.route()
    }

    /// Device memory in bytes that the plan holds: what [`workspace_bytes`](crate::workspace_bytes) says.
    pub fn workspace_bytes(&self) -> usize {
        self.memory.bytes() + self.own_bytes()
    }

    /// Those that it shares with no other plan.
    pub(crate) fn own_bytes(&self) -> usize {
        self.tables.bytes() + self.scorer.held_bytes()
    }

    /// The scores s\[q, d\] = Σ_i max_j ⟨Q\[q, i\], D\[d, j\]⟩ over the tokens that the masks keep (arXiv 2004.12832, section 3.3), and with
    /// `argmax` the index in its document of each query token's best token: -1 for a masked query token and for a document without kept
    /// tokens. Layouts of both: see [`Pairing`]. 2·d flop for each pair of kept tokens.
    ///
    /// A document or a query without kept tokens scores exactly 0. Equal similarities count for the lowest index. A NaN or infinity in a
    /// token that counts reaches the scores it touches; in a masked one it never does.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with: `DType`, `Shape`, `Misaligned` (route `Hopper` with d a multiple of 8: rows begin at multiples
    /// of 16 bytes), `WrongDevice` or `Overlap` naming the argument, `Driver`.
    pub fn forward<T: Element>(
        &mut self,
        inputs: &Inputs<'_, T>,
        scores: &mut VectorViewMut<'_, f32>,
        argmax: Option<&mut VectorViewMut<'_, i32>>,
    ) -> Result<()> {
        inputs.check(&self.gpu, &self.problem, self.scorer.alignment(&self.problem))?;
        inputs.check_forward(&self.gpu, &self.problem, scores, argmax.as_deref())?;
        let gpu = self.gpu.clone();
        let stream: &CudaStream = gpu.stream();
        let (queries, _queries) = inputs.queries.device_ptr(stream);
        let (docs, _docs) = inputs.docs.device_ptr(stream);
        let query_mask = inputs.query_mask.as_ref().map(|mask| mask.device_ptr(stream));
        let doc_mask = inputs.doc_mask.as_ref().map(|mask| mask.device_ptr(stream));
        let (scores, _scores) = scores.device_ptr(stream);
        let argmax = argmax.map(|argmax| argmax.device_ptr(stream));

        let [mut query_texts, mut doc_texts] = self.tables.texts(&self.problem);
        (query_texts.rows, query_texts.row_stride) = (queries, inputs.queries.row_stride() as u64);
        (doc_texts.rows, doc_texts.row_stride) = (docs, inputs.docs.row_stride() as u64);
        let mask_address = |mask: &Option<(u64, _)>| mask.as_ref().map_or(0, |(address, _)| *address);
        self.prepare_side(
            &mut query_texts,
            self.regions.queries,
            mask_address(&query_mask),
            self.problem.queries.rows(),
        )?;
        self.prepare_side(&mut doc_texts, self.regions.docs, mask_address(&doc_mask), self.problem.docs.rows())?;
        let items = self.tables.items(&self.problem, &self.division);
        if self.problem.doc_mask {
            let params = ScheduleParams {
                items,
                docs: doc_texts,
                entries: self.division.chunk_starts.last().copied().unwrap_or(0),
                blocks: self.division.blocks as u32,
                entry_cost: ENTRY_COST as u32,
                prefix: self.memory.ptr(self.regions.prefix),
                starts: items.starts,
            };
            // SAFETY: `prefix` and `starts` are as large as the entries and the division say.
            unsafe { self.prepare.schedule(stream, gpu.info(), &params) }?;
        }
        let params = ForwardParams {
            items,
            queries: query_texts,
            docs: doc_texts,
            dim: self.problem.dim as u32,
            sums: if self.division.whole { scores } else { self.memory.ptr(self.regions.partials) },
            argmax: argmax.as_ref().map_or(0, |(address, _)| *address),
            tiles: self.division.tiles as u32,
            stages: 0,
        };
        let scratch = Scratch {
            padded: [self.regions.queries.padded, self.regions.docs.padded].map(|region| self.memory.ptr(region)),
            block_firsts: self.tables.block_firsts(),
            joins: self.memory.joins(&self.regions),
        };
        // SAFETY: the addresses are of checked views whose guards live to the end of this function, of the tables and of the workspace.
        unsafe { self.scorer.launch(&gpu, &self.problem, &self.division, &self.prepare, scratch, params) }?;
        if !self.division.whole {
            let params = ReduceParams {
                items,
                queries: query_texts,
                partials: params.sums,
                segments: self.tables.segments(),
                tiles: self.division.tiles as u32,
                scores,
                count: self.problem.scores() as u64,
            };
            // SAFETY: the scoring launch wrote all partial sums; `scores` is a checked view.
            unsafe { self.prepare.reduce(stream, gpu.info(), &params) }?;
        }
        Ok(())
    }

    /// The gradients of the scores for their gradients `d_scores`, given the `argmax` of [`Plan::forward`] on the same inputs. Masked tokens,
    /// and tokens that no query token chose, get exact zeros. f32 sums, rounded once. An argmax entry beyond its document counts for nothing.
    ///
    /// # Errors
    /// As [`Plan::forward`], but memory of any alignment will do; `Shape` for a plan with [`BackwardRoute::None`]. The first call, and the first of
    /// another alignment, compiles: `MissingLibrary` without NVRTC, `Compile`.
    pub fn backward<T: Element>(
        &mut self,
        inputs: &Inputs<'_, T>,
        d_scores: &VectorView<'_, f32>,
        argmax: &VectorView<'_, i32>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<()> {
        if self.backward_route() == BackwardRoute::None {
            return Err(shape("backward route", BackwardRoute::None, "a plan that was made for gradients"));
        }
        inputs.check(&self.gpu, &self.problem, 1)?;
        inputs.check_backward(&self.gpu, &self.problem, d_scores, argmax, gradients)?;
        let gpu = self.gpu.clone();
        let stream: &CudaStream = gpu.stream();
        let (queries, _queries) = inputs.queries.device_ptr(stream);
        let (docs, _docs) = inputs.docs.device_ptr(stream);
        let (d_scores, _d_scores) = d_scores.device_ptr(stream);
        let (argmax, _argmax) = argmax.device_ptr(stream);
        let aligned = is_aligned(inputs, gradients);
        let mut out = [(0, 0); 2];
        let mut guards = Vec::new();
        for (slot, gradient) in out.iter_mut().zip([&mut gradients.d_queries, &mut gradients.d_docs]) {
            if let Some(gradient) = gradient {
                let row_stride = gradient.row_stride() as u64;
                let (address, guard) = gradient.device_ptr(stream);
                *slot = (address, row_stride);
                guards.push(guard);
            }
        }
        let [mut query_texts, mut doc_texts] = self.tables.texts(&self.problem);
        (query_texts.rows, query_texts.row_stride) = (queries, inputs.queries.row_stride() as u64);
        (doc_texts.rows, doc_texts.row_stride) = (docs, inputs.docs.row_stride() as u64);
        // The choices of the forward respect the masks already.
        self.prepare_side(&mut query_texts, self.regions.queries, 0, self.problem.queries.rows())?;
        self.prepare_side(&mut doc_texts, self.regions.docs, 0, self.problem.docs.rows())?;
        let call = crate::backward::Call {
            gpu: &gpu,
            problem: &self.problem,
            items: self.tables.items(&self.problem, &self.division),
            texts: [query_texts, doc_texts],
            meetings: self.tables.meetings(),
            d_scores,
            argmax,
            gradients: out,
            scratch: self.memory.ptr(self.regions.scratch),
            aligned,
        };
        // SAFETY: the addresses are of checked views whose guards live to the end of this function, of the tables and of the workspace.
        unsafe { self.backward.run(&call) }
    }

    /// Queues what the kernels need to know of masks and norms, and says where it is. `mask`: 0 for none.
    fn prepare_side(&self, texts: &mut TextsArg, regions: SideRegions, mask: u64, rows: usize) -> Result<()> {
        let (stream, info) = (self.gpu.stream(), self.gpu.info());
        let ptr = |region| self.memory.ptr(region);
        if mask != 0 {
            (texts.ends, texts.firsts, texts.bits) = (ptr(regions.ends), ptr(regions.firsts), ptr(regions.bits));
            let TextsArg { ends, firsts, bits, .. } = *texts;
            let plain = TextsArg { ends: 0, firsts: 0, bits: 0, ..*texts };
            // SAFETY: the mask is a checked view of one byte a row; the regions are sized for the texts.
            unsafe { self.prepare.mask(stream, info, &MaskParams { texts: plain, mask, ends, firsts, bits }) }?;
        }
        if self.problem.normalize {
            texts.scales = ptr(regions.scales);
            let params = NormParams {
                rows: texts.rows,
                row_stride: texts.row_stride,
                count: rows as u64,
                dim: self.problem.dim as u32,
                scales: texts.scales,
            };
            // SAFETY: the rows are a checked view; the region holds one f32 a row.
            unsafe { self.prepare.norms(stream, info, &params) }?;
        }
        Ok(())
    }
}

/// Whether every row of inputs and gradients begins at a multiple of 16 bytes.
fn is_aligned<T: Element>(inputs: &Inputs<'_, T>, gradients: &Gradients<'_, T>) -> bool {
    let input = |view: &MatrixView<'_, T>| view.is_aligned(16);
    let output = |view: &Option<MatrixViewMut<'_, T>>| view.as_ref().is_none_or(|view| view.is_aligned(16));
    input(&inputs.queries) && input(&inputs.docs) && output(&gradients.d_queries) && output(&gradients.d_docs)
}

/// How many entries of the argmax come before those of score `slot`, which must be one of a problem that a plan can be made of.
///
/// # Panics
/// As [`Problem::pair`] and [`Spans::span`](crate::Spans::span) do.
pub fn argmax_offset(problem: &Problem, slot: usize) -> usize {
    let (query, doc) = problem.pair(slot);
    let span = problem.queries.span(query);
    match &problem.pairing {
        Pairing::Cross => span.start * problem.docs.count() + doc * span.len(),
        Pairing::Candidates { per_query } => span.start * per_query + slot % per_query * span.len(),
        Pairing::Pairs => span.start,
        Pairing::List(list) => list[..slot].iter().map(|&(query, _)| problem.queries.length(query)).sum(),
    }
}
