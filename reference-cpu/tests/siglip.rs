//! The SigLIP loss against the naive f64 version, central differences, and the limits of its arguments.

mod common;

use common::{Noise, dense, error, on_threads, rounding, wide};
use proptest::prelude::*;
use reference_cpu::naive::{self, SiglipScalars};
use reference_cpu::siglip::{self, Gradients, Positives, SiglipParams};
use reference_cpu::{Element, HostMatrix, HostMatrixMut, bf16, f16};

struct Case<T> {
    img: Vec<T>,
    txt: Vec<T>,
    rows: usize,
    cols: usize,
    dim: usize,
    stride: usize,
    params: SiglipParams,
}

struct Found<T> {
    gradients: Gradients,
    forward: f32,
    d_img: Vec<T>,
    d_txt: Vec<T>,
}

impl<T: Element> Case<T> {
    /// Rows scaled so that dot products are about 1 in size.
    fn new(seed: u64, (rows, cols, dim): (usize, usize, usize), pad: usize, params: SiglipParams) -> Self {
        let stride = dim + pad;
        let scale = (3.0 / dim as f32).sqrt();
        let mut noise = Noise::new(seed);
        let img = noise.take(rows * stride, scale);
        let txt = noise.take(cols * stride, scale);
        Self { img, txt, rows, cols, dim, stride, params }
    }

    fn run(&self) -> Found<T> {
        let mark = T::from_f32(7.0);
        let (mut d_img, mut d_txt) = (vec![mark; self.rows * self.stride], vec![mark; self.cols * self.stride]);
        let view = |data, rows| HostMatrix::with_row_stride("input", data, rows, self.dim, self.stride).unwrap();
        let (img, txt) = (view(&self.img, self.rows), view(&self.txt, self.cols));
        let gradients = siglip::forward_backward(
            img,
            txt,
            &self.params,
            &mut HostMatrixMut::with_row_stride("d_img", &mut d_img, self.rows, self.dim, self.stride).unwrap(),
            &mut HostMatrixMut::with_row_stride("d_txt", &mut d_txt, self.cols, self.dim, self.stride).unwrap(),
        )
        .unwrap();
        for row in d_img.chunks(self.stride).chain(d_txt.chunks(self.stride)) {
            assert!(row[self.dim..].iter().all(|&x| x == mark), "written between the rows");
        }
        let forward = siglip::forward(img, txt, &self.params).unwrap();
        let (d_img, d_txt) = (dense(&d_img, self.dim, self.stride), dense(&d_txt, self.dim, self.stride));
        Found { gradients, forward, d_img, d_txt }
    }

    fn exact(&self) -> naive::SiglipResult {
        let (img, txt) = (dense(&self.img, self.dim, self.stride), dense(&self.txt, self.dim, self.stride));
        naive::siglip(&wide(&img), &wide(&txt), self.dim, &SiglipScalars::from(&self.params)).unwrap()
    }

    /// Checks against f64: loss 1e-5, gradients `tolerance` and the rounding of the type. The scalars' gradients are sums over signed
    /// pairs, measured against the sum of their sizes.
    fn check(&self, tolerance: f64) {
        let (found, exact) = (self.run(), self.exact());
        let name = format!("{} {:?} {:?}", T::NAME, (self.rows, self.cols, self.dim, self.stride), self.params);
        for loss in [found.gradients.loss, found.forward] {
            assert!(
                (f64::from(loss) - exact.loss).abs() <= 1e-5 * exact.loss.abs() + 1e-37,
                "loss {loss} {} {name}",
                exact.loss
            );
        }
        for (what, found, exact) in [("d_img", &found.d_img, &exact.d_img), ("d_txt", &found.d_txt, &exact.d_txt)] {
            let error = error(found, exact);
            assert!(error <= tolerance + rounding::<T>(), "{what} {error:e} {name}");
        }
        let size = f64::from(self.params.upstream.abs()) * (self.rows * self.cols) as f64 / self.params.batch as f64;
        let bias = (f64::from(found.gradients.d_bias) - exact.d_bias).abs();
        assert!(bias <= 1e-6 * size, "d_bias {bias:e} {name}");
        let largest = self.logit_size();
        let log_temp = (f64::from(found.gradients.d_log_temp) - exact.d_log_temp).abs();
        assert!(log_temp <= 1e-6 * size * largest, "d_log_temp {log_temp:e} {name}");
    }

