//! Shapes, and which peers run on them.

use kernel_core::DType;
use maxsim_kernel::{Problem, Spans};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Every peer that the script knows, in the order of their names.
pub(crate) const PEERS: [&str; 4] =
    ["flash-maxsim", "late-interaction-kernels", "late-interaction-kernels lowmem", "torch eager"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Score,
    /// Scores and the gradients of both sides.
    ScoreStep,
}

impl Op {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::Score => "score",
            Op::ScoreStep => "score_step",
        }
    }
}

/// Which documents a query meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// All, each of the same length.
    All,
    /// All, packed, of every length from none to the one given: about half of the tokens.
    HalfEmpty,
    /// Its own.
    Candidates,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BenchProblem {
    pub(crate) op: Op,
    pub(crate) queries: usize,
    /// In all, or of one query's candidates.
    pub(crate) docs: usize,
    pub(crate) layout: Layout,
    pub(crate) normalize: bool,
    pub(crate) query_len: usize,
    pub(crate) doc_len: usize,
    pub(crate) dim: usize,
}

/// Nq, Nd, Lq, Ld, d: one query against a corpus, then batches against batches.
const SCORES: [[usize; 5]; 11] = [
    [1, 1000, 32, 300, 128],
    [1, 1000, 32, 1024, 128],
    [1, 1000, 128, 1024, 128],
    [1, 10000, 32, 300, 128],
    [1, 500, 1024, 1024, 128],
    [1, 1000, 32, 300, 512],
    [1, 1000, 32, 1024, 48],
    [1, 10000, 32, 300, 64],
    [128, 128, 32, 300, 128],
    [256, 256, 32, 300, 128],
    [64, 64, 1024, 1024, 128],
];
const STEPS: [[usize; 5]; 4] =
    [[64, 64, 32, 180, 128], [64, 64, 32, 1024, 128], [128, 128, 32, 300, 128], [256, 256, 32, 300, 128]];
/// As some of the scores, without peers.
const BATCH: [usize; 5] = [256, 256, 32, 300, 128];
/// Last of all: peers tune for a minute before they run it.
const LONG_STEPS: [[usize; 5]; 1] = [[32, 32, 1024, 1024, 128]];
/// Nq, K, Lq, Ld, d.
const CANDIDATES: [[usize; 5]; 2] = [[64, 32, 32, 300, 128], [256, 16, 32, 1024, 128]];
const QUICK: [[usize; 5]; 2] = [[1, 1000, 32, 300, 128], [128, 128, 32, 300, 128]];

/// `only` keeps the numbers of queries that it lists; empty keeps all.
pub(crate) fn problems(quick: bool, only: &[usize]) -> Vec<BenchProblem> {
    let problem = |op, layout| move |sizes: &[usize; 5]| BenchProblem::new(op, layout, *sizes);
    let variants = [
        BenchProblem::new(Op::Score, Layout::HalfEmpty, BATCH),
        BenchProblem { normalize: true, ..BenchProblem::new(Op::Score, Layout::All, BATCH) },
        BenchProblem::new(Op::ScoreStep, Layout::HalfEmpty, BATCH),
    ];
    let scores: &[[usize; 5]] = if quick { &QUICK } else { &SCORES };
    let steps: &[[usize; 5]] = if quick { &QUICK[1..] } else { &STEPS };
    let candidates: &[[usize; 5]] = if quick { &[] } else { &CANDIDATES };
    let long_steps: &[[usize; 5]] = if quick { &[] } else { &LONG_STEPS };
    let all = scores
        .iter()
        .map(problem(Op::Score, Layout::All))
        .chain(variants.into_iter().filter(|_| !quick))
        .chain(steps.iter().map(problem(Op::ScoreStep, Layout::All)))
        .chain(candidates.iter().map(problem(Op::ScoreStep, Layout::Candidates)))
        .chain(long_steps.iter().map(problem(Op::ScoreStep, Layout::All)));
    all.filter(|problem| only.is_empty() || only.contains(&problem.queries)).collect()
}

