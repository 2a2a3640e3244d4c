//! The training loop: batches, loss, steps.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::data::{CLASSES, Digits};
use crate::network::{Network, Parameters};
use crate::optimiser::Adam;
use crate::random::Random;

pub(crate) struct Settings {
    pub(crate) epochs: usize,
    pub(crate) batch: usize,
    pub(crate) rate: f32,
    pub(crate) seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { epochs: 40, batch: 64, rate: 2e-3, seed: 1 }
    }
}

/// What a training run gave.
pub(crate) struct Run {
    /// Of every step.
    pub(crate) losses: Vec<f32>,
    /// Step and test accuracy after every epoch.
    pub(crate) accuracies: Vec<(usize, f64)>,
}

impl Run {
    pub(crate) fn last_loss(&self) -> f32 {
        self.losses.last().copied().unwrap_or(f32::NAN)
    }

    pub(crate) fn accuracy(&self) -> f64 {
        self.accuracies.last().map_or(0.0, |(_, accuracy)| *accuracy)
    }
}

pub(crate) fn run(network: &mut Network, training: &Digits, test: &Digits, settings: &Settings) -> Result<Run> {
    let mut random = Random::new(settings.seed);
    let mut parameters = Parameters::new(&mut random);
    let mut optimisers = parameters.tensors().map(|tensor| Adam::new(settings.rate, tensor.len()));
    let mut order: Vec<usize> = (0..training.len()).collect();
    let mut run = Run { losses: Vec::new(), accuracies: Vec::new() };

    let style = ProgressStyle::with_template("{bar:40} epoch {pos}/{len} {elapsed} {msg}")?;
    let bar = ProgressBar::new(settings.epochs as u64).with_style(style);
    for _ in 0..settings.epochs {
        random.shuffle(&mut order);
        // The images left over take part in another epoch's batches.
        for batch in order.chunks_exact(settings.batch) {
            let x: Vec<f32> = batch.iter().flat_map(|&index| training.image(index)).copied().collect();
            let labels: Vec<usize> = batch.iter().map(|&index| training.labels[index]).collect();
            let logits = network.forward(&parameters, &x)?;
            let (loss, d_logits) = cross_entropy(&logits, &labels);
            let gradients = network.backward(&parameters, &x, &d_logits)?;
            let tensors = parameters.tensors_mut().into_iter().zip(gradients.tensors());
            for ((tensor, gradient), optimiser) in tensors.zip(&mut optimisers) {
                optimiser.step(tensor, gradient);
            }
            run.losses.push(loss);
        }
        let accuracy = accuracy(&network.infer(&parameters, &test.pixels)?, &test.labels);
        run.accuracies.push((run.losses.len(), accuracy));
        bar.set_message(format!("loss {:.4}, test accuracy {accuracy:.4}", run.last_loss()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(run)
}

/// The mean of -log softmax at the labels, and its gradient.
fn cross_entropy(logits: &[f32], labels: &[usize]) -> (f32, Vec<f32>) {
    let count = labels.len() as f32;
    let mut loss = 0.0;
    let mut gradient = Vec::with_capacity(logits.len());
    for (row, &label) in logits.chunks(CLASSES).zip(labels) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f32> = row.iter().map(|logit| (logit - largest).exp()).collect();
        let sum: f32 = exps.iter().sum();
        loss += sum.ln() + largest - row[label];
        let target = |class: usize| if class == label { 1.0 } else { 0.0 };
        gradient.extend(exps.iter().enumerate().map(|(class, exp)| (exp / sum - target(class)) / count));
    }
    (loss / count, gradient)
}

fn accuracy(logits: &[f32], labels: &[usize]) -> f64 {
    let best = |row: &[f32]| (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let right = logits.chunks(CLASSES).zip(labels).filter(|(row, label)| best(row) == Some(**label)).count();
    right as f64 / labels.len() as f64
}
