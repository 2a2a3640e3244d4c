//! Retrieval: the best documents of each query, without the scores of all.

use std::cmp::Ordering;

use kernel_core::cudarc::driver::{CudaSlice, CudaView, DevicePtr, DevicePtrMut};
use kernel_core::{Element, Gpu, MatrixView, VectorViewMut};

use crate::error::Result;
use crate::io::Inputs;
use crate::kernels::{KeepBest, MOST, TopKParams};
use crate::plan::Plan;
use crate::problem::{Options, Pairing, Problem, shape};

/// Scores that are held at once: 64 MB.
const HELD_SCORES: usize = 1 << 24;
/// Bytes of documents that are copied at once from host memory.
const COPIED_BYTES: usize = 128 << 20;

/// The best documents of each query, best first. Equal scores are in the order of the documents; NaN comes after every number. Copies of one document
/// score alike within a run; beside a run of far fewer documents they may differ in the last bit, as another kernel may add there in another order.
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
    /// Ranks scores `[Nq, Nd]` that are there already, on the host.
    pub fn of_scores(scores: &[f32], docs: usize, k: usize) -> Self {
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
        ranking
    }

    /// Documents and scores of one query, best first; empty for a query that there is not.
    pub fn query(&self, query: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let from = query.saturating_mul(self.per_query).min(self.docs.len());
        let to = (from + self.per_query).min(self.docs.len());
        self.docs[from..to].iter().map(|&doc| doc as usize).zip(self.scores[from..to].iter().copied())
    }
}

/// One run of documents that are scored at once.
struct Chunk {
    plan: Plan,
    first_doc: usize,
    first_row: usize,
    rows: usize,
}

/// Everything decided ahead for the k best documents of a corpus for each query.
///
/// Documents are scored a run at a time, and only the best so far and one run's scores are held: neither `[Nq, Nd]` scores nor, with
/// [`TopK::search_host`], the corpus need fit in device memory.
pub struct TopK {
    gpu: Gpu,
    k: usize,
    queries: usize,
    query_rows: usize,
    rows: usize,
    dim: usize,
    chunks: Vec<Chunk>,
    keep: KeepBest,
    scores: CudaSlice<f32>,
    kept: CudaSlice<u64>,
    best_scores: CudaSlice<f32>,
    best_docs: CudaSlice<u32>,
}

impl std::fmt::Debug for TopK {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TopK")
            .field("k", &self.k)
            .field("queries", &self.queries)
            .field("runs", &self.chunks.len())
            .finish()
    }
}

impl TopK {
    /// The `k` best (at most 1024) of `problem.docs` for each of `problem.queries`; all of them when there are fewer. The problem is a
    /// cross without masks.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with: `ZeroSize` for k = 0 or a corpus without a token, `Shape` for a larger k, another pairing or masks, and as
    /// [`Plan::new`].
    pub fn new(gpu: &Gpu, problem: &Problem, k: usize, options: Options) -> Result<Self> {
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
        if k > MOST {
            return Err(shape("k", k, format!("at most {MOST}")));
        }
        if problem.docs.rows() == 0 {
            return Err(kernel_core::Error::ZeroSize { what: "corpus" }.into());
        }
        let (queries, docs) = (problem.queries.count(), problem.docs.count());
        let k = k.min(docs);
        let most_docs = (HELD_SCORES / queries).max(1);
        let most_rows = (COPIED_BYTES / (problem.dim * problem.dtype.size_bytes())).max(1);
        let mut chunks = Vec::new();
        let (mut first_doc, mut widest) = (0, 0);
        while first_doc < docs {
            let first_row = problem.docs.span(first_doc).start;
            let mut end = first_doc + 1;
            while end < docs && end - first_doc < most_docs && problem.docs.span(end).end - first_row <= most_rows {
                end += 1;
            }
            // A run without a token cannot be viewed: it takes documents up to the next token.
            while end < docs && problem.docs.span(end - 1).end == first_row {
                end += 1;
            }
            let rows = problem.docs.span(end - 1).end - first_row;
            if rows == 0 {
                // Only empty documents are left: they go to the run before. The problem has a token, so there is one.
                let Some(Chunk { plan, first_doc: begin, .. }) = chunks.pop() else { break };
                drop(plan);
                first_doc = begin;
                let spans = problem.docs.slice(first_doc..docs);
                chunks.push(Self::chunk(gpu, problem, spans, first_doc, options)?);
                widest = widest.max(docs - first_doc);
                break;
            }
            chunks.push(Self::chunk(gpu, problem, problem.docs.slice(first_doc..end), first_doc, options)?);
            widest = widest.max(end - first_doc);
            first_doc = end;
        }
        Ok(Self {
            gpu: gpu.clone(),
            k,
            queries,
            query_rows: problem.queries.matrix_rows(),
            rows: problem.docs.rows(),
            dim: problem.dim,
            chunks,
            keep: KeepBest::new(gpu)?,
            scores: gpu.alloc(queries * widest)?,
            kept: gpu.alloc(queries * MOST)?,
            best_scores: gpu.alloc(queries * k)?,
            best_docs: gpu.alloc(queries * k)?,
        })
    }

    fn chunk(gpu: &Gpu, problem: &Problem, docs: crate::Spans, first_doc: usize, options: Options) -> Result<Chunk> {
        let (first_row, rows) = (problem.docs.span(first_doc).start, docs.rows());
        let plan = Plan::new(gpu, Problem { docs, ..problem.clone() }, options)?;
        Ok(Chunk { plan, first_doc, first_row, rows })
    }

