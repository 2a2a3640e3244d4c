//! Problems of many blocks, and tensors of more than 2³¹ elements: sampled rows against f64.

use reference_cpu::HostMatrix;
use reference_cpu::siglip::{self, SiglipParams};
use siglip_kernel::kernel_core::half::bf16;
use siglip_kernel::{
    Inputs, MatrixView, MatrixViewMut, Options, Outputs, Plan, Positives, Problem, Scalar, VectorViewMut,
};

use crate::case::{Case, Host, run};
use crate::support::{gpu, noise, routes, say};

const TEMPERATURE: f64 = 10.0;
const BIAS: f64 = -10.0;

/// The gradient of one row against all rows of the other side; `positive` is the index there of its positive.
fn gradient(row: &[bf16], others: &[bf16], positive: Option<usize>, batch: usize) -> Vec<f64> {
    let mut sum = vec![0.0; row.len()];
    for (j, other) in others.chunks(row.len()).enumerate() {
        let z = TEMPERATURE * row.iter().zip(other).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>() + BIAS;
        let q = if positive == Some(j) { -1.0 / (1.0 + z.exp()) } else { 1.0 / (1.0 + (-z).exp()) };
        sum.iter_mut().zip(other).for_each(|(s, x)| *s += q * x.to_f64());
    }
    sum.iter_mut().for_each(|s| *s *= TEMPERATURE / batch as f64);
    sum
}

fn assert_close(what: &str, found: &[bf16], expected: &[f64]) {
    let l2 = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
    let error = l2(&mut found.iter().zip(expected).map(|(a, b)| a.to_f64() - b));
    let length = l2(&mut expected.iter().copied());
    // One row does not average the rounding of its largest q: two whole roundoffs of bf16.
    let fine = error <= 2.0 * 2f64.powi(-8) * length;
    assert!(fine, "{what}: off {error:e} of {length:e}");
}

#[test]
fn many_blocks() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(20_000, 20_000, 64);
    let host = Host::<bf16>::unit(&case, 3);
    let view = |data| HostMatrix::new("side", data, 20_000, 64).unwrap();
    let params = SiglipParams::square(20_000, std::f32::consts::LN_10, -10.0);
    let loss = f64::from(siglip::forward(view(&host.img), view(&host.txt), &params).unwrap());
    for route in routes::<bf16>() {
        let case = Case { options: Options { route: *route, ..Options::default() }, ..case };
        let step = run(&gpu, &case, &host).unwrap();
        for found in [step.forward, step.loss] {
            let error = (f64::from(found) - loss).abs() / loss;
            assert!(error <= 1e-5, "{route}: the loss is {found}, expected {loss} ({error:e})");
        }
        for row in [0, 1, 127, 128, 4999, 5631, 5632, 9000, 12_345, 16_383, 16_384, 19_968, 19_999] {
            let at = row * 64..(row + 1) * 64;
            let expected = gradient(&host.img[at.clone()], &host.txt, Some(row), 20_000);
            assert_close(&format!("{route}, d_img {row}"), &step.d_img[at.clone()], &expected);
            let expected = gradient(&host.txt[at.clone()], &host.img, Some(row), 20_000);
            assert_close(&format!("{route}, d_txt {row}"), &step.d_txt[at], &expected);
        }
    }
}

