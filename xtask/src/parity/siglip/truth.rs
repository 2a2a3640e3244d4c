//! What a case should give, in f64, and how exactly an implementation can be expected to hit it.

use super::case::{Case, LARGEST_LOGIT, widen};
use super::int8;
use crate::parity::deviation::{Deviation, Floor};
use crate::parity::runner::Measured;
use crate::siglip::{Number, Step};
use kernel_core::DType;
use rayon::prelude::*;
use reference_cpu::naive::{self, SiglipResult, SiglipScalars};
use siglip_kernel::Route;

pub(crate) const OPS: &[&str] = &["forward", "step", "step scalars"];

/// Bounds on the relative error of each kind of result, before what the size of the logits adds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerances {
    loss: f64,
    /// d_img and d_txt, when the gradient has at least 64 columns.
    gradients: Deviation,
    /// The same for fewer columns, where single roundings do not average out.
    narrow_gradients: Deviation,
    /// d_log_temp and d_bias, against the sum of their terms' absolute values.
    scalars: f64,
    /// Smallest normal number of the dtype: results below it cannot be relatively exact.
    smallest_normal: f64,
    /// Whether dot products may come from tensor cores.
    tensor_cores: bool,
}

/// f32 logits carry an absolute error of about |z| 2^-23 (the dot product's, the temperature's and their product's roundings), which is a
/// relative error of the same size in exp(z), hence in every gradient term.
const PER_LOGIT: f64 = f32::EPSILON as f64;

/// Tensor cores add the products of 16 features at a time to the running dot product and truncate, up to half of 2^-23 of it each time.
const PER_LOGIT_AND_MMA: f64 = 0.5 * f32::EPSILON as f64;

/// FP8 products are added 32 at a time to a running dot product, of which, as of each product, what is below this much of the largest of them is dropped.
const DROPPED: f64 = 1.0 / 8192.0;

/// Units of [`DROPPED`] that a dot product of `dim` FP8 features may lose. Of the running sum up to one at each addition, always towards zero. The products lose
/// up to one each towards zero as well, but have either sign: in all √(32 / 3) at an addition as a standard deviation, five of which the
/// farthest of half a million pairs stays within. The first additions' sums are no more than theirs.
fn dropped(dim: usize) -> f64 {
    let additions = dim.div_ceil(32) as f64;
    (additions + 5.0 * (additions * 32.0 / 3.0).sqrt()) * DROPPED
}

impl Tolerances {
    /// f32: the loss within 1e-5 and gradients within 2e-6, the bounds the project set itself. 16-bit: a gradient is rounded to its dtype
    /// at most twice, as a term (the matrix of pair gradients that a tensor core multiplies) and as a result, each by at most the unit
    /// roundoff u (2^-8 bf16, 2^-11 f16): 2 u, plus a tenth for what f32 accumulation adds. In the 2-norm the roundings of the results
    /// average to 0.41 u; those of the terms may not, where one positive outweighs all other pairs: together at most 1.1 u. Scalars
    /// are accumulated in f32 or better in every dtype.
    pub(crate) fn of(dtype: DType) -> Self {
        let f32_class = Self {
            loss: 1e-5,
            gradients: Deviation::both(2e-6),
            narrow_gradients: Deviation::both(2e-6),
            scalars: 1e-5,
            smallest_normal: f64::from(f32::MIN_POSITIVE),
            tensor_cores: false,
        };
        let rounded = |unit: f64, smallest_normal| Self {
            gradients: Deviation { max_rel: 2.2 * unit, l2_rel: 1.2 * unit },
            narrow_gradients: Deviation::both(2.2 * unit),
            smallest_normal,
            tensor_cores: true,
            ..f32_class
        };
        match dtype {
            DType::Bf16 => rounded(1.0 / 256.0, f32_class.smallest_normal),
            DType::F16 => rounded(1.0 / 2048.0, 1.0 / 16384.0),
            DType::F32 => f32_class,
        }
    }
}

/// Loss and gradients in f64 of the inputs as rounded, and the sizes to measure deviations against.
pub(crate) struct Truth {
    result: Found,
    /// Of the routes of 8 bits: results moved by as much as their arithmetic may move them, one way or the other.
    farthest: Vec<Found>,
    d_img: Floor,
    d_txt: Floor,
    /// Sum of the absolute values of the terms of d_log_temp and of d_bias.
    scalars: [f64; 2],
    largest_logit: f64,
    dim: usize,
    tolerances: Tolerances,
}

/// What the operations gave.
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

impl Found {
    pub(crate) fn new<T: Number>(forward: f32, step: &Step<T>) -> Self {
        Self {
            forward: f64::from(forward),
            loss: f64::from(step.loss),
            d_img: widen(&step.d_img),
            d_txt: widen(&step.d_txt),
            d_log_temp: f64::from(step.d_log_temp),
            d_bias: f64::from(step.d_bias),
        }
    }
}

