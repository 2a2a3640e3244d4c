//! Loss alone and loss with gradients, on the GPU and on the CPU. The GPU's time includes the wait for the device.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use siglip_kernel::cpu::{self, Element, HostMatrix, HostMatrixMut};
use siglip_kernel::kernel_core::half::bf16;
use siglip_kernel::{
    Gpu, Inputs, MatrixView, MatrixViewMut, Options, Outputs, Plan, Problem, Result, Scalar, VectorViewMut, kernel_core,
};

const DIM: usize = 768;

/// Values in [-1, 1) / sqrt(DIM), so that rows have a length below 1.
fn rows<T: Element>(count: usize, seed: u32) -> Vec<T> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 * 2.0 - 1.0) / (DIM as f32).sqrt()
    };
    (0..count * DIM).map(|_| kernel_core::Element::from_f32(next())).collect()
}

fn gpu_step<T: Element>(criterion: &mut Criterion, gpu: &Gpu, batch: usize) -> Result<()> {
    let problem = Problem::square(batch, DIM, T::DTYPE);
    let mut plan = Plan::new(gpu, problem, Options::default())?;
    let (img, txt) = (gpu.upload(&rows::<T>(batch, 3))?, gpu.upload(&rows::<T>(batch, 5))?);
    let (mut d_img, mut d_txt) = (gpu.alloc::<T>(img.len())?, gpu.alloc::<T>(txt.len())?);
    let (mut loss, mut d_log_temp, mut d_bias) = (gpu.alloc(1)?, gpu.alloc(1)?, gpu.alloc(1)?);
    let shape = [batch, DIM];
    let inputs = Inputs {
        img: MatrixView::new("img", &img, shape)?,
        txt: MatrixView::new("txt", &txt, shape)?,
        log_temp: Scalar::Host(10f32.ln()),
        bias: Scalar::Host(-10.0),
    };
    let mut outputs = Outputs {
        loss: VectorViewMut::new("loss", &mut loss, [1])?,
        d_img: MatrixViewMut::new("d_img", &mut d_img, shape)?,
        d_txt: MatrixViewMut::new("d_txt", &mut d_txt, shape)?,
        d_log_temp: VectorViewMut::new("d_log_temp", &mut d_log_temp, [1])?,
        d_bias: VectorViewMut::new("d_bias", &mut d_bias, [1])?,
    };
    let name = format!("{} {}", T::DTYPE, plan.route());
    let mut group = criterion.benchmark_group("gpu");
    // Throughput is in floating-point operations.
    group.throughput(Throughput::Elements(problem.forward_flop() as u64));
    group.bench_function(BenchmarkId::new(format!("forward {name}"), batch), |bencher| {
        bencher.iter(|| plan.forward(&inputs, &mut outputs.loss).and_then(|()| Ok(gpu.synchronize()?)));
    });
    group.throughput(Throughput::Elements(problem.step_flop() as u64));
    group.bench_function(BenchmarkId::new(format!("step {name}"), batch), |bencher| {
        bencher.iter(|| {
            plan.forward_backward(&inputs, &Scalar::Host(1.0), &mut outputs).and_then(|()| Ok(gpu.synchronize()?))
        });
    });
    // An error inside of the loop would have been timed as a fast call.
    plan.forward_backward(&inputs, &Scalar::Host(1.0), &mut outputs)?;
    Ok(gpu.synchronize()?)
}

fn on_gpu(criterion: &mut Criterion) {
    let gpu = match Gpu::new(0) {
        Ok(gpu) => gpu,
        Err(error) => return eprintln!("skipped: no GPU ({error})"),
    };
    for batch in [8192, 32_768] {
        gpu_step::<bf16>(criterion, &gpu, batch).expect("a bf16 step");
    }
    gpu_step::<f32>(criterion, &gpu, 8192).expect("an f32 step");
}

fn on_cpu(criterion: &mut Criterion) {
    const BATCH: usize = 1024;
    let problem = Problem::square(BATCH, DIM, kernel_core::DType::F32);
    let plan = cpu::Plan::new(problem).expect("a plan");
    let (img, txt) = (rows::<f32>(BATCH, 3), rows::<f32>(BATCH, 5));
    let (mut d_img, mut d_txt) = (vec![0.0; img.len()], vec![0.0; txt.len()]);
    let (mut loss, mut d_log_temp, mut d_bias) = (0.0, 0.0, 0.0);
    let inputs = cpu::Inputs {
        img: HostMatrix::new("img", &img, BATCH, DIM).expect("images"),
        txt: HostMatrix::new("txt", &txt, BATCH, DIM).expect("texts"),
        log_temp: 10f32.ln(),
        bias: -10.0,
    };
    let mut outputs = cpu::Outputs {
        loss: &mut loss,
        d_img: HostMatrixMut::new("d_img", &mut d_img, BATCH, DIM).expect("image gradients"),
        d_txt: HostMatrixMut::new("d_txt", &mut d_txt, BATCH, DIM).expect("text gradients"),
        d_log_temp: &mut d_log_temp,
        d_bias: &mut d_bias,
    };
    let mut group = criterion.benchmark_group("cpu");
    group.sample_size(10);
    group.throughput(Throughput::Elements(problem.forward_flop() as u64));
    group.bench_function(BenchmarkId::new("forward f32", BATCH), |bencher| {
        bencher.iter(|| plan.forward(&inputs, outputs.loss).expect("a loss"));
    });
    group.throughput(Throughput::Elements(problem.step_flop() as u64));
    group.bench_function(BenchmarkId::new("step f32", BATCH), |bencher| {
        bencher.iter(|| plan.forward_backward(&inputs, 1.0, &mut outputs).expect("a step"));
    });
}

criterion_group!(benches, on_gpu, on_cpu);
criterion_main!(benches);
