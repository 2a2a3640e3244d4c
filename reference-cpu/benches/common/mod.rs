//! What the benches share: data and the `gemm` crate's own rate.
#![allow(dead_code)]

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};

/// Uniform numbers in -0.5..0.5 from a linear congruential generator (Knuth's MMIX constants).
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// Measures `[m, k] · [k, n]` by the `gemm` crate on all of rayon's threads: what the operations are held against.
pub(crate) fn gemm_crate(group: &mut BenchmarkGroup<'_, WallTime>, m: usize, k: usize, n: usize) {
    let (a, b) = (noise(1, m * k), noise(2, k * n));
    let mut c = vec![0f32; m * n];
    group.throughput(Throughput::Elements(2 * (m * k * n) as u64));
    group.bench_function(format!("gemm crate {m}x{k}x{n}"), |bencher| {
        bencher.iter(|| {
            // SAFETY: a is [m, k], b [k, n] and c [m, n], all row-major, each in a slice of exactly that size.
            unsafe {
                let (k_stride, n_stride) = (k as isize, n as isize);
                gemm::gemm(
                    m,
                    n,
                    k,
                    c.as_mut_ptr(),
                    1,
                    n_stride,
                    false,
                    a.as_ptr(),
                    1,
                    k_stride,
                    b.as_ptr(),
                    1,
                    n_stride,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::Rayon(0),
                );
            }
            black_box(&mut c);
        });
    });
}
