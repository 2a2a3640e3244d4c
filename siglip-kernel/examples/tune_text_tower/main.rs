//! Locked-tower tuning on real data: the code embeddings stay as they are, and a linear head on the query embeddings is trained with the SigLIP
//! loss, so that a docstring finds its function more often.
//!
//! ```text
//! cargo run --release -p siglip-kernel --example tune_text_tower
//! ```
//!
//! Runs on a GPU when there is one, else on the CPU in well under a minute. Draws loss and recall over the steps, and fails when the
//! recall that this data allows is not reached.

mod chart;
mod data;
mod head;
mod loss;
mod matrix;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use crate::chart::Point;
use crate::data::Pairs;
use crate::head::{Adam, Head};
use crate::loss::{Device, Loss};

/// Pairs that are trained on; the others validate.
const TRAINED: usize = 2000;
/// Validation recall@10 that training must reach.
const GOAL: f64 = 0.915;
/// Steps without a better validation recall after which training stops.
const PATIENCE: usize = 25;
const LEARNING_RATE: f32 = 1e-3;

/// Tunes a linear head on query embeddings with the SigLIP loss.
#[derive(Parser)]
struct Arguments {
    /// Where the loss is computed: auto, cpu, or cuda:0 for the first GPU.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Training steps, at most.
    #[arg(long, default_value_t = 100)]
    steps: usize,
    /// Safetensors file with `query` and `code`; the one in the repository unless told otherwise.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the chart goes; beside the executable unless told otherwise.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Of the validation pairs: how many queries have their code among the nearest 1 and 10.
fn recall(head: &Head, validation: &Pairs) -> [f64; 2] {
    let queries = head.apply(&validation.queries);
    let scores = queries.rows.times_transposed(&validation.codes);
    let rank = |row: usize| scores.row(row).iter().filter(|score| **score > scores.row(row)[row]).count();
    let ranks: Vec<usize> = (0..scores.rows).map(rank).collect();
    [1, 10].map(|k| ranks.iter().filter(|rank| **rank < k).count() as f64 / ranks.len() as f64)
}

fn train(arguments: &Arguments) -> Result<bool> {
    let path = arguments.data.clone().unwrap_or_else(data::default_path);
    let (training, validation) = data::read(&path)?.split(TRAINED)?;
    let mut loss = Loss::new(arguments.device, &training.codes)?;
    let mut head = Head::identity(training.queries.cols);
    let mut adam = Adam::new(LEARNING_RATE, head.weight.data.len());

    let before = recall(&head, &validation);
    let (mut best, mut best_step) = (before, 0);
    let mut points = Vec::new();
    println!("{} pairs to train on, {} to validate; loss by {loss}", training.len(), validation.len());
    println!("before: recall@1 {:.3}, recall@10 {:.3}", before[0], before[1]);

    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} {msg}")?;
    let bar = ProgressBar::new(arguments.steps as u64).with_style(style);
    for step in 1..=arguments.steps {
        let queries = head.apply(&training.queries);
        let (value, d_queries) = loss.step(&queries.rows)?;
        let d_weight = head.gradient(&training.queries, &queries, &d_queries);
        adam.step(&mut head.weight.data, &d_weight.data);
        let now = recall(&head, &validation);
        points.push(Point { step, loss: value, recall: now });
        // By recall@10, then by recall@1.
        if (now[1], now[0]) > (best[1], best[0]) {
            (best, best_step) = (now, step);
        }
        bar.set_message(format!("loss {value:.4}, recall@10 {:.3} (best {:.3})", now[1], best[1]));
        bar.inc(1);
        if step - best_step >= PATIENCE {
            break;
        }
    }
    bar.finish_and_clear();
    println!("after {best_step} steps: recall@1 {:.3}, recall@10 {:.3}", best[0], best[1]);

    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => std::env::current_exe().context("looking for a place for the chart")?.with_extension("svg"),
    };
    chart::draw(&out, before, &points)?;
    println!("chart: {}", out.display());
    Ok(best[1] >= GOAL)
}

fn main() -> ExitCode {
    match train(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("recall@10 stayed below {GOAL}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
