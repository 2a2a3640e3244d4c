//! How far route int8 may be from its quantisation in f64. Its sums of 8-bit integers are exact; but f32 computes what it rounds to integers, and an element within f32's error of the middle
//! between two of them may become the other one. Which elements are so near, the inputs say; what comes of the others' choice is bounded here.

use super::case::Case;
use super::truth::Found;
use rayon::prelude::*;
use reference_cpu::naive;

/// Half a unit in the last place of 1.
const ROUNDOFF: f64 = f32::EPSILON as f64 / 2.0;
/// Of x · 127 / largest, x at most the largest: the quotient, the product, or the inverse of a quotient, and that of the f64 it is compared with.
const SCALING: f64 = 127.0 * 4.0 * ROUNDOFF;
/// How many of G have a scale.
const GROUP: usize = 128;
/// Relative, of a sigmoid in f32 beside its argument's error, as cuda/sigmoid.cuh promises it.
const SIGMOID: f64 = 7.7e-6;

/// Rows or columns in integers.
struct Integers {
    /// By row, what may be the neighbouring integer, and what 1 is worth there.
    loose: Vec<Vec<(usize, f64)>>,
    /// By row, the relative error of its scale.
    scale_errors: Vec<f64>,
}

impl Integers {
    fn loose(x: f64, unit: f64, error: f64) -> bool {
        unit > 0.0 && ((x / unit).abs().fract() - 0.5).abs() <= error
    }

    /// Each row by its own scale. `errors`: by column, of an element.
    fn of_rows(matrix: &[f64], errors: &[f64]) -> Self {
        let row = |row: &[f64]| {
            let unit = row.iter().fold(0.0f64, |most, x| most.max(x.abs())) / 127.0;
            // The error of any element that may be the largest.
            let most = errors.iter().fold(0.0f64, |most, x| most.max(*x));
            let of_scale = if unit > 0.0 { most / (127.0 * unit) } else { 0.0 };
            let is_loose =
                |&(k, x): &(usize, &f64)| Self::loose(*x, unit, SCALING + errors[k] / unit + 127.0 * of_scale);
            (row.iter().enumerate().filter(is_loose).map(|(k, _)| (k, unit)).collect(), of_scale)
        };
        let (loose, scale_errors) = matrix.chunks(errors.len()).map(row).unzip();
        Self { loose, scale_errors }
    }

    /// Each column by its own scale.
    fn of_columns(matrix: &[f64], dim: usize) -> Self {
        let mut units = vec![0.0f64; dim];
        for row in matrix.chunks(dim) {
            units.iter_mut().zip(row).for_each(|(unit, x)| *unit = unit.max(x.abs() / 127.0));
        }
        let row = |row: &[f64]| {
            let is_loose = |&(k, x): &(usize, &f64)| Self::loose(*x, units[k], SCALING);
            row.iter().enumerate().filter(is_loose).map(|(k, _)| (k, units[k])).collect()
        };
        Self { loose: matrix.chunks(dim).map(row).collect(), scale_errors: Vec::new() }
    }
}

/// One pair of rows: dL/dz, by how much z may be off, and z less the bias.
#[derive(Clone, Copy)]
struct Pair {
    q: f64,
    off: f64,
    scaled: f64,
    positive: bool,
}

/// An element of G, and by how much it may be off.
#[derive(Clone, Copy, Default)]
struct Factor {
    value: f64,
    off: f64,
}

