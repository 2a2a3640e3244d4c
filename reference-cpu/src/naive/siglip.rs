//! The SigLIP loss, plainly.

use super::{add_scaled, dot, e4m3_matrix, e5m2, exactly, fp8_logit_rows, sigmoid};
use crate::error::Result;
use crate::host::positive;
use crate::siglip::{Positives, SiglipParams};

/// The scalars of the loss in f64, so that finite differences can move them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SiglipScalars {
    /// Logarithm of the temperature.
    pub log_temp: f64,
    /// Added to every logit.
    pub bias: f64,
    /// The positive pairs.
    pub positives: Positives,
    /// Divisor of the sum over pairs.
    pub batch: usize,
    /// Scales every gradient, and not the loss.
    pub upstream: f64,
}

impl From<&SiglipParams> for SiglipScalars {
    fn from(params: &SiglipParams) -> Self {
        Self {
            log_temp: f64::from(params.log_temp),
            bias: f64::from(params.bias),
            positives: params.positives,
            batch: params.batch,
            upstream: f64::from(params.upstream),
        }
    }
}

/// Loss and gradients in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipResult {
    /// The loss.
    pub loss: f64,
    /// `[N, D]`
    pub d_img: Vec<f64>,
    /// `[M, D]`
    pub d_txt: Vec<f64>,
    /// dL/d log_temp
    pub d_log_temp: f64,
    /// dL/d bias
    pub d_bias: f64,
}

/// Calls `pair(i, j, y, z - bias, z)` for every pair. `negatives`: the rows, of any length, that the dot products of pairs that are not positive are of.
fn pairs(
    img: &[f64],
    txt: &[f64],
    negatives: (&[f64], &[f64]),
    dim: usize,
    scalars: &SiglipScalars,
    mut pair: impl FnMut(usize, usize, f64, f64, f64),
) -> Result<(usize, usize)> {
    positive("columns of img", dim)?;
    positive("batch", scalars.batch)?;
    let (n, m) = (img.len() / dim, txt.len() / dim);
    exactly("img", img, &[n, dim])?;
    exactly("txt", txt, &[m, dim])?;
    let length = negatives.0.len() / n.max(1);
    for i in 0..n {
        let positive = scalars.positives.column(i, m);
        for j in 0..m {
            let (y, (a, b), dim) = if positive == Some(j) { (1.0, (img, txt), dim) } else { (-1.0, negatives, length) };
            let scaled = scalars.log_temp.exp() * dot(&a[i * dim..][..dim], &b[j * dim..][..dim]);
            pair(i, j, y, scaled, scaled + scalars.bias);
        }
    }
    Ok((n, m))
}

/// `-log sigmoid(x)`
fn minus_log_sigmoid(x: f64) -> f64 {
    // f64::max would drop a NaN; the second term keeps it.
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The loss alone. `img` is `[N, dim]`, `txt` `[M, dim]`, dense.
///
/// # Errors
/// [`Shape`](crate::Error::Shape) when a slice is not whole rows, [`ZeroSize`](crate::Error::ZeroSize) for a zero `dim` or batch.
pub fn siglip_loss(img: &[f64], txt: &[f64], dim: usize, scalars: &SiglipScalars) -> Result<f64> {
    let mut loss = 0.0;
    pairs(img, txt, (img, txt), dim, scalars, |_, _, y, _, z| loss += minus_log_sigmoid(y * z))?;
    Ok(loss / scalars.batch as f64)
}

/// The loss and all gradients. `img` is `[N, dim]`, `txt` `[M, dim]`, dense.
///
/// # Errors
/// As [`siglip_loss`].
pub fn siglip(img: &[f64], txt: &[f64], dim: usize, scalars: &SiglipScalars) -> Result<SiglipResult> {
    with_negatives(img, txt, [(img, txt); 2], |q| q, dim, scalars)
}

/// The same with the logits of negative pairs from both matrices as [`e4m3_matrix`] rounds them. Gradients multiply the rows as they are. `kept`: what
/// is left of each of those dot products, 1 for exact sums; tensor cores drop low bits of FP8 sums as they add.
///
/// # Errors
/// As [`siglip_loss`].
pub fn siglip_fp8(img: &[f64], txt: &[f64], dim: usize, scalars: &SiglipScalars, kept: f64) -> Result<SiglipResult> {
    let images: Vec<f64> = e4m3_matrix(img).into_iter().map(|x| x * kept).collect();
    with_negatives(img, txt, [(&images, &e4m3_matrix(txt)), (img, txt)], |q| q, dim, scalars)
}

/// The same with negative pairs as route fp8-all has them: their logits from [`fp8_logit_rows`], and in the gradients both matrices as [`e4m3_matrix`] rounds them, times factors that
/// are rounded too, as [`e5m2`] of 2^15 of them. `kept`: what is left of each of the dot products of rounded rows, 1 for exact sums; tensor cores drop low bits of FP8 sums as they add.
///
/// # Errors
/// As [`siglip_loss`].
pub fn siglip_fp8_all(
    img: &[f64],
    txt: &[f64],
    dim: usize,
    scalars: &SiglipScalars,
    kept: f64,
) -> Result<SiglipResult> {
    positive("columns of img", dim)?;
    exactly("img", img, &[img.len() / dim, dim])?;
    let (mut of_images, of_texts) = fp8_logit_rows(img, txt, dim);
    of_images.chunks_mut(dim + 1).for_each(|row| row[..dim].iter_mut().for_each(|x| *x *= kept));
    let rounded = (&*e4m3_matrix(img), &*e4m3_matrix(txt));
    with_negatives(img, txt, [(&of_images, &of_texts), rounded], |q| e5m2(q * 32768.0) / 32768.0, dim, scalars)
}

/// `logits`, `gradients`: the rows that are multiplied for negative pairs; `factor`: what of dL/dz of such a pair gradients take.
fn with_negatives(
    img: &[f64],
    txt: &[f64],
    [logits, gradients]: [(&[f64], &[f64]); 2],
    factor: impl Fn(f64) -> f64,
    dim: usize,
    scalars: &SiglipScalars,
) -> Result<SiglipResult> {
    let (mut d_img, mut d_txt) = (vec![0.0; img.len()], vec![0.0; txt.len()]);
    let (mut loss, mut d_log_temp, mut d_bias) = (0.0, 0.0, 0.0);
    let temperature = scalars.log_temp.exp();
    let batch = scalars.batch as f64;
    pairs(img, txt, logits, dim, scalars, |i, j, y, scaled, z| {
        loss += minus_log_sigmoid(y * z);
        // d/dz of -log sigmoid(y z) is -y sigmoid(-y z).
        let q = -y * sigmoid(-y * z);
        let scale = scalars.upstream / batch;
        d_log_temp += q * scale * scaled;
        d_bias += q * scale;
        let (q, (a, b)) = if y > 0.0 { (q, (img, txt)) } else { (factor(q), gradients) };
        add_scaled(&mut d_img[i * dim..][..dim], q * scale * temperature, &b[j * dim..][..dim]);
        add_scaled(&mut d_txt[j * dim..][..dim], q * scale * temperature, &a[i * dim..][..dim]);
    })?;
    Ok(SiglipResult { loss: loss / batch, d_img, d_txt, d_log_temp, d_bias })
}
