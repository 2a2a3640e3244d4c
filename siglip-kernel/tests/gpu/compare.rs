//! Results against f64 on the inputs as rounded.

use reference_cpu::naive::{self, SiglipScalars};
use reference_cpu::siglip;
use siglip_kernel::cpu::Element;
use siglip_kernel::{Options, Positives, Route};

use crate::case::{Case, Host, Step, run, subnormal_half_step};
use crate::support::{gpu, l2, routes, wide};

/// Relative error of the loss: `sigmoid.cuh` bounds every path by 1e-5.
const LOSS: f64 = 1e-5;

/// What a gradient may be off. f32: max|Δ| / max|ref|. 16-bit: ‖Δ‖ / ‖ref‖, of one rounding of G and one of the result. A rounding is off by at
/// most u = 2⁻⁸ (bf16) or 2⁻¹¹ (f16), and 0.41 u in the mean square: two of them 0.58 u, 2.3e-3 or 2.8e-4. A row's largest q, that of its positive,
/// is one rounding for the whole row, so few rows do not average, and only 2 u bounds them.
fn gradient_tolerance<T: Element>(case: &Case) -> f64 {
    let few = case.rows.min(case.cols) < 32;
    match (T::NAME, few) {
        ("f32", _) => 2e-6,
        ("f16", true) => 2.0 * 2f64.powi(-11),
        ("f16", false) => 5e-4,
        (_, true) => 2.0 * 2f64.powi(-8),
        (_, false) => 3e-3,
    }
}

/// The answer, and the sums of magnitudes that rounding errors of its scalars are proportional to.
pub(crate) struct Truth {
    loss: f64,
    d_img: Vec<f64>,
    d_txt: Vec<f64>,
    d_log_temp: f64,
    d_bias: f64,
    /// upstream / batch · Σ |q|
    q_sum: f64,
    /// upstream / batch · Σ |q (z - bias)|
    qz_sum: f64,
    /// upstream / batch · Σ |q| exp(log_temp) |img| |txt|: a dot product's own error is proportional to the lengths, not to its value.
    q_length_sum: f64,
    /// 8 bits, on purpose.
    eight_bits: bool,
    /// d_log_temp sums q (z - bias) with the part of z that a row has beside its 8-bit dot product as an f32 logit holds it, bias and all.
    row_terms: bool,
    /// The largest |z|. An f32 logit is rounded by up to |z| 2⁻²⁴ twice, which is a relative error of that size in e^z.
    largest_logit: f64,
}

