//! The SigLIP loss, plainly.

use super::{add_scaled, dot, e4m3_matrix, exactly, int8_columns, int8_factors, int8_logit_rows, sigmoid};
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
    with_negatives(img, txt, [(img, txt); 2], |_, _, q| [q; 2], dim, scalars)
}

/// The same with the logits of negative pairs from both matrices as [`e4m3_matrix`] rounds them. Gradients multiply the rows as they are. `kept`: what
/// is left of each of those dot products, 1 for exact sums; tensor cores drop low bits of FP8 sums as they add.
///
/// # Errors
/// As [`siglip_loss`].
pub fn siglip_fp8(img: &[f64], txt: &[f64], dim: usize, scalars: &SiglipScalars, kept: f64) -> Result<SiglipResult> {
    let images: Vec<f64> = e4m3_matrix(img).into_iter().map(|x| x * kept).collect();
    with_negatives(img, txt, [(&images, &e4m3_matrix(txt)), (img, txt)], |_, _, q| [q; 2], dim, scalars)
}

/// The same with negative pairs as route int8 has them: their logits from [`int8_logit_rows`], and in the gradients both matrices as [`int8_columns`] rounds them, times factors as
/// [`int8_factors`] rounds them, by rows for images and by columns for texts.
///
/// # Errors
/// As [`siglip_loss`].
pub fn siglip_int8(img: &[f64], txt: &[f64], dim: usize, scalars: &SiglipScalars) -> Result<SiglipResult> {
    positive("columns of img", dim)?;
    let (n, m) = (img.len() / dim, txt.len() / dim);
    exactly("img", img, &[n, dim])?;
    exactly("txt", txt, &[m, dim])?;
    let (of_images, of_texts) = int8_logit_rows(img, txt, dim);
    let logits = (&*of_images, &*of_texts);
    let (mut rows, mut columns) = (vec![0.0; n * m], vec![0.0; n * m]);
    pairs(img, txt, logits, dim, scalars, |i, j, y, _, z| {
        let q = if y > 0.0 { 0.0 } else { sigmoid(z) };
        (rows[i * m + j], columns[j * n + i]) = (q, q);
    })?;
    let rounded = |g: &[f64], length: usize| -> Vec<f64> {
        g.chunks(length.max(1)).flat_map(|row| int8_factors(row, 0)).collect()
    };
    let (rows, columns) = (rounded(&rows, m), rounded(&columns, n));
    let products = (&*int8_columns(img, dim), &*int8_columns(txt, dim));
    with_negatives(img, txt, [logits, products], |i, j, _| [rows[i * m + j], columns[j * n + i]], dim, scalars)
}

/// `logits`, `gradients`: the rows that are multiplied for negative pairs; `factors(i, j, q)`: what gradients of images and of texts take of dL/dz of such a pair.
fn with_negatives(
    img: &[f64],
    txt: &[f64],
    [logits, gradients]: [(&[f64], &[f64]); 2],
    factors: impl Fn(usize, usize, f64) -> [f64; 2],
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
        let ([of_img, of_txt], (a, b)) = if y > 0.0 { ([q; 2], (img, txt)) } else { (factors(i, j, q), gradients) };
        add_scaled(&mut d_img[i * dim..][..dim], of_img * scale * temperature, &b[j * dim..][..dim]);
        add_scaled(&mut d_txt[j * dim..][..dim], of_txt * scale * temperature, &a[i * dim..][..dim]);
    })?;
    Ok(SiglipResult { loss: loss / batch, d_img, d_txt, d_log_temp, d_bias })
}