/// A row of G in integers of its groups. `off`: relative, of every q.
fn factors(q: &[f64], off: &[f64]) -> Vec<Factor> {
    let group = |(q, off): (&[f64], &[f64])| {
        let most = q.iter().fold(0.0f64, |most, x| most.max(*x));
        let of_most = off.iter().fold(0.0f64, |most, x| most.max(*x));
        let unit = most / 255.0;
        let factor = |(q, off): (&f64, &f64)| {
            if most == 0.0 {
                return Factor::default();
            }
            let (x, by) = (q / unit, (off + of_most).exp());
            let rounded = |x: f64| x.round_ties_even().clamp(0.0, 255.0);
            let (low, value, high) = (rounded(x / by - SCALING), rounded(x), rounded(x * by + SCALING));
            let (low, high) = (low * (-of_most).exp(), high * of_most.exp());
            // Either way each is within half a unit of what it rounds.
            let halves = q * off.exp_m1() + unit * (1.0 + of_most.exp()) / 2.0;
            Factor { value: value * unit, off: ((value - low).max(high - value) * unit).min(halves) }
        };
        q.iter().zip(off).map(factor).collect::<Vec<_>>()
    };
    q.chunks(GROUP).zip(off.chunks(GROUP)).flat_map(group).collect()
}