/// FP8 products are added 32 at a time to a running sum that keeps 14 bits: each instruction may lose 2^-10 of the sum. Sums of integers are exact, but an element of a text less the mean
/// that lies between two of them may go to the other in f32, and that is no more.
pub(crate) fn eight_bit_dot(dim: usize) -> f64 {
    dim.div_ceil(32) as f64 * 2f64.powi(-10)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

impl Truth {
    /// As `route` has it where that is one of 8 bits, so that its quantisation is no error and everything else still is.
    pub(crate) fn new<T: Element>(case: &Case, host: &Host<T>, route: Route) -> Self {
        let img: Vec<f64> = host.img.iter().map(|x| wide(*x)).collect();
        let txt: Vec<f64> = host.txt.iter().map(|x| wide(*x)).collect();
        let positives = match case.positives {
            Positives::Matching => siglip::Positives::Diagonal { offset: 0 },
            Positives::Diagonal { offset } => siglip::Positives::Diagonal { offset },
            Positives::None => siglip::Positives::None,
        };
        let scalars = SiglipScalars {
            log_temp: f64::from(case.log_temp),
            bias: f64::from(case.bias),
            positives,
            batch: case.batch(),
            upstream: f64::from(case.upstream),
        };
        let answer = match route {
            Route::Fp8 => naive::siglip_fp8(&img, &txt, case.dim, &scalars, 1.0),
            Route::Int8 => naive::siglip_int8(&img, &txt, case.dim, &scalars),
            _ => naive::siglip(&img, &txt, case.dim, &scalars),
        }
        .unwrap();
        let per_pair = scalars.upstream.abs() / scalars.batch as f64;
        let (temperature, dim) = (scalars.log_temp.exp(), case.dim);
        let length = |row: &[f64]| dot(row, row).sqrt();
        let (img_length, txt_length): (Vec<f64>, Vec<f64>) =
            (img.chunks(dim).map(length).collect(), txt.chunks(dim).map(length).collect());
        let (mut q_sum, mut qz_sum, mut q_length_sum, mut largest_logit) = (0.0, 0.0, 0.0, 0.0f64);
        for (i, a) in img.chunks(dim).enumerate() {
            let positive = positives.column(i, case.cols);
            for (j, b) in txt.chunks(dim).enumerate() {
                let scaled = temperature * dot(a, b);
                let z = scaled + scalars.bias;
                largest_logit = largest_logit.max(z.abs());
                let q = per_pair / (1.0 + (if positive == Some(j) { z } else { -z }).exp());
                q_sum += q;
                qz_sum += q * scaled.abs();
                q_length_sum += q * temperature * img_length[i] * txt_length[j];
            }
        }
        Self {
            loss: answer.loss,
            d_img: answer.d_img,
            d_txt: answer.d_txt,
            d_log_temp: answer.d_log_temp,
            d_bias: answer.d_bias,
            q_sum,
            qz_sum,
            q_length_sum,
            eight_bits: matches!(route, Route::Fp8 | Route::Int8),
            row_terms: route == Route::Int8,
            largest_logit,
        }
    }

    /// What of `step` is off by more than it may, each with its error and its bound.
    pub(crate) fn faults<T: Element>(&self, case: &Case, step: &Step<T>) -> Vec<String> {
        let mut faults = Vec::new();
        let mut within = |what: &str, found: f64, expected: f64, bound: f64| {
            let error = (found - expected).abs();
            // Not `>`, which a NaN would pass. f32 holds no number below 2^-149.
            let fine = error <= bound + f64::from(f32::from_bits(1));
            if !fine {
                faults.push(format!("{what} is {found:e}, expected {expected:e} within {bound:.1e} (off {error:.1e})"));
            }
        };
        let float = T::NAME == "f32";
        // Tensor cores add 16 products at a time to the running sum and truncate.
        let additions = if float { 0.0 } else { case.dim as f64 / 32.0 };
        // Beyond 100 a pair is certain: its sigmoid does not move.
        let per_logit =
            if self.eight_bits { eight_bit_dot(case.dim) } else { f64::from(f32::EPSILON) * (1.0 + additions) };
        let logits = self.largest_logit.min(100.0) * per_logit;
        within("forward's loss", step.forward.into(), self.loss, (LOSS + logits) * self.loss);
        within("the step's loss", step.loss.into(), self.loss, (LOSS + logits) * self.loss);
        let tolerance = gradient_tolerance::<T>(case) + logits;
        // q leaves the f32 pass to f32's order, the fused epilogues to 7.7e-6 (sigmoid.cuh); both sums take it before it is rounded to G.
        let q_error = logits + if float { 2e-6 } else { 1e-5 };
        within("d_bias", step.d_bias.into(), self.d_bias, q_error * self.q_sum);
        let per_length = if self.eight_bits { per_logit } else { 2e-6 };
        let per_q = if self.row_terms { self.largest_logit * 2f64.powi(-24) } else { 0.0 };
        let bound = q_error * self.qz_sum + per_length * self.q_length_sum + per_q * self.q_sum;
        within("d_log_temp", step.d_log_temp.into(), self.d_log_temp, bound);
        for (what, found, expected) in [("d_img", &step.d_img, &self.d_img), ("d_txt", &step.d_txt, &self.d_txt)] {
            let error = found.iter().zip(expected).map(|(a, b)| (wide(*a) - b).abs());
            let subnormal = subnormal_half_step::<T>();
            let (error, bound) = if float {
                // f64::max would drop a NaN.
                (
                    error.fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most }),
                    tolerance * expected.iter().fold(0.0, |most: f64, x| most.max(x.abs())),
                )
            } else {
                let bound = tolerance * l2(expected.iter().copied());
                (l2(error), bound + subnormal * (expected.len() as f64).sqrt())
            };
            let missing = found.iter().position(|x| wide(*x).is_nan());
            let fine = error <= bound;
            if !fine {
                let relative = error / bound * tolerance;
                faults.push(format!(
                    "{what} is off {relative:.2e}, at most {tolerance:.1e} expected; first NaN: {missing:?}"
                ));
            }
        }
        faults
    }
}

/// Runs every case by every route of the dtype and fails with all that went wrong.
pub(crate) fn check<T: Element>(cases: impl IntoIterator<Item = (Case, Host<T>)>) {
    let Some(gpu) = gpu() else { return };
    let mut failures = Vec::new();
    let mut count = 0;
    for (case, host) in cases {
        let [exact, fp8, int8] = [Route::Auto, Route::Fp8, Route::Int8].map(|route| Truth::new(&case, &host, route));
        for route in routes::<T>(&gpu) {
            count += 1;
            let case = Case { options: Options { route: *route, ..case.options }, ..case };
            match run(&gpu, &case, &host) {
                Err(error) => failures.push(format!("{case:?}: {error}")),
                Ok(step) => {
                    let truth = match route {
                        Route::Fp8 => &fp8,
                        Route::Int8 => &int8,
                        _ => &exact,
                    };
                    let faults = truth.faults(&case, &step);
                    failures.extend((!faults.is_empty()).then(|| format!("{case:?}: {}", faults.join("; "))));
                }
            }
        }
    }
    assert!(count > 0, "no case");
    assert!(failures.is_empty(), "{} of {count} runs failed for {}:\n{}", failures.len(), T::NAME, failures.join("\n"));
}

/// The same on unit rows, another seed each.
pub(crate) fn check_unit<T: Element>(cases: impl IntoIterator<Item = Case>) {
    check(cases.into_iter().zip(1..).map(|(case, seed)| (case, Host::<T>::unit(&case, 2 * seed))));
}
