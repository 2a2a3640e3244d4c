//! Retrieval: the best documents of each query, without the scores of all.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use kernel_core::cudarc::driver::{CudaSlice, CudaView, DevicePtr, DevicePtrMut};
use kernel_core::{DType, DeviceInfo, Element, Gpu, MatrixView, VectorViewMut};

use crate::design::Design;
use crate::error::Result;
use crate::io::Inputs;
use crate::kernels::{KeepBest, MOST, TopKParams};
use crate::plan::Plan;
use crate::problem::{BackwardRoute, Options, Pairing, Problem, shape};
use crate::programs;
use crate::ranking::Ranking;
use crate::runs::cut;
use crate::spans::Spans;
use crate::workspace::{Memory, Needs};

/// Scores that are held at once: 64 MB.
const HELD_SCORES: usize = 1 << 24;
/// Bytes of documents that are copied at once from host memory.
const COPIED_BYTES: usize = 128 << 20;

/// One run of documents that are scored at once.
struct Run {
    plan: Plan,
    first_doc: usize,
    first_row: usize,
    rows: usize,
}

/// What is decided of a search without touching the device.
struct Sketch {
    k: usize,
    /// Problem, design, first document and first token row of each run.
    runs: Vec<(Problem, Design, usize, usize)>,
    /// Documents of the widest run.
    widest: usize,
    /// Of the memory that the runs share.
    needs: Needs,
}

impl Sketch {
    fn new(info: &DeviceInfo, problem: &Problem, k: usize, options: &Options) -> Result<Self> {
        problem.check()?;
        if problem.pairing != Pairing::Cross || problem.query_mask || problem.doc_mask {
            return Err(shape(
                "problem",
                "another pairing, or masks",
                "a cross without masks (pack the texts instead)",
            ));
        }
        if k == 0 {
            return Err(kernel_core::Error::ZeroSize { what: "k" }.into());
        }
        let k = k.min(problem.docs.count());
        if k > MOST {
            return Err(shape("k", k, format!("at most {MOST}")));
        }
        if problem.docs.rows() == 0 {
            return Err(kernel_core::Error::ZeroSize { what: "corpus" }.into());
        }
        let most_docs = (HELD_SCORES / problem.queries.count()).max(1);
        let most_rows = (COPIED_BYTES / (problem.dim * problem.dtype.size_bytes())).max(1);
        let options = Options { backward: BackwardRoute::None, ..*options };
        let mut runs = Vec::new();
        for docs in cut(&problem.docs, most_docs, most_rows) {
            let run = Problem { docs: problem.docs.slice(docs.clone()), ..problem.clone() };
            let design = Design::new(info, &run, &options)?;
            runs.push((run, design, docs.start, problem.docs.span(docs.start).start));
        }
        // Kernels that stream documents add in another order than those that do not, and equal documents are to score alike in all runs. One
        // without a token scores 0 in any.
        let streamed =
            |(run, design, ..): &(Problem, Design, usize, usize)| design.division.streamed || run.docs.rows() == 0;
        if !runs.iter().all(streamed) {
            for (run, design, ..) in runs.iter_mut().filter(|(_, design, ..)| design.division.streamed) {
                *design = Design::without_streaming(info, run, &options)?;
            }
        }
        let widest = runs.iter().map(|(run, ..)| run.docs.count()).max().unwrap_or(0);
        let needs = runs.iter().fold(Needs::default(), |needs, (_, design, ..)| needs.or(design.needs.clone()));
        Ok(Self { k, runs, widest, needs })
    }

    fn bytes(&self, queries: usize) -> Result<usize> {
        let mut bytes = self.needs.bytes();
        for (problem, design, ..) in &self.runs {
            bytes += design.own_bytes(problem)?;
        }
        Ok(bytes + queries * (self.widest * 4 + self.k * (8 + 4 + 4)))
    }
}