impl From<SiglipResult> for Found {
    fn from(naive: SiglipResult) -> Self {
        Found {
            forward: naive.loss,
            loss: naive.loss,
            d_img: naive.d_img,
            d_txt: naive.d_txt,
            d_log_temp: naive.d_log_temp,
            d_bias: naive.d_bias,
        }
    }
}

impl Truth {
    pub(crate) fn new(case: &Case, img: &[f64], txt: &[f64], tolerances: Tolerances) -> Result<Self, String> {
        let result = naive::siglip(img, txt, case.dim, &SiglipScalars::from(&case.params));
        Self::of(case, img, txt, tolerances, result.map_err(|error| error.to_string())?.into())
    }

    /// The same for the routes fp8 and int8, whose quantisation is no deviation.
    pub(crate) fn quantised(
        case: &Case,
        route: Route,
        img: &[f64],
        txt: &[f64],
        tolerances: Tolerances,
    ) -> Result<Self, String> {
        let scalars = SiglipScalars::from(&case.params);
        let found =
            |result: reference_cpu::Result<SiglipResult>| result.map(Found::from).map_err(|error| error.to_string());
        let fp8 = |kept| found(naive::siglip_fp8(img, txt, case.dim, &scalars, kept));
        let (result, farthest) = if route == Route::Int8 {
            let result = found(naive::siglip_int8(img, txt, case.dim, &scalars))?;
            let farthest = int8::farthest(case, img, txt, &result);
            (result, vec![farthest])
        } else {
            let by = dropped(case.dim);
            (fp8(1.0)?, vec![fp8(1.0 - by)?, fp8(1.0 + by)?])
        };
        Ok(Self { farthest, ..Self::of(case, img, txt, tolerances, result)? })
    }

    fn of(case: &Case, img: &[f64], txt: &[f64], tolerances: Tolerances, result: Found) -> Result<Self, String> {
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
        Ok(Self {
            result,
            farthest: Vec::new(),
            d_img,
            d_txt,
            scalars: sizes.scalars,
            largest_logit: sizes.largest_logit,
            dim: case.dim,
            tolerances,
        })
    }

    /// The deviations of `found` from the truth.
    pub(crate) fn measure(&self, found: &Found) -> Vec<Measured> {
        self.compare(found, &self.result, 1.0)
    }

    /// The deviations of two implementations from each other, each of which may err. They are checked, and count in no line.
    pub(crate) fn measure_between(&self, found: &Found, other: &Found) -> Vec<Measured> {
        let between = self.compare(found, other, 2.0).into_iter();
        between.map(|measured| Measured { op: "comparison with reference-cpu", ..measured }).collect()
    }

    fn compare(&self, found: &Found, truth: &Found, slack: f64) -> Vec<Measured> {
        let mut measured = self.compare_exact(found, truth, slack);
        let moved: Vec<_> = self.farthest.iter().map(|farthest| self.compare_exact(farthest, truth, slack)).collect();
        for (index, measured) in measured.iter_mut().enumerate() {
            let most = moved.iter().fold(Deviation::default(), |most, moved| most.join(moved[index].deviation));
            measured.tolerance.max_rel += most.max_rel;
            measured.tolerance.l2_rel += most.l2_rel;
        }
        measured
    }

    fn compare_exact(&self, found: &Found, truth: &Found, slack: f64) -> Vec<Measured> {
        let additions = if self.tolerances.tensor_cores { (self.dim / 16) as f64 } else { 0.0 };
        let logits = self.largest_logit * (PER_LOGIT + additions * PER_LOGIT_AND_MMA);
        let widened = |tolerance: f64| (tolerance + logits) * slack;
        let measured = |op, what, deviation, tolerance: Deviation| {
            let tolerance = Deviation { max_rel: widened(tolerance.max_rel), l2_rel: widened(tolerance.l2_rel) };
            Measured { op, what, deviation, tolerance }
        };
        let loss = |found, truth| Deviation::of([found], &[truth], Floor { max: 1e-30, l2: 1e-30 });
        let matrix = |found: &[f64], truth: &[f64], floor| Deviation::of(found.iter().copied(), truth, floor);
        let Tolerances { gradients, narrow_gradients, .. } = self.tolerances;
        let gradients = if self.dim < 64 { narrow_gradients } else { gradients };
        let (for_loss, scalars) = (Deviation::both(self.tolerances.loss), Deviation::both(self.tolerances.scalars));
        vec![
            measured("forward", "loss", loss(found.forward, truth.forward), for_loss),
            measured("step scalars", "loss", loss(found.loss, truth.loss), for_loss),
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