    /// Runs of documents that are scored one after another.
    pub fn runs(&self) -> usize {
        self.chunks.len()
    }

    /// Device memory in bytes that is held.
    pub fn workspace_bytes(&self) -> usize {
        let plans: usize = self.chunks.iter().map(|chunk| chunk.plan.workspace_bytes()).sum();
        plans + (self.scores.len() + 2 * self.best_docs.len()) * 4 + self.kept.len() * 8
    }

    /// Searches a corpus in device memory: dense rows `[tokens, d]`. Waits for the result.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with `Shape` or `WrongDevice` naming the argument, and as [`Plan::forward`].
    pub fn search<T: Element>(&mut self, queries: &MatrixView<'_, T>, corpus: &CudaView<'_, T>) -> Result<Ranking> {
        self.check_length(corpus.len())?;
        for index in 0..self.chunks.len() {
            let elements = self.elements(index);
            self.score(index, queries, &corpus.slice(elements))?;
        }
        self.ranking()
    }

    /// Searches a corpus in host memory, of any size: runs are copied to the device one ahead of the one that is scored. Page-locked memory
    /// copies about twice as fast. Waits for the result.
    ///
    /// # Errors
    /// As [`TopK::search`], and `OutOfMemory` for the two runs on the device.
    pub fn search_host<T: Element>(&mut self, queries: &MatrixView<'_, T>, corpus: &[T]) -> Result<Ranking> {
        self.check_length(corpus.len())?;
        let longest = self.chunks.iter().map(|chunk| chunk.rows).max().unwrap_or(1) * self.dim;
        let copies = self.gpu.fork()?;
        let mut buffers = vec![self.gpu.alloc::<T>(longest)?];
        if self.chunks.len() > 1 {
            buffers.push(self.gpu.alloc::<T>(longest)?);
        }
        for index in 0..self.chunks.len() {
            let elements = self.elements(index);
            let buffer = &mut buffers[index % 2];
            // The copy waits for the scores that last read this buffer, and the scores for the copy: by the events of the two streams.
            let mut target = buffer.slice_mut(..elements.len());
            copies
                .stream()
                .memcpy_htod(&corpus[elements.clone()], &mut target)
                .map_err(kernel_core::Error::driver("cuMemcpyHtoDAsync"))?;
            self.score(index, queries, &buffer.slice(..elements.len()))?;
        }
        self.ranking()
    }

    fn check_length(&self, found: usize) -> Result<()> {
        if found == self.rows * self.dim {
            return Ok(());
        }
        Err(shape("corpus", format!("{found} elements"), format!("[{}, {}]", self.rows, self.dim)))
    }

    fn elements(&self, index: usize) -> std::ops::Range<usize> {
        let Chunk { first_row, rows, .. } = self.chunks[index];
        first_row * self.dim..(first_row + rows) * self.dim
    }

    /// Queues the scores of a run, and what they do to the best so far.
    fn score<T: Element>(&mut self, index: usize, queries: &MatrixView<'_, T>, docs: &CudaView<'_, T>) -> Result<()> {
        let last = index + 1 == self.chunks.len();
        let chunk = &mut self.chunks[index];
        queries.require_shape([self.query_rows, self.dim])?;
        let inputs = Inputs {
            queries: queries.reborrow(),
            docs: MatrixView::new("corpus", docs, [chunk.rows, self.dim])?,
            query_mask: None,
            doc_mask: None,
        };
        let count = chunk.plan.problem().docs.count();
        let held = self.queries * count;
        chunk.plan.forward(&inputs, &mut VectorViewMut::new("scores", self.scores.slice_mut(..held), [held])?, None)?;
        let stream = self.gpu.stream().clone();
        let (scores, _scores) = self.scores.device_ptr(&stream);
        let (kept, _kept) = self.kept.device_ptr_mut(&stream);
        let (best_scores, _best_scores) = self.best_scores.device_ptr_mut(&stream);
        let (best_docs, _best_docs) = self.best_docs.device_ptr_mut(&stream);
        let params = TopKParams {
            scores,
            docs: count as u32,
            first_doc: chunk.first_doc as u32,
            k: self.k as u32,
            fresh: u32::from(index == 0),
            kept,
            best_scores: if last { best_scores } else { 0 },
            best_docs,
        };
        // SAFETY: all are this value's own memory, sized for the queries, k and the widest run.
        unsafe { self.keep.launch(&self.gpu, self.queries, &params) }
    }

    fn ranking(&self) -> Result<Ranking> {
        let (docs, scores) = (self.gpu.download(&self.best_docs)?, self.gpu.download(&self.best_scores)?);
        Ok(Ranking { per_query: self.k, docs, scores })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rankings_are_stable_and_put_nan_last() {
        let scores = [1.0, f32::NAN, 3.0, 1.0, f32::NEG_INFINITY, 3.0];
        let ranking = Ranking::of_scores(&scores, 6, 6);
        assert_eq!(ranking.docs, [2, 5, 0, 3, 4, 1]);
        assert_eq!(Ranking::of_scores(&scores, 3, 9).docs, [2, 0, 1, 2, 0, 1]);
        let top = Ranking::of_scores(&scores, 6, 2);
        assert_eq!(top.query(0).collect::<Vec<_>>(), [(2, 3.0), (5, 3.0)]);
        assert_eq!(top.query(1).count(), 0);
    }
}
