//! The gated projections beside the `gemm` crate's own rate. Throughput is in flop: 4·M·K·N forward, 12·M·K·N with backward from saved
//! pre-activations.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reference_cpu::swiglu::{self, Gate, Gradients, Layer, Order, Weights, WeightsMut};
use reference_cpu::{Element, HostMatrix, HostMatrixMut, bf16};

mod common;

fn bench<T: Element>(criterion: &mut Criterion, m: usize, k: usize, n: usize) {
    let mut group = criterion.benchmark_group(format!("swiglu {} M={m} K={k} N={n}", T::NAME));
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(4));
    if T::NAME == "f32" {
        common::gemm_crate(&mut group, m, k, 2 * n);
    }
    let values = |seed, count| common::noise(seed, count).into_iter().map(T::from_f32).collect::<Vec<_>>();
    let (x, w, dz) = (values(3, m * k), values(4, k * 2 * n), values(5, m * n));
    let (mut z, mut saved) = (vec![T::default(); m * n], vec![T::default(); m * 2 * n]);
    let (mut dx, mut dw) = (vec![T::default(); m * k], vec![0f32; k * 2 * n]);
    let view = |data, rows, cols| HostMatrix::new("input", data, rows, cols).expect("a dense matrix");
    let weights = Weights::packed(view(&w, k, 2 * n), Order::GateFirst).expect("an even number of columns");
    let layer = Layer { weights, bias: None, gate: Gate::Silu };
    let (x, dz) = (view(&x, m, k), view(&dz, m, n));
    let forward = |z: &mut [T], saved: &mut [T]| {
        let mut z = HostMatrixMut::new("z", z, m, n).expect("a dense matrix");
        let mut saved = HostMatrixMut::new("saved", saved, m, 2 * n).expect("a dense matrix");
        swiglu::forward(x, &layer, &mut z, Some(&mut saved))
    };
    let flop = 4 * (m * k * n) as u64;
    group.throughput(Throughput::Elements(flop));
    group.bench_function("forward", |bencher| bencher.iter(|| black_box(forward(&mut z, &mut saved))));
    group.throughput(Throughput::Elements(3 * flop));
    group.bench_function("forward + backward", |bencher| {
        bencher.iter(|| {
            forward(&mut z, &mut saved)?;
            let d_weights = WeightsMut::packed(HostMatrixMut::new("dw", &mut dw, k, 2 * n)?, Order::GateFirst);
            let dx = HostMatrixMut::new("dx", &mut dx, m, k)?;
            let mut gradients = Gradients { dx: Some(dx), d_weights: Some(d_weights), ..Gradients::default() };
            swiglu::backward(x, &layer, dz, Some(HostMatrix::new("saved", &saved, m, 2 * n)?), &mut gradients)
        });
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    bench::<f32>(criterion, 512, 1024, 2048);
    bench::<bf16>(criterion, 512, 1024, 2048);
    bench::<bf16>(criterion, 1, 1024, 2048);
}

criterion_group!(benches, all);
criterion_main!(benches);
