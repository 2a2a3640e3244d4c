//! The pass over a tile of dot products: losses, weights of the gradients, and their sums.

use crate::vector::{dot_product, mul_add, multiversion, softplus_sigmoid, sum};

/// Scalars of the pass.
#[derive(Clone, Copy)]
pub(super) struct Logit {
    pub(super) temperature: f32,
    pub(super) bias: f32,
}

/// Sums over the pairs of a tile, to be divided by the batch.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    /// Σ -log sigmoid(y z)
    pub(super) loss: f64,
    /// Σ w (z - bias), w being the derivative of the above by z
    pub(super) log_temp: f64,
    /// Σ w
    pub(super) bias: f64,
}

impl Sums {
    pub(super) fn add(&mut self, other: Self) {
        self.loss += other.loss;
        self.log_temp += other.log_temp;
        self.bias += other.bias;
    }
}

/// One row's buffers, reused from row to row.
pub(super) struct RowScratch {
    losses: Vec<f32>,
    scaled: Vec<f32>,
}

impl RowScratch {
    pub(super) fn new(width: usize) -> Self {
        Self { losses: vec![0.0; width], scaled: vec![0.0; width] }
    }
}

/// Turns a row of dot products into weights dL/dz (before the division by the batch) and gives its sums. `positive` is the
/// column of the row's positive pair.
pub(super) fn row(dots: &mut [f32], positive: Option<usize>, logit: Logit, scratch: &mut RowScratch) -> Sums {
    let losses = &mut scratch.losses[..dots.len()];
    let scaled = &mut scratch.scaled[..dots.len()];
    let dot = positive.map(|col| dots[col]);
    negatives(dots, losses, scaled, logit.temperature, logit.bias);
    if let (Some(col), Some(dot)) = (positive, dot) {
        // The same functions at -z: log sigmoid(z) is -softplus(-z).
        let (loss, weight) = softplus_sigmoid::<false>(-(logit.temperature * dot + logit.bias));
        losses[col] = loss;
        dots[col] = -weight;
    }
    Sums { loss: sum(losses), log_temp: dot_product(dots, scaled), bias: sum(dots) }
}

/// The loss alone of a row of dot products.
pub(super) fn row_loss(dots: &[f32], positive: Option<usize>, logit: Logit, scratch: &mut RowScratch) -> f64 {
    let losses = &mut scratch.losses[..dots.len()];
    negative_losses(dots, losses, logit.temperature, logit.bias);
    if let Some(col) = positive {
        losses[col] = softplus_sigmoid::<false>(-(logit.temperature * dots[col] + logit.bias)).0;
    }
    sum(losses)
}

multiversion! {
    fn negatives(dots: &mut [f32], losses: &mut [f32], scaled: &mut [f32], temperature: f32, bias: f32) = negatives_body
}

#[inline(always)]
fn negatives_body<const FMA: bool>(
    dots: &mut [f32],
    losses: &mut [f32],
    scaled: &mut [f32],
    temperature: f32,
    bias: f32,
) {
    for ((dot, loss), scaled) in dots.iter_mut().zip(losses).zip(scaled) {
        *scaled = temperature * *dot;
        (*loss, *dot) = softplus_sigmoid::<FMA>(mul_add::<FMA>(temperature, *dot, bias));
    }
}

multiversion! {
    fn negative_losses(dots: &[f32], losses: &mut [f32], temperature: f32, bias: f32) = negative_losses_body
}

#[inline(always)]
fn negative_losses_body<const FMA: bool>(dots: &[f32], losses: &mut [f32], temperature: f32, bias: f32) {
    for (dot, loss) in dots.iter().zip(losses) {
        *loss = softplus_sigmoid::<FMA>(mul_add::<FMA>(temperature, *dot, bias)).0;
    }
}
