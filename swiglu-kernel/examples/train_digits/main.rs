//! A small classifier, one gated MLP, trained on real handwritten digits: forward, backward and all gradients through this crate, the
//! loss and the optimiser in plain Rust around it.
//!
//! ```text
//! cargo run --release -p swiglu-kernel --example train_digits
//! ```
//!
//! Runs on a GPU when there is one, and then on the CPU too, whose losses the GPU's must follow; else on the CPU alone, in well under a minute. Draws
//! loss and accuracy, and fails when the accuracy that this data allows is not reached.

mod chart;
mod data;
mod network;
mod optimiser;
mod random;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::network::{Device, Network};
use crate::train::{Run, Settings};

/// Test accuracy that training must reach.
const GOAL: f64 = 0.97;
/// How far a GPU's loss may lie from the CPU's at any step: f32 sums in another order, carried through hundreds of steps.
const TOLERANCE: f32 = 0.02;

/// Trains a gated MLP on handwritten digits.
#[derive(Parser)]
struct Arguments {
    /// Where the MLP is computed: auto, cpu, or cuda:0 for the first GPU.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Passes over the training images.
    #[arg(long, default_value_t = 40)]
    epochs: usize,
    /// The digits; the file in the repository unless told otherwise.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the chart goes; beside the executable unless told otherwise.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn train(arguments: &Arguments) -> Result<bool> {
    let path = arguments.data.clone().unwrap_or_else(data::default_path);
    let (training, test) = data::read(&path)?.split();
    println!("{} images to train on, {} to test", training.len(), test.len());
    let settings = Settings { epochs: arguments.epochs, ..Settings::default() };

    let mut network = Network::new(arguments.device, settings.batch, test.len())?;
    let run = train::run(&mut network, &training, &test, &settings)?;
    println!("{network}: loss {:.4}, test accuracy {:.4}", run.last_loss(), run.accuracy());
    let mut good = run.accuracy() >= GOAL;
    if !good {
        eprintln!("the test accuracy stayed below {GOAL}");
    }
    if network.is_on_gpu() {
        let mut host = Network::new(Device::Cpu, settings.batch, test.len())?;
        let reference = train::run(&mut host, &training, &test, &settings)?;
        let apart = farthest(&run, &reference);
        println!(
            "{host}: test accuracy {:.4}; losses of the two runs differ by {apart:.1e} at most",
            reference.accuracy()
        );
        if apart.is_nan() || apart > TOLERANCE {
            eprintln!("the losses should differ by {TOLERANCE} at most");
            good = false;
        }
    }

    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => std::env::current_exe().context("looking for a place for the chart")?.with_extension("svg"),
    };
    chart::draw(&out, &run)?;
    println!("chart: {}", out.display());
    Ok(good)
}

fn farthest(run: &Run, reference: &Run) -> f32 {
    let pairs = run.losses.iter().zip(&reference.losses);
    // NaN must not get lost in a maximum.
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |most: f32, apart| if apart <= most { most } else { apart })
}

fn main() -> ExitCode {
    match train(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
