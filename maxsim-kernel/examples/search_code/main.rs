//! Finds functions of the Python standard library by what their docstrings say.
//!
//! 512 docstrings are the queries, 512 function bodies the documents, both one embedding a word piece (`data/docstring-code/NOTICE.md`). Prints the recall, the best
//! hits of a few queries, and draws which word piece of the code each word piece of one query chose.
//!
//!     cargo run --release -p maxsim-kernel --example search_code -- [cpu | cuda | cuda:N] [picture.svg]

mod alignment;
mod data;

use std::error::Error;
use std::path::PathBuf;

use data::Corpus;
use kernel_core::half::f16;
use maxsim_kernel::{
    DType, Gpu, Inputs, MatrixView, Options, Plan, Problem, Ranking, Spans, TopK, VectorViewMut, cpu, kernel_core,
};
use reference_cpu::HostMatrix;

/// Hits that are ranked.
const TOP: usize = 10;
/// Queries whose hits are printed; the first one's alignment is drawn.
const SHOWN: [usize; 4] = [0, 100, 250, 400];
const HITS: usize = 3;

/// The best functions for each docstring, and for one pair which code token each query token chose.
struct Found {
    ranking: Ranking,
    choices: Vec<i32>,
}

fn problem(queries: Spans, docs: Spans) -> Problem {
    Problem::cross(queries, docs, data::DIM, DType::F16)
}

fn on_cpu(corpus: &Corpus, query: usize) -> Result<Found, Box<dyn Error>> {
    let rank = |queries: &Spans, query_tokens: &[f16], docs: &Spans, doc_tokens: &[f16]| -> Result<_, Box<dyn Error>> {
        let plan = cpu::Plan::new(problem(queries.clone(), docs.clone()))?;
        let inputs = cpu::Inputs {
            queries: HostMatrix::new("queries", query_tokens, queries.rows(), data::DIM)?,
            docs: HostMatrix::new("code", doc_tokens, docs.rows(), data::DIM)?,
            query_mask: None,
            doc_mask: None,
        };
        let mut scores = vec![0.0; plan.problem().scores()];
        let mut argmax = vec![0; plan.problem().argmaxes()];
        plan.forward(&inputs, &mut scores, Some(&mut argmax))?;
        Ok((scores, argmax))
    };
    let (scores, _) = rank(&corpus.queries, &corpus.query_tokens, &corpus.code, &corpus.code_tokens)?;
    let ranking = Ranking::of_scores(&scores, corpus.code.count(), TOP);
    let best = best_of(&ranking, query)?;
    let ((query_span, query_tokens), (code_span, code_tokens)) = (corpus.query(query), corpus.function(best));
    let (_, choices) = rank(&query_span, query_tokens, &code_span, code_tokens)?;
    Ok(Found { ranking, choices })
}

fn on_gpu(corpus: &Corpus, query: usize, ordinal: usize) -> Result<Found, Box<dyn Error>> {
    let gpu = Gpu::new(ordinal)?;
    let (queries, code) = (gpu.upload(&corpus.query_tokens)?, gpu.upload(&corpus.code_tokens)?);
    let all = problem(corpus.queries.clone(), corpus.code.clone());
    let view = MatrixView::new("queries", &queries, [corpus.queries.rows(), data::DIM])?;
    let ranking = TopK::new(&gpu, &all, TOP, Options::default())?.search(&view, &code.as_view())?;

    let best = best_of(&ranking, query)?;
    let ((query_span, query_tokens), (code_span, code_tokens)) = (corpus.query(query), corpus.function(best));
    let (query_tokens, code_tokens) = (gpu.upload(query_tokens)?, gpu.upload(code_tokens)?);
    let mut plan = Plan::new(&gpu, problem(query_span.clone(), code_span.clone()), Options::default())?;
    let inputs = Inputs {
        queries: MatrixView::new("query", &query_tokens, [query_span.rows(), data::DIM])?,
        docs: MatrixView::new("code", &code_tokens, [code_span.rows(), data::DIM])?,
        query_mask: None,
        doc_mask: None,
    };
    let (mut score, mut choices) = (gpu.alloc::<f32>(1)?, gpu.alloc::<i32>(query_span.rows())?);
    plan.forward(
        &inputs,
        &mut VectorViewMut::new("score", &mut score, [1])?,
        Some(&mut VectorViewMut::new("choices", &mut choices, [query_span.rows()])?),
    )?;
    Ok(Found { ranking, choices: gpu.download(&choices)? })
}

fn best_of(ranking: &Ranking, query: usize) -> Result<usize, Box<dyn Error>> {
    Ok(ranking.query(query).next().ok_or("no hits")?.0)
}

/// The share of queries whose own function is among the first `top`.
fn recall(ranking: &Ranking, queries: usize, top: usize) -> f64 {
    let found = |query: &usize| ranking.query(*query).take(top).any(|(doc, _)| doc == *query);
    (0..queries).filter(found).count() as f64 / queries as f64
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().unwrap_or_else(|| "cpu".to_owned());
    let picture = PathBuf::from(arguments.next().unwrap_or_else(|| "alignment.svg".to_owned()));
    let corpus = Corpus::load()?;
    let found = match device.strip_prefix("cuda") {
        Some("") => on_gpu(&corpus, SHOWN[0], 0)?,
        Some(ordinal) => on_gpu(&corpus, SHOWN[0], ordinal.trim_start_matches(':').parse()?)?,
        None if device == "cpu" => on_cpu(&corpus, SHOWN[0])?,
        None => return Err(format!("found device `{device}`, expected cpu, cuda or cuda:N").into()),
    };
    let count = corpus.texts.len();
    println!("{count} docstrings against {count} functions on {device}");
    println!("recall@1 {:.4}  recall@10 {:.4}", recall(&found.ranking, count, 1), recall(&found.ranking, count, TOP));
    for query in SHOWN {
        println!("\n\"{}\" ({})", corpus.texts[query].query, corpus.texts[query].source);
        for (place, (doc, score)) in found.ranking.query(query).take(HITS).enumerate() {
            let own = if doc == query { "  <- its own" } else { "" };
            println!("  {}. {score:7.3}  {}{own}", place + 1, corpus.texts[doc].source);
        }
    }
    let best = best_of(&found.ranking, SHOWN[0])?;
    std::fs::write(&picture, alignment::draw(&corpus, SHOWN[0], best, &found.choices))?;
    println!(
        "\nwrote {}: what each word piece of the first query chose in {}",
        picture.display(),
        corpus.texts[best].source
    );
    Ok(())
}
