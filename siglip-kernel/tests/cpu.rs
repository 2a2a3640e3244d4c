//! The CPU side against f64, on inputs as rounded to their dtype.

use reference_cpu::naive::{self, SiglipScalars};
use reference_cpu::siglip;
use siglip_kernel::cpu::{Element, HostMatrix, HostMatrixMut, Inputs, Outputs, Plan};
use siglip_kernel::kernel_core::half::{bf16, f16};
use siglip_kernel::{Positives, Problem, kernel_core};

fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| f64::from(kernel_core::Element::to_f32(*x))).collect()
}

/// Spread over [-0.5, 0.5), without a pattern that rows share.
fn values<T: Element>(len: usize, seed: u32) -> Vec<T> {
    let value = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5;
    (0..len as u32).map(|i| kernel_core::Element::from_f32(value(i))).collect()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    let largest = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let fine = (a - b).abs() <= tolerance * largest;
        assert!(fine, "{what}[{i}]: {a}, expected {b} within {tolerance:e} of {largest}");
    }
}

/// `tolerance`: of gradients, relative to the largest.
fn check<T: Element>(problem: Problem, tolerance: f64) {
    let Problem { rows, cols, dim, .. } = problem;
    let (log_temp, bias, upstream) = (1.5f32, -2.0f32, 3.0f32);
    let (img, txt) = (values::<T>(rows * dim, 1), values::<T>(cols * dim, 77));
    // Gradients with a gap of two after every row.
    let nan = || kernel_core::Element::from_f32(f32::NAN);
    let (mut d_img, mut d_txt) = (vec![nan(); rows * (dim + 2)], vec![nan(); cols * (dim + 2)]);
    let (mut forward, mut loss, mut d_log_temp, mut d_bias) = (f32::NAN, f32::NAN, f32::NAN, f32::NAN);
    let inputs = Inputs {
        img: HostMatrix::new("img", &img, rows, dim).unwrap(),
        txt: HostMatrix::new("txt", &txt, cols, dim).unwrap(),
        log_temp,
        bias,
    };
    let plan = Plan::new(problem).unwrap();
    assert_eq!(*plan.problem(), problem);
    plan.forward(&inputs, &mut forward).unwrap();
    let mut outputs = Outputs {
        loss: &mut loss,
        d_img: HostMatrixMut::with_row_stride("d_img", &mut d_img, rows, dim, dim + 2).unwrap(),
        d_txt: HostMatrixMut::with_row_stride("d_txt", &mut d_txt, cols, dim, dim + 2).unwrap(),
        d_log_temp: &mut d_log_temp,
        d_bias: &mut d_bias,
    };
    plan.forward_backward(&inputs, upstream, &mut outputs).unwrap();

    let scalars = SiglipScalars {
        log_temp: log_temp.into(),
        bias: bias.into(),
        positives: match problem.positives.offset() {
            Some(offset) => siglip::Positives::Diagonal { offset },
            None => siglip::Positives::None,
        },
        batch: problem.batch,
        upstream: upstream.into(),
    };
    let expected = naive::siglip(&wide(&img), &wide(&txt), dim, &scalars).unwrap();
    assert_close("forward's loss", &[forward.into()], &[expected.loss], 1e-6);
    assert_close("loss", &[loss.into()], &[expected.loss], 1e-6);
    assert_close("d_log_temp", &[d_log_temp.into()], &[expected.d_log_temp], 1e-5);
    assert_close("d_bias", &[d_bias.into()], &[expected.d_bias], 1e-5);
    for (what, found, expected) in [("d_img", &d_img, &expected.d_img), ("d_txt", &d_txt, &expected.d_txt)] {
        let rows: Vec<T> = found.chunks(dim + 2).flat_map(|row| row[..dim].iter().copied()).collect();
        assert_close(what, &wide(&rows), expected, tolerance);
        assert!(found.chunks(dim + 2).all(|row| wide(&row[dim..]).iter().all(|x| x.is_nan())), "a gap was written");
    }
}

#[test]
fn every_dtype_and_kind_of_positives_agrees_with_f64() {
    let positives =
        [Positives::Matching, Positives::None, Positives::Diagonal { offset: 3 }, Positives::Diagonal { offset: -40 }];
    for (rows, cols, dim) in [(1, 1, 1), (5, 9, 3), (64, 31, 17), (130, 300, 40)] {
        for positives in positives {
            let problem = |dtype| Problem::block(rows, cols, dim, dtype, positives).with_batch(rows + 1);
            check::<f32>(problem(kernel_core::DType::F32), 2e-6);
            check::<f16>(problem(kernel_core::DType::F16), 5e-4);
            check::<bf16>(problem(kernel_core::DType::Bf16), 4e-3);
        }
    }
}

#[test]
fn no_numbers_reach_the_loss() {
    let mut img = values::<f32>(12, 1);
    img[5] = f32::NAN;
    let txt = values::<f32>(12, 2);
    let view = |data| HostMatrix::new("side", data, 3, 4).unwrap();
    let inputs = Inputs { img: view(&img), txt: view(&txt), log_temp: 0.0, bias: 0.0 };
    let mut loss = 0.0;
    Plan::new(Problem::square(3, 4, kernel_core::DType::F32)).unwrap().forward(&inputs, &mut loss).unwrap();
    assert!(loss.is_nan());
}