/// Everything decided ahead for the k best documents of a corpus for each query.
///
/// Documents are scored a run at a time (at most 128 MB of them, and 64 MB of scores, but one document at least). Only the best so far, one
/// run's scores and the workspace of the largest run are held, and 8 bytes a packed document: neither `[Nq, Nd]` scores nor, with [`TopK::search_host`],
/// the corpus need fit in device memory. Documents that lie on the device are read where they lie; a copy is made of one run at a time where d must be padded.
pub struct TopK {
    gpu: Gpu,
    k: usize,
    queries: Spans,
    rows: usize,
    dim: usize,
    dtype: DType,
    runs: Vec<Run>,
    /// Of all runs.
    memory: Arc<Memory>,
    keep: KeepBest,
    scores: CudaSlice<f32>,
    kept: CudaSlice<u64>,
    best_scores: CudaSlice<f32>,
    best_docs: CudaSlice<u32>,
    /// Room for two runs, of which one is copied while the other is scored: made by the first search of host memory.
    buffers: Vec<CudaSlice<u8>>,
}

impl std::fmt::Debug for TopK {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TopK")
            .field("k", &self.k)
            .field("queries", &self.queries.count())
            .field("runs", &self.runs.len())
            .finish()
    }
}

impl TopK {
    /// The `k` best of `problem.docs` for each of `problem.queries`, at most 1024; all of them when there are fewer than `k`. The problem is a
    /// cross without masks. Of `options` the backward route does not matter.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with: `ZeroSize` for k = 0 or a corpus without a token, `Shape` for a larger k, another pairing or masks, and as
    /// [`Plan::new`].
    pub fn new(gpu: &Gpu, problem: &Problem, k: usize, options: Options) -> Result<Self> {
        let Sketch { k, runs, widest, needs } = Sketch::new(gpu.info(), problem, k, &options)?;
        // Of all runs side by side.
        let of_run = |(problem, design, ..): &(Problem, Design, usize, usize)| Plan::variants(gpu, problem, design);
        let mut seen = HashSet::new();
        let variants = runs.iter().flat_map(of_run).chain([programs::top_k()]);
        gpu.compile(&variants.filter(|variant| seen.insert(variant.clone())).collect::<Vec<_>>())?;
        let memory = Arc::new(Memory::new(gpu, &needs)?);
        // A run without a token reads a row all the same, which does not matter.
        let last_row = problem.docs.rows().saturating_sub(1);
        let runs = runs.into_iter().map(|(problem, design, first_doc, first_row)| -> Result<Run> {
            let (rows, first_row) = (problem.docs.matrix_rows(), first_row.min(last_row));
            Ok(Run { plan: Plan::with_memory(gpu, problem, design, memory.clone())?, first_doc, first_row, rows })
        });
        let runs = runs.collect::<Result<_>>()?;
        let queries = problem.queries.count();
        Ok(Self {
            gpu: gpu.clone(),
            k,
            queries: problem.queries.clone(),
            rows: problem.docs.rows(),
            dim: problem.dim,
            dtype: problem.dtype,
            runs,
            memory,
            keep: KeepBest::new(gpu)?,
            scores: gpu.alloc(queries * widest)?,
            kept: gpu.alloc(queries * k)?,
            best_scores: gpu.alloc(queries * k)?,
            best_docs: gpu.alloc(queries * k)?,
            buffers: Vec::new(),
        })
    }

    /// Device memory in bytes that [`TopK::new`] will allocate, without making it. [`TopK::search_host`] holds two runs of documents more, of
    /// 128 MB each at most unless one document is larger.
    ///
    /// # Errors
    /// As [`TopK::new`], for what can be told from the problem and the device.
    pub fn required_bytes(gpu: &Gpu, problem: &Problem, k: usize, options: &Options) -> Result<usize> {
        Sketch::new(gpu.info(), problem, k, options)?.bytes(problem.queries.count())
    }

    /// Runs of documents that are scored one after another.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Device memory in bytes that is held: what [`TopK::required_bytes`] says, and once [`TopK::search_host`] was called its buffers.
    pub fn workspace_bytes(&self) -> usize {
        let plans: usize = self.runs.iter().map(|run| run.plan.own_bytes()).sum();
        let results = (self.scores.len() + self.best_scores.len() + self.best_docs.len()) * 4 + self.kept.len() * 8;
        self.memory.bytes() + plans + results + self.buffers.iter().map(CudaSlice::len).sum::<usize>()
    }

