//! Measures the loss and its gradients beside the `gemm` crate's own rate, and the gradients' error against f64.
//!
//! ```text
//! cargo run --release -p reference-cpu --example siglip_rate -- [B] [D]
//! ```

use std::time::Instant;

use reference_cpu::siglip::{self, SiglipParams};
use reference_cpu::{HostMatrix, HostMatrixMut, naive};

/// Uniform numbers in -0.5..0.5 from a linear congruential generator (Knuth's MMIX constants).
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// Rows of length 1.
fn embeddings(seed: u64, rows: usize, dim: usize) -> Vec<f32> {
    let mut data = noise(seed, rows * dim);
    for row in data.chunks_mut(dim) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    data
}

/// The shortest of a few runs, in seconds.
fn best(runs: usize, mut f: impl FnMut()) -> f64 {
    f();
    let time = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

/// GFLOP/s of `[n, d] · [d, n]` by the `gemm` crate on all of rayon's threads.
fn gemm_rate(n: usize, d: usize) -> f64 {
    let (a, b) = (noise(1, n * d), noise(2, n * d));
    let mut c = vec![0f32; n * n];
    let seconds = best(3, || {
        // SAFETY: a is [n, d] row-major, b [d, n] column-major, c [n, n] row-major, each in a slice of exactly that size.
        unsafe {
            let (n_stride, d_stride) = (n as isize, d as isize);
            gemm::gemm(
                n,
                n,
                d,
                c.as_mut_ptr(),
                1,
                n_stride,
                false,
                a.as_ptr(),
                1,
                d_stride,
                b.as_ptr(),
                d_stride,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
    });
    2.0 * (n * n * d) as f64 / seconds / 1e9
}

fn largest_error(found: &[f32], exact: &[f64]) -> f64 {
    let largest = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
    found.iter().zip(exact).fold(0f64, |m, (f, e)| m.max((f64::from(*f) - e).abs())) / largest
}

fn main() -> reference_cpu::Result<()> {
    let mut sizes = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let (batch, dim) = (sizes.next().unwrap_or(8192), sizes.next().unwrap_or(768));

    println!("error against f64, relative to the largest entry");
    for (b, log_temp, bias) in
        [(256, 10f32.ln(), -10.0), (1024, 10f32.ln(), -10.0), (2048, 10f32.ln(), -10.0), (2048, 4.6, 0.0)]
    {
        let (img, txt) = (embeddings(3, b, dim), embeddings(4, b, dim));
        let (mut d_img, mut d_txt) = (vec![0f32; b * dim], vec![0f32; b * dim]);
        let params = SiglipParams::square(b, log_temp, bias);
        let found = siglip::forward_backward(
            HostMatrix::new("img", &img, b, dim)?,
            HostMatrix::new("txt", &txt, b, dim)?,
            &params,
            &mut HostMatrixMut::new("d_img", &mut d_img, b, dim)?,
            &mut HostMatrixMut::new("d_txt", &mut d_txt, b, dim)?,
        )?;
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let exact = naive::siglip(&wide(&img), &wide(&txt), dim, &(&params).into())?;
        let scalar = |f: f32, e: f64| ((f64::from(f) - e) / e).abs();
        println!(
            "  B={b} D={dim} log_temp={log_temp:.2} bias={bias}: d_img {:.1e} d_txt {:.1e} loss {:.1e} d_log_temp {:.1e} d_bias {:.1e}",
            largest_error(&d_img, &exact.d_img),
            largest_error(&d_txt, &exact.d_txt),
            scalar(found.loss, exact.loss),
            scalar(found.d_log_temp, exact.d_log_temp),
            scalar(found.d_bias, exact.d_bias),
        );
    }

    let (img, txt) = (embeddings(5, batch, dim), embeddings(6, batch, dim));
    let (mut d_img, mut d_txt) = (vec![0f32; batch * dim], vec![0f32; batch * dim]);
    let params = SiglipParams::square(batch, 10f32.ln(), -10.0);
    let img = HostMatrix::new("img", &img, batch, dim)?;
    let txt = HostMatrix::new("txt", &txt, batch, dim)?;
    let mut d_img = HostMatrixMut::new("d_img", &mut d_img, batch, dim)?;
    let mut d_txt = HostMatrixMut::new("d_txt", &mut d_txt, batch, dim)?;
    let mut result = Ok(());
    let flop = (batch * batch * dim) as f64;
    let step = best(2, || result = siglip::forward_backward(img, txt, &params, &mut d_img, &mut d_txt).map(|_| ()));
    result?;
    let mut result = Ok(());
    let forward = best(2, || result = siglip::forward(img, txt, &params).map(|_| ()));
    result?;
    let (step, forward) = (6.0 * flop / step / 1e9, 2.0 * flop / forward / 1e9);
    let peer = gemm_rate(batch, dim);
    println!("B={batch} D={dim} f32 on {} threads", rayon::current_num_threads());
    println!("  gemm crate          {peer:6.1} GFLOP/s");
    println!("  forward             {forward:6.1} GFLOP/s, {:.0}% of it", 100.0 * forward / peer);
    println!("  forward + backward  {step:6.1} GFLOP/s, {:.0}% of it", 100.0 * step / peer);
    Ok(())
}
