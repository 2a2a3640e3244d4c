//! What a case should give, in f64, and how exactly an implementation can be expected to hit it.

use super::case::{Case, LARGEST_LOGIT};
use crate::parity::deviation::{Deviation, Floor};
use crate::parity::runner::Measured;
use rayon::prelude::*;
use reference_cpu::naive::{self, SiglipResult, SiglipScalars};

pub(crate) const OPS: &[&str] = &["forward", "step", "step scalars"];

/// Bounds on the relative error of each kind of result, before what the size of the logits adds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerances {
    loss: f64,
    /// d_img and d_txt.
    gradients: f64,
    /// d_log_temp and d_bias, against the sum of their terms' absolute values.
    scalars: f64,
    /// Smallest normal number of the dtype: results below it cannot be relatively exact.
    smallest_normal: f64,
}

/// f32 logits carry an absolute error of about |z| 2^-23 (the dot product's, the temperature's and their product's roundings), which is a
/// relative error of the same size in exp(z), hence in every gradient term.
const PER_LOGIT: f64 = f32::EPSILON as f64;

impl Tolerances {
    /// f32: the loss within 1e-5 and gradients within 2e-6, the bounds the project set itself. 16-bit: a gradient is rounded to its dtype
    /// at most twice, as a term (the matrix of pair gradients that a tensor core multiplies) and as a result: two units of roundoff
    /// (2^-9 bf16, 2^-12 f16), plus a tenth for what f32 accumulation adds. Scalars are accumulated in f32 or better in every dtype.
    pub(crate) fn of(dtype: &str) -> Self {
        let f32_class = Self { loss: 1e-5, gradients: 2e-6, scalars: 1e-5, smallest_normal: f64::from(f32::MIN_POSITIVE) };
        match dtype {
            "bf16" => Self { gradients: 2.2 / 512.0, ..f32_class },
            "f16" => Self { gradients: 2.2 / 2048.0, smallest_normal: 1.0 / 16384.0, ..f32_class },
            _ => f32_class,
        }
    }
}

/// Loss and gradients in f64 of the inputs as rounded, and the sizes to measure deviations against.
pub(crate) struct Truth {
    result: SiglipResult,
    d_img: Floor,
    d_txt: Floor,
    /// Sum of the absolute values of the terms of d_log_temp and of d_bias.
    scalars: [f64; 2],
    largest_logit: f64,
    tolerances: Tolerances,
}

/// What an implementation gave.
pub(crate) struct Found {
    /// The loss of `forward`.
    pub(crate) forward: f64,
    /// The loss of the step.
    pub(crate) loss: f64,
    pub(crate) d_img: Vec<f64>,
    pub(crate) d_txt: Vec<f64>,
    pub(crate) d_log_temp: f64,
    pub(crate) d_bias: f64,
}

impl Truth {
    pub(crate) fn new(case: &Case, img: &[f64], txt: &[f64], tolerances: Tolerances) -> Result<Self, String> {
        let scalars = SiglipScalars::from(&case.params);
        let result = naive::siglip(img, txt, case.dim, &scalars).map_err(|error| error.to_string())?;
        let sizes = TermSizes::new(case, img, txt);
        if sizes.largest_logit > f64::from(LARGEST_LOGIT) * 1.05 {
            return Err(format!("the case reaches |z| = {}, more than it was made for", sizes.largest_logit));
        }
        let floor = |squares: &[f64]| {
            let (sum, max) = squares.iter().fold((0.0, 0.0f64), |(sum, max), s| (sum + s, max.max(*s)));
            let per_element = |row_squares: f64| (row_squares / case.dim as f64).sqrt();
            let count = (squares.len() * case.dim) as f64;
            Floor {
                max: per_element(max).max(tolerances.smallest_normal),
                l2: sum.sqrt().max(tolerances.smallest_normal * count.sqrt()),
            }
        };
        let (d_img, d_txt) = (floor(&sizes.img), floor(&sizes.txt));
        Ok(Self { result, d_img, d_txt, scalars: sizes.scalars, largest_logit: sizes.largest_logit, tolerances })
    }

