//! The bounds hold what roundings of f32's size do to the quantisation, and stay of that size.

use super::super::case::{Case, ChunkCase};
use super::*;
use crate::siglip::Number;
use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::naive::SiglipScalars;
use reference_cpu::siglip::{Positives, SiglipParams};

const CASE: Case = Case {
    rows: 150,
    cols: 200,
    dim: 40,
    chunk: ChunkCase::Auto,
    params: SiglipParams {
        log_temp: 2.3,
        bias: -3.0,
        positives: Positives::Diagonal { offset: 3 },
        batch: 200,
        upstream: 1.0,
    },
    norm: 1.0,
    shared: 1.0,
    data_seed: 5,
};

#[test]
fn what_lies_between_two_integers_is_found() {
    // The largest is 127 units; 63.5 is between two, 63.4 is not.
    let of = Integers::of_rows(&[127.0, 63.5, 63.4, -10.5], &[0.0; 4]);
    assert_eq!(of.loose, [vec![(1, 1.0), (3, 1.0)]]);
    assert!(Integers::of_rows(&[127.0, 63.4], &[0.0, 0.2]).loose[0].iter().any(|(k, _)| *k == 1));
    let of = Integers::of_columns(&[254.0, 127.0, 1.0, 63.5], 2);
    assert_eq!(of.loose, [vec![], vec![(0, 2.0), (1, 1.0)]]);
}

#[test]
fn factors_move_by_no_more_than_a_rounding_and_their_own_error() {
    let exact = factors(&[1.0, 0.5, 0.25], &[0.0; 3]);
    // 127.5 and 63.75: the first is between two.
    assert!(exact[0].off == 0.0 && exact[2].off == 0.0, "{} {}", exact[0].off, exact[2].off);
    assert!(exact[1].off >= 1.0 / 255.0 * 0.99 && exact[1].off <= 1.0 / 255.0 * 1.01, "{}", exact[1].off);
    for factor in factors(&[1.0, 0.5, 0.3], &[0.01; 3]) {
        assert!(factor.off <= 1.02 / 255.0 + 0.011 * factor.value.max(0.3), "{}", factor.off);
    }
}

#[test]
fn roundings_stay_within_the_bounds() {
    let (img, txt) = CASE.inputs::<bf16>();
    let widen = |of: &[bf16]| of.iter().map(|x| x.wide()).collect::<Vec<f64>>();
    let (img, txt) = (widen(&img), widen(&txt));
    let result = |img: &[f64], txt: &[f64]| -> Found {
        naive::siglip_int8(img, txt, CASE.dim, &SiglipScalars::from(&CASE.params)).unwrap().into()
    };
    let truth = result(&img, &txt);
    let bound = farthest(&CASE, &img, &txt, &truth);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(9);
    let mut most = 0.0f64;
    for _ in 0..20 {
        let mut rounded = |of: &[f64]| -> Vec<f64> {
            of.iter().map(|x| x * (1.0 + ROUNDOFF * rng.random_range(-1.0..1.0))).collect()
        };
        let (rounded_img, rounded_txt) = (rounded(&img), rounded(&txt));
        let found = result(&rounded_img, &rounded_txt);
        let scalars = [
            (found.loss, truth.loss, bound.loss),
            (found.d_bias, truth.d_bias, bound.d_bias),
            (found.d_log_temp, truth.d_log_temp, bound.d_log_temp),
        ];
        for (found, truth, bound) in scalars {
            assert!((found - truth).abs() <= bound - truth, "{found} {truth} {bound}");
        }
        for (found, truth, bound) in
            [(&found.d_img, &truth.d_img, &bound.d_img), (&found.d_txt, &truth.d_txt, &bound.d_txt)]
        {
            let largest = truth.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            for ((found, truth), bound) in found.iter().zip(truth).zip(bound) {
                let (off, most_off) = ((found - truth).abs(), bound - truth);
                // The inputs' own roundings are not the route's.
                assert!(off <= most_off + 1e-6 * largest, "{found} {truth} {bound}");
                most = most.max(most_off / largest);
            }
        }
    }
    assert!(most < 0.05, "{most}");
}