    /// A bound of |exp(log_temp) <img, txt>|, at least 1.
    fn logit_size(&self) -> f64 {
        let norm = |rows: &[T]| {
            rows.chunks(self.stride).map(|r| wide(r).iter().map(|x| x * x).sum::<f64>().sqrt()).fold(0f64, f64::max)
        };
        (f64::from(self.params.log_temp).exp() * norm(&self.img) * norm(&self.txt)).max(1.0)
    }
}

fn params(batch: usize, log_temp: f32, bias: f32, positives: Positives) -> SiglipParams {
    SiglipParams { log_temp, bias, positives, batch, upstream: 1.0 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_naive_f64(
        seed in any::<u64>(),
        rows in 1usize..70,
        cols in 1usize..70,
        dim in 1usize..90,
        pad in 0usize..4,
        log_temp in -2f32..2.5,
        bias in -12f32..5.0,
        offset in -80i64..80,
        diagonal in any::<bool>(),
        upstream in -3f32..3.0,
        batch in 1usize..200,
    ) {
        let positives = if diagonal { Positives::Diagonal { offset } } else { Positives::None };
        let params = SiglipParams { log_temp, bias, positives, batch, upstream };
        Case::<f32>::new(seed, (rows, cols, dim), pad, params).check(2e-6);
        Case::<f16>::new(seed, (rows, cols, dim), pad, params).check(2e-6);
        Case::<bf16>::new(seed, (rows, cols, dim), pad, params).check(2e-6);
    }

    #[test]
    fn naive_gradients_are_central_differences(
        seed in any::<u64>(),
        rows in 1usize..5,
        cols in 1usize..5,
        dim in 1usize..5,
        offset in -3i64..3,
        log_temp in -1f64..2.0,
        bias in -4f64..4.0,
    ) {
        let mut noise = Noise::new(seed);
        let (mut img, mut txt) = (wide(&noise.take::<f32>(rows * dim, 1.0)), wide(&noise.take::<f32>(cols * dim, 1.0)));
        let mut scalars = SiglipScalars { log_temp, bias, positives: Positives::Diagonal { offset }, batch: 3, upstream: 1.0 };
        let exact = naive::siglip(&img, &txt, dim, &scalars).unwrap();
        let step = 1e-5;
        let close = |low: f64, high: f64, exact: f64| ((high - low) / (2.0 * step) - exact).abs() < 1e-7;
        for i in 0..img.len() {
            let kept = img[i];
            let mut at = |x: f64| { img[i] = x; naive::siglip_loss(&img, &txt, dim, &scalars).unwrap() };
            let (low, high) = (at(kept - step), at(kept + step));
            at(kept);
            prop_assert!(close(low, high, exact.d_img[i]));
        }
        for i in 0..txt.len() {
            let kept = txt[i];
            let mut at = |x: f64| { txt[i] = x; naive::siglip_loss(&img, &txt, dim, &scalars).unwrap() };
            let (low, high) = (at(kept - step), at(kept + step));
            at(kept);
            prop_assert!(close(low, high, exact.d_txt[i]));
        }
        let mut at = |t: f64, b: f64| {
            (scalars.log_temp, scalars.bias) = (t, b);
            naive::siglip_loss(&img, &txt, dim, &scalars).unwrap()
        };
        prop_assert!(close(at(log_temp - step, bias), at(log_temp + step, bias), exact.d_log_temp));
        prop_assert!(close(at(log_temp, bias - step), at(log_temp, bias + step), exact.d_bias));
    }

    #[test]
    fn f32_gradients_are_central_differences(seed in any::<u64>(), rows in 1usize..6, cols in 1usize..6, dim in 1usize..6) {
        let mut case = Case::<f32>::new(seed, (rows, cols, dim), 0, params(rows, 0.7, -1.0, Positives::Diagonal { offset: 0 }));
        let d_img = case.run().d_img;
        let step = 2f32.powi(-6);
        for (i, gradient) in d_img.into_iter().enumerate() {
            let kept = case.img[i];
            case.img[i] = kept + step;
            let high = case.run().forward;
            case.img[i] = kept - step;
            let low = case.run().forward;
            case.img[i] = kept;
            prop_assert!(((high - low) / (2.0 * step) - gradient).abs() < 2e-3);
        }
    }
}

#[test]
fn shapes_around_the_block_size() {
    for shape in [(255, 257, 8), (256, 256, 16), (257, 513, 5), (600, 1, 3), (1, 600, 3), (300, 40, 33)] {
        for offset in [0, 3, -256, 255] {
            let params = params(300, 2.3, -5.0, Positives::Diagonal { offset });
            Case::<f32>::new(1, shape, 0, params).check(2e-6);
        }
    }
    Case::<bf16>::new(2, (300, 270, 24), 3, params(300, 1.0, -3.0, Positives::Diagonal { offset: -10 })).check(2e-6);
}

#[test]
fn dimensions_from_1_to_4096() {
    for dim in [1, 2, 3, 7, 8, 9, 31, 64, 127, 255, 767, 768, 1152, 4095, 4096] {
        let params = SiglipParams::square(5, 2.3, -10.0);
        Case::<f32>::new(dim as u64, (5, 5, dim), 0, params).check(2e-6);
        Case::<bf16>::new(dim as u64, (5, 5, dim), 1, params).check(2e-6);
    }
}

#[test]
fn a_batch_of_one() {
    for (log_temp, bias) in [(0.0, 0.0), (4.6, -10.0), (-3.0, 10.0)] {
        for dim in [1, 5, 768] {
            let case = Case::<f32>::new(9, (1, 1, dim), 0, SiglipParams::square(1, log_temp, bias));
            // The gradient is one exp(-|z|), as exact as z.
            case.check(2e-7 * case.logit_size().max(10.0));
        }
    }
}

/// One image, one text, D = 1: z is any number wanted.
fn single(z: f32, positives: Positives) -> (f32, f32) {
    let params = params(1, 0.0, 0.0, positives);
    let (mut d_img, mut d_txt) = ([0.0], [0.0]);
    let gradients = siglip::forward_backward(
        HostMatrix::new("img", &[z], 1, 1).unwrap(),
        HostMatrix::new("txt", &[1.0], 1, 1).unwrap(),
        &params,
        &mut HostMatrixMut::new("d_img", &mut d_img, 1, 1).unwrap(),
        &mut HostMatrixMut::new("d_txt", &mut d_txt, 1, 1).unwrap(),
    )
    .unwrap();
    assert_eq!(gradients.d_bias, d_img[0]);
    (gradients.loss, d_img[0])
}

#[test]
fn small_losses_keep_their_relative_accuracy() {
    for i in -400..=400 {
        let z = i as f32 * 0.1;
        let x = f64::from(z);
        // -log sigmoid(-z) and -log sigmoid(z), without cancellation.
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        let sigmoid = |x: f64| if x > 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) };
        for (positives, loss, slope) in [
            (Positives::None, softplus(x), sigmoid(x)),
            (Positives::Diagonal { offset: 0 }, softplus(-x), -sigmoid(-x)),
        ] {
            let found = single(z, positives);
            assert!((f64::from(found.0) - loss).abs() <= 5e-7 * loss, "loss at {z}: {} {loss}", found.0);
            assert!((f64::from(found.1) - slope).abs() <= 5e-7 * slope.abs(), "slope at {z}: {} {slope}", found.1);
        }
    }
}