    /// The deviations of `found`; `slack` widens the tolerances (to 2 where two implementations meet that may each err).
    pub(crate) fn measure(&self, found: &Found, slack: f64) -> Vec<Measured> {
        let truth = &self.result;
        let logits = self.largest_logit * PER_LOGIT;
        let measured = |op, what, deviation, tolerance: f64| Measured {
            op,
            what,
            deviation,
            tolerance: (tolerance + logits) * slack,
        };
        let loss = |loss| Deviation::of([loss], &[truth.loss], Floor { max: 1e-30, l2: 1e-30 });
        let matrix = |found: &[f64], truth: &[f64], floor| Deviation::of(found.iter().copied(), truth, floor);
        let Tolerances { loss: for_loss, gradients, scalars, .. } = self.tolerances;
        vec![
            measured("forward", "loss", loss(found.forward), for_loss),
            measured("step scalars", "loss", loss(found.loss), for_loss),
            measured("step", "d_img", matrix(&found.d_img, &truth.d_img, self.d_img), gradients),
            measured("step", "d_txt", matrix(&found.d_txt, &truth.d_txt, self.d_txt), gradients),
            measured(
                "step scalars",
                "d_log_temp",
                Deviation::of_sum(found.d_log_temp, truth.d_log_temp, self.scalars[0]),
                scalars,
            ),
            measured("step scalars", "d_bias", Deviation::of_sum(found.d_bias, truth.d_bias, self.scalars[1]), scalars),
        ]
    }
}

/// Sizes of the terms that the gradients are sums of.
struct TermSizes {
    /// For each image the squared length of d_img's row if its terms had random signs.
    img: Vec<f64>,
    txt: Vec<f64>,
    scalars: [f64; 2],
    largest_logit: f64,
}

impl TermSizes {
    fn new(case: &Case, img: &[f64], txt: &[f64]) -> Self {
        let p = &case.params;
        let temperature = f64::from(p.log_temp).exp();
        let weight = f64::from(p.upstream) / p.batch as f64;
        let squared = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>();
        let txt_squares: Vec<f64> = txt.chunks(case.dim).map(squared).collect();
        let rows = img.par_chunks(case.dim).enumerate().map(|(i, row)| {
            let positive = p.positives.column(i, case.cols);
            let row_squared = squared(row);
            let mut size = Self { img: vec![0.0], txt: vec![0.0; case.cols], scalars: [0.0; 2], largest_logit: 0.0 };
            for (j, column) in txt.chunks(case.dim).enumerate() {
                let scaled = temperature * row.iter().zip(column).map(|(a, b)| a * b).sum::<f64>();
                let z = scaled + f64::from(p.bias);
                let towards = if positive == Some(j) { -z } else { z };
                let term = weight / (1.0 + (-towards).exp());
                size.img[0] += (term * temperature).powi(2) * txt_squares[j];
                size.txt[j] = (term * temperature).powi(2) * row_squared;
                size.scalars[0] += (term * scaled).abs();
                size.scalars[1] += term.abs();
                size.largest_logit = size.largest_logit.max(z.abs());
            }
            size
        });
        let empty = || Self { img: Vec::new(), txt: vec![0.0; case.cols], scalars: [0.0; 2], largest_logit: 0.0 };
        rows.collect::<Vec<_>>().into_iter().fold(empty(), |mut all, row| {
            all.img.extend(row.img);
            all.txt.iter_mut().zip(row.txt).for_each(|(sum, term)| *sum += term);
            all.scalars = [all.scalars[0] + row.scalars[0], all.scalars[1] + row.scalars[1]];
            all.largest_logit = all.largest_logit.max(row.largest_logit);
            all
        })
    }
}