/// The search of a corpus in host memory: 0.8 GB.
pub(crate) fn search_problem(quick: bool, only: &[usize]) -> Option<BenchProblem> {
    let search = BenchProblem::new(Op::Score, Layout::All, [32, 10_000, 32, 300, 128]);
    (!quick && (only.is_empty() || only.contains(&search.queries))).then_some(search)
}

impl BenchProblem {
    fn new(op: Op, layout: Layout, [queries, docs, query_len, doc_len, dim]: [usize; 5]) -> Self {
        Self { op, queries, docs, layout, normalize: false, query_len, doc_len, dim }
    }

    pub(crate) fn problem(&self) -> Problem {
        let queries = Spans::padded(self.queries, self.query_len);
        let padded = |docs| Spans::padded(docs, self.doc_len);
        // Lengths in an order that looks like none.
        let length = |doc: usize| doc * 7919 % (self.doc_len + 1);
        let cross = |docs| Problem::cross(queries.clone(), docs, self.dim, DType::Bf16);
        let problem = match self.layout {
            Layout::All => cross(padded(self.docs)),
            Layout::HalfEmpty => cross(Spans::of_lengths((0..self.docs).map(length))),
            Layout::Candidates => {
                let docs = padded(self.queries * self.docs);
                Problem::candidates(queries.clone(), docs, self.docs, self.dim, DType::Bf16)
            }
        };
        problem.with_normalize(self.normalize)
    }

    /// Whether the peers take it as it is.
    pub(crate) fn has_peers(&self) -> bool {
        self.layout != Layout::HalfEmpty && !self.normalize
    }

    pub(crate) fn shape(&self) -> BTreeMap<String, u64> {
        let docs = if self.layout == Layout::Candidates { "K" } else { "Nd" };
        let axes =
            [("Nq", self.queries), (docs, self.docs), ("Lq", self.query_len), ("Ld", self.doc_len), ("d", self.dim)];
        let tokens = (self.layout == Layout::HalfEmpty).then(|| ("tokens", self.problem().docs.rows()));
        let normalized = self.normalize.then_some(("normalized", 1));
        axes.into_iter().chain(tokens).chain(normalized).map(|(name, size)| (name.to_owned(), size as u64)).collect()
    }

    /// 2 d for each pair of tokens; in a step also 2 d for each choice and side.
    pub(crate) fn flop(&self) -> u64 {
        let problem = self.problem();
        let choices = 4.0 * problem.argmaxes() as f64 * self.dim as f64;
        (problem.forward_flop() + if self.op == Op::ScoreStep { choices } else { 0.0 }) as u64
    }

    /// Tokens read once (in a step their gradients written once), scores written once.
    pub(crate) fn bytes(&self) -> u64 {
        let problem = self.problem();
        let tokens = (problem.queries.rows() + problem.docs.rows()) * self.dim * DType::Bf16.size_bytes();
        (if self.op == Op::ScoreStep { 2 * tokens } else { tokens } + problem.scores() * 4) as u64
    }

    pub(crate) fn for_peers(&self) -> Value {
        json!({ "op": if self.op == Op::ScoreStep { "step" } else { "forward" }, "shape": self.shape(), "dtype": "bf16" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_cover_the_shapes_and_can_be_limited() {
        let all = problems(false, &[]);
        assert_eq!(all.len(), 21);
        assert!(problems(false, &[256]).iter().all(|p| p.queries == 256));
        assert!(problems(true, &[]).len() < 5);
    }

    #[test]
    fn counts_are_those_of_the_definition() {
        let score = problems(false, &[128])[0];
        assert_eq!(score.flop(), 2 * 128 * 128 * 32 * 300 * 128);
        assert_eq!(score.bytes(), 2 * 128 * (32 + 300) * 128 + 4 * 128 * 128);
        assert_eq!(score.shape()["Nd"], 128);
        let half = problems(false, &[256]).into_iter().find(|p| p.layout == Layout::HalfEmpty).unwrap();
        let tokens = half.shape()["tokens"];
        assert!((256 * 140..256 * 160).contains(&tokens) && half.flop() == 2 * 256 * 32 * 128 * tokens);
    }
}
