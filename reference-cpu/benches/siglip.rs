//! The loss, and the loss with its gradients, beside the `gemm` crate's own rate. Throughput is in flop: 2·B²·D and 6·B²·D.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reference_cpu::siglip::{self, SiglipParams};
use reference_cpu::{Element, HostMatrix, HostMatrixMut, bf16};

mod common;

fn bench<T: Element>(criterion: &mut Criterion, batch: usize, dim: usize) {
    let mut group = criterion.benchmark_group(format!("siglip {} B={batch} D={dim}", T::NAME));
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    if T::NAME == "f32" {
        common::gemm_crate(&mut group, batch, dim, batch);
    }
    let embeddings = |seed| {
        let scale = (12.0 / dim as f32).sqrt();
        common::noise(seed, batch * dim).into_iter().map(|x| T::from_f32(x * scale)).collect::<Vec<_>>()
    };
    let (img, txt) = (embeddings(3), embeddings(4));
    let (mut d_img, mut d_txt) = (vec![T::default(); batch * dim], vec![T::default(); batch * dim]);
    let params = SiglipParams::square(batch, 10f32.ln(), -10.0);
    let img = HostMatrix::new("img", &img, batch, dim).expect("a dense matrix");
    let txt = HostMatrix::new("txt", &txt, batch, dim).expect("a dense matrix");
    let mut d_img = HostMatrixMut::new("d_img", &mut d_img, batch, dim).expect("a dense matrix");
    let mut d_txt = HostMatrixMut::new("d_txt", &mut d_txt, batch, dim).expect("a dense matrix");
    let flop = 2 * (batch * batch * dim) as u64;
    group.throughput(Throughput::Elements(flop));
    group.bench_function("forward", |bencher| bencher.iter(|| black_box(siglip::forward(img, txt, &params))));
    group.throughput(Throughput::Elements(3 * flop));
    group.bench_function("forward + backward", |bencher| {
        bencher.iter(|| black_box(siglip::forward_backward(img, txt, &params, &mut d_img, &mut d_txt)));
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    bench::<f32>(criterion, 1024, 768);
    bench::<bf16>(criterion, 1024, 768);
    bench::<f32>(criterion, 8192, 768);
}

criterion_group!(benches, all);
criterion_main!(benches);
