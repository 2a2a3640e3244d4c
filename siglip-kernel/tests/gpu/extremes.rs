//! Extreme logits, and inputs that are no numbers.

use siglip_kernel::cpu::Element;
use siglip_kernel::{Options, Plan, Positives};

use crate::case::{Case, Device, Host, WIDE_TILES};
use crate::compare::check;
use crate::support::{gpu, noise, per_dtype, rounded, routes, wide};

/// Logits of ±4,000 to ±16,000: every sigmoid is 0 or 1, and the loss is large.
fn huge_logits<T: Element>() {
    let positives = [Positives::Matching, Positives::None, Positives::Diagonal { offset: -50 }];
    check::<T>(positives.map(|positives| {
        let case = Case { positives, log_temp: 0.0, bias: -10.0, ..Case::new(300, 270, 64) };
        (case, Host::collinear(&case, 8.0, 1.0, 5))
    }));
}

/// Logits over -40..40, with biases on both sides.
fn wide_logits<T: Element>() {
    let sizes = [[300, 270], [300, 270], [300, 270], WIDE_TILES];
    check::<T>([-10.0, 0.0, 10.0, -10.0].into_iter().zip(sizes).map(|(bias, [rows, cols])| {
        let case = Case { log_temp: (40.0f32 / 48.0).ln(), bias, ..Case::new(rows, cols, 48) };
        (case, Host::collinear(&case, 1.0, 0.0, 7))
    }));
}

fn biases<T: Element>() {
    let biases = [-40.0, -20.0, -10.0, -5.0, -1.0, 0.0, 1.0, 5.0, 10.0, 20.0];
    check::<T>(biases.into_iter().flat_map(|bias| {
        [Positives::Matching, Positives::None].map(|positives| {
            let case = Case { bias, positives, ..Case::new(300, 270, 64) };
            (case, Host::unit(&case, 11))
        })
    }));
}

/// All temperatures from none to one that makes a positive certain.
fn temperatures<T: Element>() {
    check::<T>([-60.0, -20.0, -5.0, 3.0, 4.6].map(|log_temp| {
        let case = Case { log_temp, ..Case::new(200, 270, 64) };
        (case, Host::unit(&case, 13))
    }));
}

/// The same on tiles of 128 x 192 (two rows of them are fewer waves than of narrow ones), from which positives and edges are taken out only above a scale of
/// 1e-20: just above it and below.
fn least_temperatures_on_wide_tiles<T: Element>() {
    check::<T>([(-46.0, -10.0), (-50.0, 1.0)].map(|(log_temp, bias)| {
        let case = Case { log_temp, bias, ..Case::new(130, 20_000, 16) };
        (case, Host::unit(&case, 13))
    }));
}

/// Rows as a projection leaves them, lengths about 6 and far from equal.
fn rows_of_any_length<T: Element>() {
    let case = Case { log_temp: 0.0, ..Case::new(300, 270, 100) };
    let side = |rows: usize, seed| -> Vec<f32> {
        let lengths = noise(rows, seed + 100);
        let rows = noise(rows * case.dim, seed);
        rows.iter().enumerate().map(|(i, x)| x * (1.1 + lengths[i / case.dim])).collect()
    };
    check::<T>([(case, Host::round(&side(case.rows, 17), &side(case.cols, 18)))]);
}

/// f32 has the exponents for inputs of any size, and a logit scale that makes up for it.
#[test]
fn f32_inputs_of_any_size() {
    let scales =
        [(1e-30, 1e30, 1.0), (1e30, 1e-30, 1.0), (1e-15, 1e-15, 1e30), (1e15, 1e15, 1e-30), (3e-37, 3e35, 11.0)];
    check::<f32>(scales.map(|(img, txt, rest)| {
        let case = Case { log_temp: (10.0f32 * rest).ln(), bias: -5.0, ..Case::new(200, 270, 100) };
        let scaled = |side: Vec<f32>, by: f32| side.into_iter().map(|x| x * by).collect();
        let host = Host::<f32>::unit(&case, 31);
        (case, Host { img: scaled(host.img, img), txt: scaled(host.txt, txt) })
    }));
}

/// Neighbouring rows of very unequal lengths, logits moderate all the same.
#[test]
fn f32_rows_of_unequal_sizes() {
    let case = Case { log_temp: 0.0, bias: -3.0, ..Case::new(300, 270, 90) };
    let unequal = |rows: Vec<f32>, largest: f32| {
        let factor = |row: usize| largest * 0.5f32.powi((row * 7 % 13) as i32);
        rows.into_iter().enumerate().map(|(i, x)| x * factor(i / case.dim)).collect()
    };
    let host = Host::<f32>::unit(&case, 37);
    check::<f32>([(case, Host { img: unequal(host.img, 16.0), txt: unequal(host.txt, 2.0) })]);
}

