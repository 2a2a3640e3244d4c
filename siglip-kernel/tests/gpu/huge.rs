//! B = 1,048,576: 10¹² pairs, and 1.6 GB a matrix. Half a minute, so only when asked for: `-- --ignored`.

use std::ops::Range;
use std::thread;

use siglip_kernel::kernel_core::half::bf16;
use siglip_kernel::{Gpu, Inputs, MatrixView, MatrixViewMut, Options, Outputs, Plan, Problem, Scalar, VectorViewMut};

use crate::support::{gpu, l2, noise, say};

const B: usize = 1 << 20;
const DIM: usize = 768;
const TEMPERATURE: f64 = 10.0;
const BIAS: f32 = -10.0;
/// Feature 0 of every image. It is 0 in every text, so that no logit depends on it, and the texts' gradients sum their q there.
const MARK: f32 = 0.25;
/// Rows of random numbers that all rows are cut out of, at different places.
const POOL: usize = 4096;

/// The work of each of this machine's processors: equal parts of `0..count`.
fn parts<R: Send>(count: usize, work: impl Fn(Range<usize>) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let part = count.div_ceil(threads);
    thread::scope(|scope| {
        let work = &work;
        let spawned: Vec<_> =
            (0..count).step_by(part).map(|start| scope.spawn(move || work(start..(start + part).min(count)))).collect();
        spawned.into_iter().map(|thread| thread.join().expect("a thread of the test")).collect()
    })
}

/// Rows of about unit length, no two alike; row i of `seed` 2 leans to row i of `seed` 1.
fn rows(seed: u64, mark: f32) -> Vec<bf16> {
    let scale = (3.0 / DIM as f32).sqrt();
    let pools = [noise(POOL * 2 * DIM, 1), noise(POOL * 2 * DIM, 2)];
    let cut = |pool: usize, i: usize| &pools[pool][i % POOL * 2 * DIM + i / POOL * 3 % DIM..][..DIM];
    let mut all = vec![bf16::ZERO; B * DIM];
    let addressed = parts(B, |range| {
        let mut part = Vec::with_capacity(range.len() * DIM);
        for i in range {
            let own = cut(usize::from(seed == 2), i);
            let lean = if seed == 2 { 0.6 } else { 0.0 };
            part.push(bf16::from_f32(mark));
            part.extend((1..DIM).map(|k| bf16::from_f32(scale * (own[k] * (1.0 - lean) + lean * cut(0, i)[k]))));
        }
        part
    });
    let mut at = 0;
    for part in addressed {
        all[at..at + part.len()].copy_from_slice(&part);
        at += part.len();
    }
    all
}

/// The gradient of one row against all rows of the other side, its own index positive; and the row's part of the loss.
fn gradient(row: usize, of: &[bf16], others: &[bf16]) -> (Vec<f64>, f64) {
    let own: Vec<f32> = of[row * DIM..][..DIM].iter().map(|x| x.to_f32()).collect();
    let (mut sum, mut loss) = (vec![0.0; DIM], 0.0);
    for (j, other) in others.chunks(DIM).enumerate() {
        let dot: f64 = own.iter().zip(other).map(|(a, b)| f64::from(a * b.to_f32())).sum();
        let towards = (TEMPERATURE * dot + f64::from(BIAS)) * if j == row { -1.0 } else { 1.0 };
        let sigmoid = 1.0 / (1.0 + (-towards).exp());
        let q = if j == row { -sigmoid } else { sigmoid };
        loss += towards.max(0.0) + (-towards.abs()).exp().ln_1p();
        sum.iter_mut().zip(other).for_each(|(s, x)| *s += q * f64::from(x.to_f32()));
    }
    sum.iter_mut().for_each(|s| *s *= TEMPERATURE / B as f64);
    (sum, loss)
}

fn assert_near(what: &str, found: f64, expected: f64, bound: f64) {
    let error = (found - expected).abs();
    assert!(error <= bound, "{what} is {found:e}, expected {expected:e} (off {error:.1e}, at most {bound:.1e})");
}

fn enough_memory(gpu: &Gpu) -> bool {
    let needed = 12 * B * DIM;
    let (free, _) = gpu.memory_info().unwrap();
    if free < needed {
        // Not a missing GPU, so not a failure either.
        say(&format!("skipped: {free} bytes of device memory are free, {needed} needed"));
    }
    free >= needed
}

