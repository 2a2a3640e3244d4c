//! The search and the choices of one pair, on the GPU or on the CPU.

use std::str::FromStr;

use anyhow::{Context, Result};
use maxsim_kernel::kernel_core::half::f16;
use maxsim_kernel::{DType, Gpu, Inputs, MatrixView, Options, Plan, Problem, Ranking, Spans, TopK, VectorViewMut, cpu};

use crate::data::{Corpus, DIM};

/// Where it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| format!("{text:?}: expected auto, cpu or cuda:0")),
        }
    }
}

/// The best functions for each docstring, and which code token of the best one each token of one docstring chose.
pub(crate) struct Found {
    pub(crate) device: String,
    pub(crate) ranking: Ranking,
    pub(crate) best: usize,
    pub(crate) choices: Vec<i32>,
}

/// The `top` best of each docstring; the choices are of docstring `query`.
pub(crate) fn search(device: Device, corpus: &Corpus, top: usize, query: usize) -> Result<Found> {
    let gpu = match device {
        Device::Cpu => None,
        Device::Cuda(ordinal) => Some(Gpu::new(ordinal)?),
        Device::Auto => match Gpu::new(0) {
            Ok(gpu) => Some(gpu),
            Err(error) => {
                println!("not on a GPU: {error}");
                None
            }
        },
    };
    match gpu {
        Some(gpu) => on_gpu(&gpu, corpus, top, query),
        None => on_cpu(corpus, top, query),
    }
}

fn problem(queries: Spans, docs: Spans) -> Problem {
    Problem::cross(queries, docs, DIM, DType::F16)
}

fn best_of(ranking: &Ranking, query: usize) -> Result<usize> {
    Ok(ranking.query(query).next().context("no hits")?.0)
}

fn on_cpu(corpus: &Corpus, top: usize, query: usize) -> Result<Found> {
    let score = |(queries, query_tokens): (Spans, &[f16]), (docs, doc_tokens): (Spans, &[f16])| -> Result<_> {
        let inputs = cpu::Inputs {
            queries: cpu::HostMatrix::new("queries", query_tokens, queries.rows(), DIM)?,
            docs: cpu::HostMatrix::new("code", doc_tokens, docs.rows(), DIM)?,
            query_mask: None,
            doc_mask: None,
        };
        let plan = cpu::Plan::new(problem(queries, docs))?;
        let mut scores = vec![0.0; plan.problem().scores()];
        let mut argmax = vec![0; plan.problem().argmaxes()];
        plan.forward(&inputs, &mut scores, Some(&mut argmax))?;
        Ok((scores, argmax))
    };
    let (scores, _) =
        score((corpus.queries.clone(), &corpus.query_tokens), (corpus.code.clone(), &corpus.code_tokens))?;
    let ranking = Ranking::of_scores(&scores, corpus.code.count(), top)?;
    let best = best_of(&ranking, query)?;
    let (_, choices) = score(corpus.query(query), corpus.function(best))?;
    Ok(Found { device: "the CPU".to_owned(), ranking, best, choices })
}

fn on_gpu(gpu: &Gpu, corpus: &Corpus, top: usize, query: usize) -> Result<Found> {
    let (queries, code) = (gpu.upload(&corpus.query_tokens)?, gpu.upload(&corpus.code_tokens)?);
    let all = problem(corpus.queries.clone(), corpus.code.clone());
    let view = MatrixView::new("queries", &queries, [corpus.queries.rows(), DIM])?;
    let ranking = TopK::new(gpu, &all, top, Options::default())?.search(&view, &code.as_view())?;

    let best = best_of(&ranking, query)?;
    let ((query_span, query_tokens), (code_span, code_tokens)) = (corpus.query(query), corpus.function(best));
    let (query_tokens, code_tokens) = (gpu.upload(query_tokens)?, gpu.upload(code_tokens)?);
    let mut plan = Plan::new(gpu, problem(query_span.clone(), code_span.clone()), Options::default())?;
    let inputs = Inputs {
        queries: MatrixView::new("query", &query_tokens, [query_span.rows(), DIM])?,
        docs: MatrixView::new("code", &code_tokens, [code_span.rows(), DIM])?,
        query_mask: None,
        doc_mask: None,
    };
    let (mut score, mut choices) = (gpu.alloc::<f32>(1)?, gpu.alloc::<i32>(query_span.rows())?);
    plan.forward(
        &inputs,
        &mut VectorViewMut::new("score", &mut score, [1])?,
        Some(&mut VectorViewMut::new("choices", &mut choices, [query_span.rows()])?),
    )?;
    let device = format!("{} ({})", gpu.info().name, gpu.info().ordinal);
    Ok(Found { device, ranking, best, choices: gpu.download(&choices)? })
}