#[test]
fn extreme_logits() {
    let positive = Positives::Diagonal { offset: 0 };
    assert_eq!(single(1e4, Positives::None), (1e4, 1.0));
    assert_eq!(single(-1e4, Positives::None), (0.0, 0.0));
    assert_eq!(single(1e4, positive), (0.0, 0.0));
    assert_eq!(single(-1e4, positive), (1e4, -1.0));
    // Rows of norm 10 to 1000 at temperature 100, with biases of ±10.
    for bias in [-10.0, 10.0] {
        for scale in [1.0, 10.0] {
            let mut case = Case::<f32>::new(4, (40, 33, 24), 0, params(40, 100f32.ln(), bias, positive));
            case.img.iter_mut().for_each(|x| *x *= scale);
            // z of size 10³ is itself rounded by 10⁻⁴, which the sigmoids between 0 and 1 show.
            let tolerance = 1e-6 * case.logit_size();
            case.check(tolerance.max(2e-6));
        }
    }
}

#[test]
fn initial_bias_of_siglip() {
    for bias in [-10.0, 10.0] {
        Case::<f32>::new(5, (128, 128, 64), 0, SiglipParams::square(128, 10f32.ln(), bias)).check(2e-6);
    }
}

#[test]
fn offsets_outside_the_block_leave_no_positive() {
    let with = |positives| Case::<f32>::new(6, (7, 9, 4), 0, params(7, 1.0, -2.0, positives)).run();
    let none = with(Positives::None);
    for offset in [9, -7, 100, -100, i64::MAX, i64::MIN] {
        let found = with(Positives::Diagonal { offset });
        assert_eq!(
            (found.gradients, found.d_img, found.d_txt),
            (none.gradients, none.d_img.clone(), none.d_txt.clone())
        );
    }
    let crossing = with(Positives::Diagonal { offset: 8 });
    assert_ne!(crossing.gradients.loss, none.gradients.loss);
}

