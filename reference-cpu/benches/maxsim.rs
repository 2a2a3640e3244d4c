//! MaxSim beside the `gemm` crate's own rate. Throughput is in flop of the similarities, 2·Nq·Lq·Nd·Ld·d, with the backward too.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reference_cpu::maxsim::{self, Pairing, Problem, Tokens};
use reference_cpu::{Element, HostMatrixMut, HostTensor, bf16};

mod common;

fn bench<T: Element>(criterion: &mut Criterion, [nq, nd, lq, ld, dim]: [usize; 5], normalize: bool) {
    let suffix = if normalize { " normalised" } else { "" };
    let mut group = criterion.benchmark_group(format!("maxsim {} {nq},{nd},{lq},{ld},{dim}{suffix}", T::NAME));
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(4));
    if T::NAME == "f32" {
        common::gemm_crate(&mut group, nq * lq, dim, nd * ld);
    }
    let values = |seed, count| common::noise(seed, count).into_iter().map(T::from_f32).collect::<Vec<_>>();
    let (q, d) = (values(3, nq * lq * dim), values(4, nd * ld * dim));
    let (mut dq, mut dd) = (vec![T::default(); q.len()], vec![T::default(); d.len()]);
    let tokens =
        |data, shape| Tokens::padded(HostTensor::new("tokens", data, shape).expect("dense")).expect("not empty");
    let problem = Problem {
        queries: tokens(&q, [nq, lq, dim]),
        docs: tokens(&d, [nd, ld, dim]),
        pairing: Pairing::Cross,
        normalize,
    };
    let (mut scores, mut argmax, d_scores) = (vec![0f32; nq * nd], vec![0; nq * nd * lq], vec![1f32; nq * nd]);
    group.throughput(Throughput::Elements(2 * (nq * lq * nd * ld * dim) as u64));
    group.bench_function("scores", |bencher| bencher.iter(|| black_box(maxsim::forward(&problem, &mut scores, None))));
    group.bench_function("scores + gradients", |bencher| {
        bencher.iter(|| {
            maxsim::forward(&problem, &mut scores, Some(&mut argmax))?;
            let mut dq = HostMatrixMut::new("dq", &mut dq, nq * lq, dim)?;
            let mut dd = HostMatrixMut::new("dd", &mut dd, nd * ld, dim)?;
            maxsim::backward(&problem, &d_scores, &argmax, Some(&mut dq), Some(&mut dd))
        });
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    bench::<f32>(criterion, [32, 32, 32, 300, 128], false);
    bench::<bf16>(criterion, [32, 32, 32, 300, 128], true);
    bench::<f32>(criterion, [1, 1000, 32, 300, 128], false);
    bench::<bf16>(criterion, [1, 1000, 32, 300, 128], false);
}

criterion_group!(benches, all);
criterion_main!(benches);