    /// Searches a corpus in device memory: dense rows `[tokens, d]`. Waits for the result.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with `DType`, `Shape` or `WrongDevice` naming the argument, and as [`Plan::forward`].
    pub fn search<T: Element>(&mut self, queries: &MatrixView<'_, T>, corpus: &CudaView<'_, T>) -> Result<Ranking> {
        self.check(queries, corpus.len())?;
        for index in 0..self.runs.len() {
            let elements = self.elements(index);
            self.score(index, queries, &corpus.slice(elements))?;
        }
        self.ranking()
    }

    /// Searches a corpus in host memory, of any size: runs are copied to the device one ahead of the one that is scored, page-locked memory
    /// faster than other. Waits for the result. The first call allocates room for two runs, which is kept.
    ///
    /// # Errors
    /// As [`TopK::search`], and `OutOfMemory` for the two runs on the device.
    pub fn search_host<T: Element>(&mut self, queries: &MatrixView<'_, T>, corpus: &[T]) -> Result<Ranking> {
        self.check(queries, corpus.len())?;
        if self.buffers.is_empty() {
            let longest = self.runs.iter().map(|run| run.rows).max().unwrap_or(1);
            let buffer = |_| self.gpu.alloc(longest * self.dim * self.dtype.size_bytes());
            self.buffers = (0..self.runs.len().min(2)).map(buffer).collect::<kernel_core::Result<_>>()?;
        }
        // Not kept: as long as a context has a second stream, every call in it records and waits for events.
        let copies = self.gpu.fork()?;
        let mut buffers = std::mem::take(&mut self.buffers);
        let searched = self.stream(&copies, &mut buffers, queries, corpus);
        // Also after an error no copy may be under way that reads what the caller is about to have back.
        let copied = copies.synchronize();
        self.buffers = buffers;
        searched?;
        copied?;
        self.ranking()
    }

    /// Queues the copies and the scores of all runs.
    fn stream<T: Element>(
        &mut self,
        copies: &Gpu,
        buffers: &mut [CudaSlice<u8>],
        queries: &MatrixView<'_, T>,
        corpus: &[T],
    ) -> Result<()> {
        let failed = kernel_core::Error::driver;
        let (copies, scores) = (copies.stream(), self.gpu.stream().clone());
        // Behind whatever an earlier search left on the stream.
        let event = || scores.record_event(None).map_err(failed("cuEventRecord"));
        let mut scored = [event()?, event()?];
        for index in 0..self.runs.len() {
            let elements = self.elements(index);
            let buffer = &mut buffers[index % 2];
            // The copy waits for the scores that last read this buffer, and the scores for the copy. The context may have been told to
            // track no events itself.
            copies.wait(&scored[index % 2]).map_err(failed("cuStreamWaitEvent"))?;
            // SAFETY: `check` has found T to be of the dtype that the buffers were sized for; any bits are a T, and whole allocations are aligned.
            let target = unsafe { buffer.transmute_mut::<T>(elements.len()) };
            let Some(mut target) = target else {
                return Err(shape("run", elements.len(), "no more elements than its buffer has"));
            };
            copies.memcpy_htod(&corpus[elements.clone()], &mut target).map_err(failed("cuMemcpyHtoDAsync"))?;
            scores.join(copies).map_err(failed("cuStreamWaitEvent"))?;
            // SAFETY: as above.
            let docs = unsafe { buffer.transmute::<T>(elements.len()) };
            let Some(docs) = docs else {
                return Err(shape("run", elements.len(), "no more elements than its buffer has"));
            };
            self.score(index, queries, &docs)?;
            scored[index % 2] = event()?;
        }
        Ok(())
    }

    fn check<T: Element>(&self, queries: &MatrixView<'_, T>, corpus: usize) -> Result<()> {
        if T::DTYPE != self.dtype {
            let expected = self.dtype.to_string();
            return Err(kernel_core::Error::DType { what: "queries and corpus", found: T::DTYPE, expected }.into());
        }
        queries.require_shape([self.queries.matrix_rows(), self.dim])?;
        if corpus != self.rows * self.dim {
            return Err(shape("corpus", format!("{corpus} elements"), format!("[{}, {}]", self.rows, self.dim)));
        }
        Ok(())
    }