#[test]
fn blocks_sum_to_the_whole() {
    let whole = Case::<f32>::new(7, (20, 20, 6), 0, SiglipParams::square(20, 1.0, -1.0)).exact();
    let (mut loss, mut d_bias) = (0.0, 0.0);
    let case = Case::<f32>::new(7, (20, 20, 6), 0, SiglipParams::square(20, 1.0, -1.0));
    for (start, end) in [(0usize, 8usize), (8, 20)] {
        let txt = case.txt[start * 6..end * 6].to_vec();
        let params = params(20, 1.0, -1.0, Positives::Diagonal { offset: -(start as i64) });
        let block = Case { txt, cols: end - start, img: case.img.clone(), params, ..case };
        let found = block.run().gradients;
        loss += f64::from(found.loss);
        d_bias += f64::from(found.d_bias);
    }
    assert!((loss - whole.loss).abs() < 1e-6 * whole.loss && (d_bias - whole.d_bias).abs() < 1e-6);
}

#[test]
fn upstream_scales_gradients_and_not_the_loss() {
    let mut case = Case::<f32>::new(8, (30, 20, 10), 0, SiglipParams::square(30, 1.0, -2.0));
    let one = case.run();
    case.params.upstream = -2.0;
    let scaled = case.run();
    assert_eq!(scaled.gradients.loss, one.gradients.loss);
    assert_eq!(scaled.gradients.d_bias, -2.0 * one.gradients.d_bias);
    assert_eq!(scaled.gradients.d_log_temp, -2.0 * one.gradients.d_log_temp);
    assert!(scaled.d_img.iter().zip(&one.d_img).all(|(s, o)| *s == -2.0 * o));
    case.params.upstream = 0.0;
    assert!(case.run().d_txt.iter().all(|&x| x == 0.0));
}

#[test]
fn same_bits_on_every_run_and_number_of_threads() {
    fn bits<T: Element>(threads: usize) -> (Vec<u32>, [u32; 4]) {
        let case = Case::<T>::new(10, (900, 530, 20), 1, params(900, 2.3, -6.0, Positives::Diagonal { offset: 40 }));
        let found = on_threads(threads, || case.run());
        let gradients = found.d_img.iter().chain(&found.d_txt).map(|x| x.to_f32().to_bits()).collect();
        let Gradients { loss, d_log_temp, d_bias, .. } = found.gradients;
        (gradients, [loss, d_log_temp, d_bias, found.forward].map(f32::to_bits))
    }
    let first = bits::<f32>(1);
    assert!(bits::<f32>(1) == first && bits::<f32>(2) == first && bits::<f32>(3) == first);
    assert!(bits::<bf16>(1) == bits::<bf16>(2));
}

#[test]
fn nan_reaches_the_loss_and_infinity_follows_ieee() {
    for at in [0, 13, 59] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for into_txt in [false, true] {
                let mut case = Case::<f32>::new(11, (6, 6, 10), 0, SiglipParams::square(6, 0.0, 0.0));
                if into_txt {
                    case.txt[at] = value
                } else {
                    case.img[at] = value
                }
                let (found, exact) = (case.run(), case.exact());
                assert_eq!(found.gradients.loss.is_finite(), exact.loss.is_finite(), "{value} at {at}");
                assert_eq!(found.forward.is_finite(), exact.loss.is_finite(), "{value} at {at}");
                assert!(!value.is_nan() || (found.gradients.loss.is_nan() && found.forward.is_nan()));
                // Where every infinite logit is of its pair's own sign the loss is finite, and the gradients still tell.
                assert!(found.d_img.iter().chain(&found.d_txt).any(|x| x.is_nan()));
            }
        }
    }
}