/// The truth moved by as much as the route may be from it.
pub(super) fn farthest(case: &Case, img: &[f64], txt: &[f64], truth: &Found) -> Found {
    let (dim, params) = (case.dim, &case.params);
    let (rows, cols) = (case.rows, case.cols);
    let temperature = f64::from(params.log_temp).exp();
    let weight = f64::from(params.upstream).abs() / params.batch as f64;

    // The texts' mean is a sum of at most as many terms one after another as there are slices, and warps in one; an element less it is rounded once more.
    let additions = cols.min(128 + 8 + cols / 1024) as f64;
    let mut mean_errors = vec![0.0; dim];
    let mut mean = vec![0.0; dim];
    for row in txt.chunks(dim) {
        for ((error, mean), x) in mean_errors.iter_mut().zip(&mut mean).zip(row) {
            *error += (additions + 2.0) * ROUNDOFF * x.abs() / cols as f64;
            *mean += x / cols as f64;
        }
    }
    let rest: Vec<f64> = txt.iter().enumerate().map(|(i, x)| x - mean[i % dim]).collect();
    let largest = rest.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let rest_errors: Vec<f64> = mean_errors.iter().map(|error| error + ROUNDOFF * largest).collect();
    let (of_img, of_txt) = (Integers::of_rows(img, &vec![0.0; dim]), Integers::of_rows(&rest, &rest_errors));
    let (integers_img, integers_txt) = naive::int8_logit_rows(img, txt, dim);

    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let norms = |matrix: &[f64]| matrix.chunks(dim).map(norm).collect::<Vec<_>>();
    let (img_norms, rest_norms, mean_norm) = (norms(img), norms(&rest), norm(&mean));
    // Of a warp's dot product in f32, for each unit of lengths.
    let of_dot = (dim as f64 / 32.0 + 6.0) * ROUNDOFF;
    let pair_rows: Vec<Vec<Pair>> = (0..rows)
        .into_par_iter()
        .map(|i| {
            let a = &integers_img[i * (dim + 1)..][..dim + 1];
            let of_term = img[i * dim..][..dim].iter().zip(&mean_errors).map(|(x, error)| x.abs() * error).sum::<f64>()
                + of_dot * img_norms[i] * mean_norm;
            let positive = params.positives.column(i, cols);
            let pair = |j: usize| {
                let b = &integers_txt[j * (dim + 1)..][..dim + 1];
                let (scaled, off);
                if positive == Some(j) {
                    scaled = img[i * dim..][..dim].iter().zip(&txt[j * dim..]).map(|(x, y)| x * y).sum::<f64>();
                    off = of_dot * img_norms[i] * (rest_norms[j] + 2.0 * mean_norm);
                } else {
                    scaled = a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
                    let of_a: f64 = of_img.loose[i].iter().map(|(k, unit)| unit * b[*k].abs()).sum();
                    let unit_a = of_img.loose[i].first().map_or(0.0, |(_, unit)| *unit);
                    let of_b: f64 = of_txt.loose[j].iter().map(|(k, unit)| unit * (a[*k].abs() + unit_a)).sum();
                    off = of_a + of_b + of_term + of_txt.scale_errors[j] * img_norms[i] * rest_norms[j];
                }
                let (scaled, off) = (temperature * scaled, temperature * off);
                let z = scaled + f64::from(params.bias);
                let towards = if positive == Some(j) { -z } else { z };
                // Besides, the roundings of z itself, of which it is made by a few products and sums.
                let off = off + 4.0 * ROUNDOFF * (z.abs() + scaled.abs() + f64::from(params.bias).abs());
                Pair { q: 1.0 / (1.0 + (-towards).exp()), off, scaled, positive: positive == Some(j) }
            };
            (0..cols).map(pair).collect()
        })
        .collect();

    let sum = |of: &(dyn Fn(&Pair) -> f64 + Sync)| pair_rows.iter().flatten().map(of).sum::<f64>();
    // A sigmoid moves by no more than its argument's exponential.
    let of_q = |pair: &Pair| pair.q * (pair.off + SIGMOID).exp_m1();
    let loss = sum(&|pair| pair.q * pair.off * pair.off.exp()) / params.batch as f64;
    let d_bias = weight * sum(&of_q);
    let d_log_temp = weight * sum(&|pair| of_q(pair) * (pair.scaled.abs() + pair.off) + pair.q * pair.off);

    let line = |pairs: &mut dyn Iterator<Item = &Pair>| {
        let negative = |pair: &Pair| (if pair.positive { 0.0 } else { pair.q }, pair.off + SIGMOID);
        let (q, off): (Vec<f64>, Vec<f64>) = pairs.map(negative).unzip();
        factors(&q, &off)
    };
    // By how much each gradient of one side may be off: `pair(i, j)` of its row i with row j of the other side. What the pairs of a row contribute has either sign: five
    // standard deviations, as if each were off by its most. But an element of row i itself that is the other integer moves all q of the row by its products,
    // which the same feature of the other side multiplies once more: there all signs agree.
    let side = |own: &Integers, others: usize, other: &[f64], pair: &(dyn Fn(usize, usize) -> Pair + Sync)| {
        let (integers, loose) = (naive::int8_columns(other, dim), Integers::of_columns(other, dim).loose);
        let gradient = |(i, own): (usize, &Vec<(usize, f64)>)| {
            let pairs: Vec<Pair> = (0..others).map(|j| pair(i, j)).collect();
            let (mut squares, mut agreeing) = (vec![0.0; dim], vec![0.0; dim]);
            for (j, factor) in line(&mut pairs.iter()).iter().enumerate() {
                let row = if pairs[j].positive { other } else { &integers };
                let by = if pairs[j].positive { of_q(&pairs[j]) } else { factor.off };
                squares.iter_mut().zip(&row[j * dim..]).for_each(|(sum, x)| *sum += (by * x).powi(2));
                if !pairs[j].positive {
                    loose[j].iter().for_each(|(k, unit)| squares[*k] += ((factor.value + factor.off) * unit).powi(2));
                    let moved = |(k, unit): &(usize, f64)| {
                        agreeing[*k] += factor.value * temperature * unit * row[j * dim + k].powi(2)
                    };
                    own.iter().for_each(moved);
                }
            }
            let off = squares.into_iter().zip(agreeing).map(|(squares, agreeing)| 5.0 * squares.sqrt() + agreeing);
            off.map(|off| off * weight * temperature).collect::<Vec<f64>>()
        };
        own.loose.par_iter().enumerate().flat_map_iter(gradient).collect::<Vec<f64>>()
    };
    let of_images = side(&of_img, cols, txt, &|i, j| pair_rows[i][j]);
    let of_texts = side(&of_txt, rows, img, &|j, i| pair_rows[i][j]);
    let moved = |truth: &[f64], by: &[f64]| truth.iter().zip(by).map(|(x, by)| x + by).collect();
    Found {
        forward: truth.forward + loss,
        loss: truth.loss + loss,
        d_img: moved(&truth.d_img, &of_images),
        d_txt: moved(&truth.d_txt, &of_texts),
        d_log_temp: truth.d_log_temp + d_log_temp,
        d_bias: truth.d_bias + d_bias,
    }
}

#[cfg(test)]
#[path = "int8_test.rs"]
mod tests;