    fn elements(&self, index: usize) -> Range<usize> {
        let Run { first_row, rows, .. } = self.runs[index];
        first_row * self.dim..(first_row + rows) * self.dim
    }

    /// Queues the scores of a run, and what they do to the best so far.
    fn score<T: Element>(&mut self, index: usize, queries: &MatrixView<'_, T>, docs: &CudaView<'_, T>) -> Result<()> {
        let last = index + 1 == self.runs.len();
        let run = &mut self.runs[index];
        let inputs = Inputs {
            queries: queries.reborrow(),
            docs: MatrixView::new("corpus", docs, [run.rows, self.dim])?,
            query_mask: None,
            doc_mask: None,
        };
        let count = run.plan.problem().docs.count();
        let held = self.queries.count() * count;
        run.plan.forward(&inputs, &mut VectorViewMut::new("scores", self.scores.slice_mut(..held), [held])?, None)?;
        let stream = self.gpu.stream().clone();
        let (scores, _scores) = self.scores.device_ptr(&stream);
        let (kept, _kept) = self.kept.device_ptr_mut(&stream);
        let (best_scores, _best_scores) = self.best_scores.device_ptr_mut(&stream);
        let (best_docs, _best_docs) = self.best_docs.device_ptr_mut(&stream);
        let params = TopKParams {
            scores,
            docs: count as u32,
            first_doc: run.first_doc as u32,
            k: self.k as u32,
            fresh: u32::from(index == 0),
            kept,
            best_scores: if last { best_scores } else { 0 },
            best_docs,
        };
        // SAFETY: all are this value's own memory, sized for the queries, k and the widest run.
        unsafe { self.keep.launch(&self.gpu, self.queries.count(), &params) }
    }

    fn ranking(&self) -> Result<Ranking> {
        let (docs, scores) = (self.gpu.download(&self.best_docs)?, self.gpu.download(&self.best_scores)?);
        Ok(Ranking { per_query: self.k, docs, scores })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::h200;

    /// Lengths for which some runs have documents enough to be streamed and others not.
    #[test]
    fn all_runs_add_in_one_order() {
        // 64 queries: at most 262,144 documents.
        let queries = Spans::padded(64, 1);
        let streams = |docs: Spans| {
            let problem = Problem::cross(queries.clone(), docs, 128, DType::F16);
            let sketch = Sketch::new(&h200(), &problem, 10, &Options::default()).unwrap();
            let streamed = sketch.runs.iter().map(|(_, design, ..)| design.division.streamed);
            (streamed.clone().filter(|&streamed| streamed).count(), streamed.count())
        };
        assert_eq!(streams(Spans::padded(9000, 200)), (4, 4));
        let (streamed, runs) = streams(Spans::of_lengths((0..9000).map(|i| if i < 8990 { 100 } else { 250_000 })));
        assert!(streamed == 0 && runs > 2, "{streamed} of {runs}");
        // The last runs have no token.
        let (streamed, runs) = streams(Spans::of_lengths((0..600_000).map(|i| usize::from(i < 300_000))));
        assert!(streamed > 0 && streamed < runs, "{streamed} of {runs}");
    }

    /// 20 GB of rows that must be padded: one run's copy is held, not all, and nothing for gradients.
    #[test]
    fn memory_does_not_grow_with_the_corpus() {
        let bytes = |docs| {
            let problem = Problem::cross(Spans::padded(4, 32), Spans::padded(docs, 300), 127, DType::F16);
            let unified = Options { backward: BackwardRoute::Unified, ..Options::default() };
            let found = [Options::default(), unified].map(|options| {
                let sketch = Sketch::new(&h200(), &problem, 10, &options).unwrap();
                (sketch.runs.len(), sketch.bytes(4).unwrap())
            });
            assert_eq!(found[0], found[1]);
            found[0]
        };
        let (few, many) = (bytes(3520), bytes(262_144));
        assert!(few.0 > 1 && many.0 > 100, "{few:?} {many:?}");
        assert!(many.1 < (160 << 20) && many.1 - few.1 < (1 << 20), "{few:?} {many:?}");
    }
}