/// Nothing but zeros on either side, or on both.
#[test]
fn f32_zeros() {
    let case = Case { bias: -2.0, ..Case::new(130, 200, 40) };
    let Host { img, txt } = Host::<f32>::unit(&case, 41);
    let zeros = |of: &[f32]| vec![0.0; of.len()];
    let (no_img, no_txt) = (zeros(&img), zeros(&txt));
    let sides = [(no_img.clone(), txt), (img, no_txt.clone()), (no_img, no_txt)];
    check::<f32>(sides.map(|(img, txt)| (case, Host { img, txt })));
}

/// Inputs whose magnitudes are at the ends of what the routes of FP8 bring into e4m3's range, one side large and the other small.
fn scales<T: Element>() {
    let exponents: &[(i32, i32)] =
        if T::NAME == "f16" { &[(11, -11), (-8, 11), (0, 8)] } else { &[(60, -60), (-70, 75), (-3, 40), (100, -100)] };
    check::<T>(exponents.iter().map(|(img, txt)| {
        let (img, txt) = (2f32.powi(*img), 2f32.powi(*txt));
        // Logits as of unit rows; a loss scale brings both gradients into the dtype's range or lets them vanish, as they should.
        let case = Case { log_temp: (10.0 / (img * txt)).ln(), ..Case::new(140, 200, 48) };
        let mut host = Host::<T>::unit(&case, 31);
        host.img.iter_mut().for_each(|x| *x = rounded(wide(*x) as f32 * img));
        host.txt.iter_mut().for_each(|x| *x = rounded(wide(*x) as f32 * txt));
        (case, host)
    }));
}

fn zero_rows<T: Element>() {
    let case = Case { bias: -2.0, ..Case::new(200, 140, 32) };
    let mut host = Host::<T>::unit(&case, 19);
    host.img[..5 * case.dim].fill(T::default());
    host.txt[40 * case.dim..].fill(T::default());
    check::<T>([(case, host)]);
}

/// A NaN or an infinity anywhere in the inputs reaches the loss, by both calls and every route.
fn no_numbers_reach_the_loss<T: Element>() {
    let Some(gpu) = gpu() else { return };
    let sizes = [[300, 270], WIDE_TILES];
    for (route, [rows, cols]) in routes::<T>(&gpu).iter().flat_map(|route| sizes.map(|size| (route, size))) {
        let case = Case { options: Options { route: *route, ..Options::default() }, ..Case::new(rows, cols, 40) };
        let clean = Host::<T>::unit(&case, 23);
        let mut plan = Plan::new(&gpu, case.problem::<T>(), case.options).unwrap();
        for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (side, row) in [(0, 0), (0, 150), (0, rows - 1), (1, 0), (1, 150), (1, cols - 1)] {
                let mut host = clean.clone();
                let side_rows = if side == 0 { &mut host.img } else { &mut host.txt };
                side_rows[row * case.dim + 3] = rounded(value);
                let step = Device::new(&gpu, case, &host).run(&gpu, &mut plan, &host).unwrap();
                for (call, loss) in [("forward", step.forward), ("step", step.loss)] {
                    let reached = if value.is_nan() { loss.is_nan() } else { !loss.is_finite() };
                    assert!(reached, "{route}, {call}: {value} in row {row} of side {side} gave the loss {loss}");
                }
            }
        }
        // The plan is none the worse for it.
        let step = Device::new(&gpu, case, &clean).run(&gpu, &mut plan, &clean).unwrap();
        assert!(step.loss.is_finite() && step.forward.is_finite());
        assert!(step.d_img.iter().chain(&step.d_txt).all(|x| wide(*x).is_finite()), "{route}");
    }
}

/// So does a scalar in device memory, which no check looks at.
fn scalars_that_are_no_numbers_reach_the_loss<T: Element>() {
    let Some(gpu) = gpu() else { return };
    for route in routes::<T>(&gpu) {
        let case = Case { options: Options { route: *route, ..Options::default() }, ..Case::new(140, 130, 40) };
        let host = Host::<T>::unit(&case, 29);
        let mut plan = Plan::new(&gpu, case.problem::<T>(), case.options).unwrap();
        for case in [Case { log_temp: f32::NAN, ..case }, Case { bias: f32::NAN, ..case }] {
            let step = Device::new(&gpu, case, &host).run(&gpu, &mut plan, &host).unwrap();
            assert!(step.loss.is_nan() && step.forward.is_nan(), "{case:?}: {} and {}", step.loss, step.forward);
        }
    }
}

per_dtype!(
    huge_logits,
    wide_logits,
    biases,
    temperatures,
    least_temperatures_on_wide_tiles,
    rows_of_any_length,
    scales,
    zero_rows,
    no_numbers_reach_the_loss,
    scalars_that_are_no_numbers_reach_the_loss,
);
