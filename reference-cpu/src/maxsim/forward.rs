//! Scores: blocks of queries against blocks of documents, each document's kept tokens gathered once a block.

use rayon::prelude::*;

use super::items::{Items, Pairing, Problem};
use super::tokens::Gathered;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::product::product;
use crate::vector::maximum;

/// Query tokens in one product: short queries share their documents' tiles.
const ROWS: usize = 256;
/// Most document tokens in one product. Longer documents are cut evenly, so that no product is narrow: `gemm` sums
/// narrow ones in another order, and equal tokens could get unequal similarities.
const COLS: usize = 1024;
/// Documents in one task.
const DOCS: usize = 16;

/// The scores of `problem`, and with `argmax` the index in its document of each query token's best token: -1 for a masked query token
/// and for a document without kept tokens. Layouts: see [`Pairing`].
///
/// # Errors
/// As [`Problem::scores`], and [`Shape`](Error::Shape) when `scores` or `argmax` has not exactly as many entries as the problem.
///
/// ```
/// use reference_cpu::{HostTensor, maxsim};
/// let queries = HostTensor::new("q", &[1.0f32, 0.0, 0.0, 1.0], [1, 2, 2])?;
/// let docs = HostTensor::new("d", &[0.5f32, 0.25, 0.0, 3.0], [2, 1, 2])?;
/// let problem = maxsim::Problem {
///     queries: maxsim::Tokens::padded(queries)?,
///     docs: maxsim::Tokens::padded(docs)?,
///     pairing: maxsim::Pairing::Cross,
///     normalize: false,
/// };
/// let mut scores = [0.0; 2];
/// maxsim::forward(&problem, &mut scores, None)?;
/// assert_eq!(scores, [0.75, 3.0]);
/// # Ok::<(), reference_cpu::Error>(())
/// ```
pub fn forward<T: Element>(problem: &Problem<'_, T>, scores: &mut [f32], argmax: Option<&mut [i32]>) -> Result<()> {
    let items = problem.items()?;
    check_length("scores", scores.len(), items.len())?;
    if let Some(argmax) = &argmax {
        check_length("argmax", argmax.len(), problem.argmaxes()?)?;
    }
    let tasks = tasks(problem, &items, scores, argmax);
    tasks.into_par_iter().for_each_init(Scratch::default, |scratch, task| scratch.run(problem, task));
    Ok(())
}

pub(super) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { what, found: format!("[{found}]"), expected: format!("[{expected}]") })
}

/// Some consecutive documents against some consecutive queries.
struct Task<'a> {
    first_query: usize,
    first_doc: usize,
    rows: Vec<Row<'a>>,
}

/// Where the results of one query of a task go.
struct Row<'a> {
    scores: &'a mut [f32],
    /// As long as the query for each document, or absent.
    argmax: Option<&'a mut [i32]>,
}

/// Cuts the outputs into tasks.
fn tasks<'a, T: Element>(
    problem: &Problem<'_, T>,
    items: &Items<'_>,
    mut scores: &'a mut [f32],
    mut argmax: Option<&'a mut [i32]>,
) -> Vec<Task<'a>> {
    // Only in a cross do consecutive queries meet the same documents.
    let (docs, height) = match items.pairing {
        Pairing::Cross => (items.docs, (ROWS / problem.queries.longest().max(1)).max(1)),
        Pairing::Candidates { per_query } => (per_query, 1),
        Pairing::Pairs | Pairing::List(_) => (1, 1),
    };
    let mut tasks: Vec<Task<'a>> = Vec::new();
    let mut band = 0;
    for start in (0..items.len()).step_by(docs) {
        let row = start / docs;
        if row.is_multiple_of(height) {
            band = tasks.len();
        }
        for (index, first) in (0..docs).step_by(DOCS).enumerate() {
            let (query, doc) = items.pair(start + first);
            let width = DOCS.min(docs - first);
            if row.is_multiple_of(height) {
                tasks.push(Task { first_query: query, first_doc: doc, rows: Vec::new() });
            }
            let length = width * problem.queries.span(query).len();
            let row = Row {
                scores: scores.split_off_mut(..width).unwrap_or_default(),
                argmax: argmax.as_mut().map(|argmax| argmax.split_off_mut(..length).unwrap_or_default()),
            };
            tasks[band + index].rows.push(row);
        }
    }
    tasks
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    queries: Gathered,
    doc: Gathered,
    similarities: Vec<f32>,
    /// For each gathered query token, its best similarity.
    best: Vec<f32>,
    /// The same token's index among the document's kept ones.
    chosen: Vec<usize>,
}

impl Scratch {
    fn run<T: Element>(&mut self, problem: &Problem<'_, T>, mut task: Task<'_>) {
        self.queries.clear();
        // Where each query's kept tokens end among the gathered ones.
        let mut ends = Vec::with_capacity(task.rows.len());
        for index in 0..task.rows.len() {
            self.queries.push(&problem.queries, task.first_query + index, problem.normalize);
            ends.push(self.queries.indices.len());
        }
        let with_argmax = task.rows.first().is_some_and(|row| row.argmax.is_some());
        for doc in 0..task.rows.first().map_or(0, |row| row.scores.len()) {
            self.doc.clear();
            self.doc.push(&problem.docs, task.first_doc + doc, problem.normalize);
            self.search(problem.docs.dim(), with_argmax);
            let empty = self.doc.indices.is_empty();
            let mut start = 0;
            for (index, (row, &end)) in task.rows.iter_mut().zip(&ends).enumerate() {
                let sum: f64 = self.best[start..end].iter().map(|&best| f64::from(best)).sum();
                row.scores[doc] = if empty { 0.0 } else { sum as f32 };
                if let Some(argmax) = &mut row.argmax {
                    let length = problem.queries.span(task.first_query + index).len();
                    let entries = &mut argmax[doc * length..][..length];
                    entries.fill(-1);
                    if !empty {
                        for token in start..end {
                            // Problem::items has checked that a document's indices fit.
                            entries[self.queries.indices[token]] = self.doc.indices[self.chosen[token]] as i32;
                        }
                    }
                }
                start = end;
            }
        }
    }

    /// The best of the gathered document's tokens for each gathered query token.
    fn search(&mut self, dim: usize, with_argmax: bool) {
        let (rows, cols) = (self.queries.indices.len(), self.doc.indices.len());
        self.best.clear();
        self.best.resize(rows, f32::NEG_INFINITY);
        self.chosen.clear();
        self.chosen.resize(rows, 0);
        if cols == 0 {
            return;
        }
        let blocks = cols.div_ceil(COLS);
        for block in 0..blocks {
            let start = block * cols / blocks;
            let width = (block + 1) * cols / blocks - start;
            let tokens = self.doc.block(start, width, dim).transposed();
            for first in (0..rows).step_by(ROWS) {
                let height = ROWS.min(rows - first);
                self.similarities.resize(height * width, 0.0);
                let queries = self.queries.block(first, height, dim);
                product(&mut self.similarities, width, false, 1.0, queries, tokens);
                for (row, values) in self.similarities[..height * width].chunks(width).enumerate() {
                    let largest = maximum(values);
                    let best = &mut self.best[first + row];
                    // The first block always counts, for a token whose similarities are all -∞.
                    if block == 0 || largest > *best || (largest.is_nan() && !best.is_nan()) {
                        *best = largest;
                        if with_argmax {
                            let same = |&value: &f32| value == largest || (value.is_nan() && largest.is_nan());
                            self.chosen[first + row] = start + values.iter().position(same).unwrap_or(0);
                        }
                    }
                }
            }
        }
    }
}