/// 2,100,000 image rows of 1,024: zero but for the last 300, so that the answer is cheap to know.
#[test]
fn more_than_two_to_the_31_elements() {
    let Some(gpu) = gpu() else { return };
    const DIM: usize = 1024;
    let (rows, cols, tail) = (2_100_000, 200, 300);
    let needed = 3 * rows * DIM * size_of::<bf16>();
    let (free, _) = gpu.memory_info().unwrap();
    if free < needed {
        // Not a missing GPU, so not a failure either.
        say(&format!("skipped: {free} bytes of device memory are free, {needed} needed"));
        return;
    }
    let small = Case::new(tail, cols, DIM);
    let host = Host::<bf16>::unit(&small, 5);
    let mut img = gpu.alloc::<bf16>(rows * DIM).unwrap();
    let start = (rows - tail) * DIM;
    gpu.stream().memcpy_htod(&host.img, &mut img.slice_mut(start..)).unwrap();
    let txt = gpu.upload(&host.txt).unwrap();
    // The last `tail` images and the texts are positive in order.
    let positives = Positives::Diagonal { offset: -((rows - tail) as i64) };
    for route in routes::<bf16>() {
        let problem = Problem::block(rows, cols, DIM, siglip_kernel::DType::Bf16, positives).with_batch(1000);
        let mut plan = Plan::new(&gpu, problem, Options { route: *route, ..Options::default() }).unwrap();
        let mut d_img = gpu.alloc::<bf16>(rows * DIM).unwrap();
        let mut d_txt = gpu.alloc::<bf16>(cols * DIM).unwrap();
        let [mut loss, mut d_log_temp, mut d_bias] = [(); 3].map(|()| gpu.alloc::<f32>(1).unwrap());
        let inputs = Inputs {
            img: MatrixView::new("img", &img, [rows, DIM]).unwrap(),
            txt: MatrixView::new("txt", &txt, [cols, DIM]).unwrap(),
            log_temp: Scalar::Host(std::f32::consts::LN_10),
            bias: Scalar::Host(-10.0),
        };
        let mut outputs = Outputs {
            loss: VectorViewMut::new("loss", &mut loss, [1]).unwrap(),
            d_img: MatrixViewMut::new("d_img", &mut d_img, [rows, DIM]).unwrap(),
            d_txt: MatrixViewMut::new("d_txt", &mut d_txt, [cols, DIM]).unwrap(),
            d_log_temp: VectorViewMut::new("d_log_temp", &mut d_log_temp, [1]).unwrap(),
            d_bias: VectorViewMut::new("d_bias", &mut d_bias, [1]).unwrap(),
        };
        plan.forward_backward(&inputs, &Scalar::Host(1.0), &mut outputs).unwrap();

        let d_img = gpu.download(&d_img.slice(start..)).unwrap();
        let d_txt = gpu.download(&d_txt).unwrap();
        for row in [0, 1, 172, 199, 200, 299] {
            let at = row * DIM..(row + 1) * DIM;
            let expected = gradient(&host.img[at.clone()], &host.txt, (row < cols).then_some(row), 1000);
            assert_close(&format!("{route}, d_img {row}"), &d_img[at], &expected);
        }
        for row in [0, 127, 128, 199] {
            // Images of zeros add nothing to the gradient of a text.
            let at = row * DIM..(row + 1) * DIM;
            let expected = gradient(&host.txt[at.clone()], &host.img, Some(row), 1000);
            assert_close(&format!("{route}, d_txt {row}"), &d_txt[at], &expected);
        }
        // log sigmoid of the bias for every pair with an image of zeros.
        let zeros = (rows - tail) as f64 * cols as f64 * BIAS.exp().ln_1p() / 1000.0;
        let view = |data, rows| HostMatrix::new("side", data, rows, DIM).unwrap();
        let params = SiglipParams { batch: 1000, ..SiglipParams::square(tail, std::f32::consts::LN_10, -10.0) };
        let rest = siglip::forward(view(&host.img, tail), view(&host.txt, cols), &params).unwrap();
        let expected = zeros + f64::from(rest);
        let found = f64::from(gpu.download(&loss).unwrap()[0]);
        assert!((found - expected).abs() <= 1e-5 * expected, "{route}: the loss is {found}, expected {expected}");
    }
}

/// A chunk of rows is not a power of two of anything here: 4,321 rows in chunks of 1,100.
#[test]
fn uneven_chunks_agree_with_one_chunk() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(4321, 2999, 96);
    let host = Host::<bf16>::round(&noise(4321 * 96, 3), &noise(2999 * 96, 5));
    for route in routes::<bf16>() {
        let with = |chunk| {
            let options = Options { route: *route, chunk };
            run(&gpu, &Case { options, log_temp: -3.0, bias: -4.0, ..case }, &host).unwrap()
        };
        let (one, many) = (with(siglip_kernel::Chunk::Rows(usize::MAX)), with(siglip_kernel::Chunk::Rows(1100)));
        assert!((one.loss - many.loss).abs() <= 1e-5 * one.loss, "{route}: {} and {}", one.loss, many.loss);
        let wide = |side: &[bf16]| side.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        // Both rounded the same sums, which differ by f32's order: two roundings apart at most.
        assert_close(&format!("{route}, d_img"), &many.d_img, &wide(&one.d_img));
        assert_close(&format!("{route}, d_txt"), &many.d_txt, &wide(&one.d_txt));
    }
}