#[test]
#[ignore = "half a minute of a fast GPU"]
fn a_million_images_and_texts() {
    let Some(gpu) = gpu() else { return };
    if !enough_memory(&gpu) {
        return;
    }
    let (img, txt) = (rows(1, MARK), rows(2, 0.0));
    let (on_device_img, on_device_txt) = (gpu.upload(&img).unwrap(), gpu.upload(&txt).unwrap());
    let [mut d_img, mut d_txt] = [(); 2].map(|()| gpu.alloc::<bf16>(B * DIM).unwrap());
    let [mut loss, mut d_log_temp, mut d_bias] = [(); 3].map(|()| gpu.alloc::<f32>(1).unwrap());
    let mut plan = Plan::new(&gpu, Problem::square(B, DIM, siglip_kernel::DType::Bf16), Options::default()).unwrap();
    let inputs = |bias| Inputs {
        img: MatrixView::new("img", &on_device_img, [B, DIM]).unwrap(),
        txt: MatrixView::new("txt", &on_device_txt, [B, DIM]).unwrap(),
        log_temp: Scalar::Host((TEMPERATURE as f32).ln()),
        bias: Scalar::Host(bias),
    };
    let mut outputs = Outputs {
        loss: VectorViewMut::new("loss", &mut loss, [1]).unwrap(),
        d_img: MatrixViewMut::new("d_img", &mut d_img, [B, DIM]).unwrap(),
        d_txt: MatrixViewMut::new("d_txt", &mut d_txt, [B, DIM]).unwrap(),
        d_log_temp: VectorViewMut::new("d_log_temp", &mut d_log_temp, [1]).unwrap(),
        d_bias: VectorViewMut::new("d_bias", &mut d_bias, [1]).unwrap(),
    };
    gpu.synchronize().unwrap();
    let start = std::time::Instant::now();
    plan.forward_backward(&inputs(BIAS), &Scalar::Host(1.0), &mut outputs).unwrap();
    gpu.synchronize().unwrap();
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), plan.workspace_bytes() + 2 * 2 * B * DIM);
    say(&format!("a step took {seconds:.2} s and {:.2} GB above its inputs", bytes as f64 / 1e9));

    let scalar = |of| f64::from(gpu.download(of).unwrap()[0]);
    let (step_loss, d_log_temp, d_bias) = (scalar(&loss), scalar(&d_log_temp), scalar(&d_bias));
    let (d_img, d_txt) = (gpu.download(&d_img).unwrap(), gpu.download(&d_txt).unwrap());

    // Sampled rows of both gradients, ends of blocks and of the matrix among them; images' rows with their parts of the loss.
    let sampled: Vec<usize> =
        [0, 127, 128, B / 2 - 1, B - 128, B - 1].into_iter().chain((1..11).map(|i| i * 95_383)).collect();
    let checked = parts(2 * sampled.len(), |range| {
        let check = |at: usize| {
            let (row, texts) = (sampled[at / 2], at % 2 == 1);
            let (of, others, found) = if texts { (&txt, &img, &d_txt) } else { (&img, &txt, &d_img) };
            let (expected, loss) = gradient(row, of, others);
            let rows = found[row * DIM..][..DIM].iter().zip(&expected);
            let error = l2(rows.map(|(a, b)| a.to_f64() - b)) / l2(expected.iter().copied());
            (row, texts, error, loss)
        };
        range.map(check).collect::<Vec<_>>()
    });
    let mut losses = Vec::new();
    for (row, texts, error, loss) in checked.into_iter().flatten() {
        // Two whole roundoffs of bf16: one row does not average the rounding of its largest q.
        assert!(
            error <= 2.0 * 2f64.powi(-8),
            "row {row} of {}: off {error:.1e}",
            if texts { "d_txt" } else { "d_img" }
        );
        losses.extend((!texts).then_some(loss));
    }
    // The loss is the mean of the rows' parts: within five standard errors of the sample's.
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    let variance = losses.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (losses.len() - 1) as f64;
    let error = (variance / losses.len() as f64).sqrt();
    assert!(
        (step_loss - mean).abs() <= 5.0 * error,
        "the loss is {step_loss}, the sampled rows' mean {mean} ± {error}"
    );

    // Identities over all pairs: Σ q (z - bias) is Σ d_img · img and Σ d_txt · txt, and Σ q is in the texts' gradients by the images' mark.
    let inner = |gradient: &[bf16], rows: &[bf16]| -> f64 {
        let part = |range: Range<usize>| {
            gradient[range.clone()].iter().zip(&rows[range]).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>()
        };
        parts(B * DIM, part).into_iter().sum()
    };
    // A positive's z - bias is at most the temperature; the negatives' parts have the other sign.
    assert_near("Σ d_img · img", inner(&d_img, &img), d_log_temp, 1e-3 * TEMPERATURE);
    assert_near("Σ d_txt · txt", inner(&d_txt, &txt), d_log_temp, 1e-3 * TEMPERATURE);
    let marked: f64 = d_txt.iter().step_by(DIM).map(|x| x.to_f64()).sum();
    assert_near(
        "Σ of the texts' marks",
        marked,
        TEMPERATURE * f64::from(MARK) * d_bias,
        1e-3 * TEMPERATURE * f64::from(MARK) * d_bias,
    );

    // The loss alone, on both sides of the bias: their difference is d_bias.
    const STEP: f32 = 0.0625;
    let mut forward = |bias: f32| {
        plan.forward(&inputs(bias), &mut VectorViewMut::new("loss", &mut loss, [1]).unwrap()).unwrap();
        f64::from(gpu.download(&loss).unwrap()[0])
    };
    let (below, above) = (forward(BIAS - STEP), forward(BIAS + STEP));
    assert_near("the difference of losses", (above - below) / (2.0 * f64::from(STEP)), d_bias, 2e-3 * d_bias);
    assert!(below < step_loss && step_loss < above, "{below}, {step_loss}, {above}");
}
