//! What can be checked without a GPU: reference-cpu against naive f64, and naive f64 against central finite differences.

use super::case::{Case, cases, widen};
use super::truth::{Found, OPS, Tolerances, Truth};
use crate::parity::deviation::Deviation;
use crate::parity::runner::{Group, Line, Measured};
use crate::siglip::{Number, normal, on_host};
use half::{bf16, f16};
use indicatif::ProgressBar;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::naive::{self, SiglipScalars};
use reference_cpu::{HostMatrix, siglip};

/// A group for each dtype of reference-cpu, and one for the finite differences.
pub(crate) const CPU_GROUPS: u64 = 4;

pub(crate) fn cpu_groups(cases_a_group: u32, seed: u64, bar: &ProgressBar) -> Vec<(Vec<Line>, Option<String>)> {
    let group = |dtype: &str, route: &str, ops| Group {
        family: "siglip",
        dtype: dtype.to_owned(),
        route: route.to_owned(),
        ops,
        cases: cases_a_group,
        seed,
        on_gpu: false,
        bar,
    };
    vec![
        group("f32", "reference-cpu", OPS).run(&cases(), check::<f32>),
        group("f16", "reference-cpu", OPS).run(&cases(), check::<f16>),
        group("bf16", "reference-cpu", OPS).run(&cases(), check::<bf16>),
        group("f64", "naive, differences", &["step"]).run(&small_cases(), check_differences),
    ]
}

fn check<T: Number>(case: &Case) -> Result<Vec<Measured>, String> {
    let (img, txt) = case.inputs::<T>();
    let truth = Truth::new(case, &widen(&img), &widen(&txt), Tolerances::of(<T as kernel_core::Element>::DTYPE))?;
    let found = reference(case, &img, &txt).map_err(|error| error.to_string())?;
    Ok(truth.measure(&found))
}

/// The case by reference-cpu.
pub(crate) fn reference<T: Number>(case: &Case, img: &[T], txt: &[T]) -> reference_cpu::Result<Found> {
    let views = (HostMatrix::new("img", img, case.rows, case.dim)?, HostMatrix::new("txt", txt, case.cols, case.dim)?);
    let forward = siglip::forward(views.0, views.1, &case.params)?;
    Ok(Found::new(forward, &on_host(img, txt, case.dim, &case.params)?))
}

/// Finite differences evaluate the loss eight times; the formula does not depend on the size.
fn small_cases() -> impl Strategy<Value = Case> {
    (cases(), 1usize..=48, 1usize..=48, 1usize..=64).prop_map(|(mut case, rows, cols, dim)| {
        (case.rows, case.cols, case.dim, case.params.batch) = (rows, cols, dim, rows.max(cols));
        case
    })
}

/// The derivative along a random direction of each input, as the gradient and as a central difference.
fn check_differences(case: &Case) -> Result<Vec<Measured>, String> {
    /// Truncation is of the order h^2, rounding of 1e-16 / h: both are near 1e-10 here.
    const STEP: f64 = 1e-5;
    /// Leaves room for the third derivatives at |z| = 40, which grow with the cube of the temperature.
    const TOLERANCE: f64 = 1e-5;
    let (img, txt) = case.inputs::<f32>();
    let (img, txt) = (widen(&img), widen(&txt));
    let scalars = SiglipScalars::from(&case.params);
    let gradient = naive::siglip(&img, &txt, case.dim, &scalars).map_err(|error| error.to_string())?;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(case.data_seed ^ 1);
    let mut direction = |length: usize| -> Vec<f64> {
        let v: Vec<f64> = (0..length).map(|_| f64::from(normal(&mut rng))).collect();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        v.into_iter().map(|x| x / norm).collect()
    };
    let moves = [
        ("d_img", Move { img: direction(img.len()), ..Move::none(&img, &txt) }),
        ("d_txt", Move { txt: direction(txt.len()), ..Move::none(&img, &txt) }),
        ("d_log_temp", Move { log_temp: 1.0, ..Move::none(&img, &txt) }),
        ("d_bias", Move { bias: 1.0, ..Move::none(&img, &txt) }),
    ];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let size = |v: &[f64]| dot(v, v).sqrt();
    let mut measured = Vec::new();
    for (what, step) in moves {
        let loss = |h: f64| step.loss(&img, &txt, case.dim, &scalars, h);
        let difference = scalars.upstream * (loss(STEP)? - loss(-STEP)?) / (2.0 * STEP);
        let derivative = dot(&gradient.d_img, &step.img)
            + dot(&gradient.d_txt, &step.txt)
            + gradient.d_log_temp * step.log_temp
            + gradient.d_bias * step.bias;
        // Along a random direction most of a gradient's size is lost, and so it is what the error is measured against. The loss's own
        // rounding enters the difference divided by the step.
        let rounding = scalars.upstream.abs() * gradient.loss.abs() * 2e-15 / STEP / TOLERANCE;
        let magnitude = (size(&gradient.d_img) * size(&step.img)
            + size(&gradient.d_txt) * size(&step.txt)
            + (gradient.d_log_temp * step.log_temp).abs()
            + (gradient.d_bias * step.bias).abs())
        .max(rounding);
        let deviation = Deviation::of_sum(difference, derivative, magnitude);
        measured.push(Measured { op: "step", what, deviation, tolerance: Deviation::both(TOLERANCE) });
    }
    Ok(measured)
}

/// A direction in the space of all inputs.
struct Move {
    img: Vec<f64>,
    txt: Vec<f64>,
    log_temp: f64,
    bias: f64,
}

impl Move {
    fn none(img: &[f64], txt: &[f64]) -> Self {
        Self { img: vec![0.0; img.len()], txt: vec![0.0; txt.len()], log_temp: 0.0, bias: 0.0 }
    }

    /// The loss at `h` times this direction away from the inputs.
    fn loss(&self, img: &[f64], txt: &[f64], dim: usize, scalars: &SiglipScalars, h: f64) -> Result<f64, String> {
        let moved = |at: &[f64], by: &[f64]| at.iter().zip(by).map(|(x, v)| x + h * v).collect::<Vec<_>>();
        let scalars = SiglipScalars {
            log_temp: scalars.log_temp + h * self.log_temp,
            bias: scalars.bias + h * self.bias,
            ..*scalars
        };
        naive::siglip_loss(&moved(img, &self.img), &moved(txt, &self.txt), dim, &scalars)
            .map_err(|error| error.to_string())
    }
}
