//! Arguments and results of the loss.

use crate::error::{Error, Result};
use crate::host::{finite, positive};

/// Which pairs are positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positives {
    /// Row `i` is positive with column `i + offset`, where that column exists.
    Diagonal {
        /// Column of row 0's positive; it may be negative, or so large that no row has one.
        offset: i64,
    },
    /// No pair is positive: a block of images and texts of different ranks.
    None,
}

impl Positives {
    /// The column that is positive with `row`, among `cols`.
    pub fn column(&self, row: usize, cols: usize) -> Option<usize> {
        match *self {
            Self::None => None,
            // i128 holds every sum of a usize and an i64.
            Self::Diagonal { offset } => {
                usize::try_from(row as i128 + i128::from(offset)).ok().filter(|&col| col < cols)
            }
        }
    }
}

/// The scalars of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SiglipParams {
    /// Logarithm of the temperature that multiplies the dot products.
    pub log_temp: f32,
    /// Added to every logit.
    pub bias: f32,
    /// The positive pairs.
    pub positives: Positives,
    /// Divisor of the sum over pairs; the global batch when the call is one block of it.
    pub batch: usize,
    /// The gradient that arrives at the loss; it scales every gradient, and not the loss.
    pub upstream: f32,
}

impl SiglipParams {
    /// The loss of one whole batch: positives on the diagonal, divisor `batch`, upstream gradient 1.
    pub fn square(batch: usize, log_temp: f32, bias: f32) -> Self {
        Self { log_temp, bias, positives: Positives::Diagonal { offset: 0 }, batch, upstream: 1.0 }
    }

    /// Checks the scalars; gives `exp(log_temp)`.
    pub(crate) fn temperature(&self) -> Result<f32> {
        positive("batch", self.batch)?;
        finite("log_temp", self.log_temp)?;
        finite("bias", self.bias)?;
        finite("upstream", self.upstream)?;
        finite("exp(log_temp)", f64::from(self.log_temp).exp() as f32)
    }

    /// What turns `Σ_j w_ij txt_j` into the gradient of image `i`.
    pub(crate) fn gradient_scale(&self, temperature: f32) -> Result<f32> {
        let scale = f64::from(self.upstream) * f64::from(temperature) / self.batch as f64;
        finite("upstream * exp(log_temp) / batch", scale as f32)
    }
}

/// The loss and the gradients of its scalars; those of the embeddings go to the caller's matrices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gradients {
    /// The loss, not scaled by `upstream`.
    pub loss: f32,
    /// dL/d log_temp, times `upstream`.
    pub d_log_temp: f32,
    /// dL/d bias, times `upstream`.
    pub d_bias: f32,
}

/// An error unless images and texts are not empty and have one dimension.
pub(crate) fn check_dims(img: (usize, usize), txt: (usize, usize)) -> Result<()> {
    positive("rows of img", img.0)?;
    positive("rows of txt", txt.0)?;
    positive("columns of img", img.1)?;
    if img.1 != txt.1 {
        return Err(Error::Shape {
            what: "txt",
            found: format!("[{}, {}]", txt.0, txt.1),
            expected: format!("[{}, {}], the dimension of img", txt.0, img.1),
        });
    }
    Ok(())
}
