//! Finds functions of the Python standard library by what their docstrings say.
//!
//! ```text
//! cargo run --release -p maxsim-kernel --example search_code
//! ```
//!
//! 512 docstrings are the queries, 512 function bodies the documents, both one embedding a word piece (`data/docstring-code/NOTICE.md`). Runs on a GPU when there
//! is one, else on the CPU in seconds. Prints the recall and the best hits of a few queries, draws which word piece of the code each word piece of one query
//! chose, and fails when the recall is not what these embeddings give.

mod alignment;
mod data;
mod search;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use maxsim_kernel::Ranking;

use crate::data::Corpus;
use crate::search::{Device, Found};

/// Hits that are ranked.
const TOP: usize = 10;
/// Recall among so many hits that the data's notice states, and how far from it a ranking may be: a query of the 512.
const RECALL: [(usize, f64); 2] = [(1, 0.588), (TOP, 0.910)];
const TOLERANCE: f64 = 0.002;
/// Queries whose hits are printed; the first one's alignment is drawn.
const SHOWN: [usize; 4] = [0, 100, 250, 400];
const HITS: usize = 3;

/// Finds functions by their docstrings.
#[derive(Parser)]
struct Arguments {
    /// Where it is computed: auto, cpu, or cuda:0 for the first GPU.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Folder of the texts and embeddings; the one in the repository unless told otherwise.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the picture goes; beside the executable unless told otherwise.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The share of queries whose own function is among the first `top`.
fn recall(ranking: &Ranking, queries: usize, top: usize) -> f64 {
    let found = |query: &usize| ranking.query(*query).take(top).any(|(doc, _)| doc == *query);
    (0..queries).filter(found).count() as f64 / queries as f64
}

fn run(arguments: &Arguments) -> Result<bool> {
    let corpus = Corpus::load(&arguments.data.clone().unwrap_or_else(data::default_path))?;
    let Found { device, ranking, best, choices } = search::search(arguments.device, &corpus, TOP, SHOWN[0])?;
    let count = corpus.texts.len();
    println!("{count} docstrings against {count} functions on {device}");
    let mut good = true;
    for (top, expected) in RECALL {
        let found = recall(&ranking, count, top);
        println!("recall@{top} {found:.4}");
        if (found - expected).abs() > TOLERANCE {
            eprintln!("recall@{top} should be {expected} to within {TOLERANCE}");
            good = false;
        }
    }
    for query in SHOWN.into_iter().filter(|&query| query < count) {
        println!("\n\"{}\" ({})", corpus.texts[query].query, corpus.texts[query].source);
        for (place, (doc, score)) in ranking.query(query).take(HITS).enumerate() {
            let own = if doc == query { "  <- its own" } else { "" };
            println!("  {}. {score:7.3}  {}{own}", place + 1, corpus.texts[doc].source);
        }
    }
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => std::env::current_exe().context("looking for a place for the picture")?.with_extension("svg"),
    };
    std::fs::write(&out, alignment::draw(&corpus, SHOWN[0], best, &choices))
        .with_context(|| format!("writing {}", out.display()))?;
    println!("\nwhat each word piece of the first query chose in {}: {}", corpus.texts[best].source, out.display());
    Ok(good)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
