//! GPU times of scores, and of scores with gradients, L2 flushed before each: `cargo bench -p maxsim-kernel`. The recorded figures, beside
//! those of peers, are `cargo xtask bench`'s.

use std::time::Duration;

use cudarc::driver::sys::CUevent_flags;
use kernel_core::cudarc;
use kernel_core::half::bf16;
use maxsim_kernel::{
    Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, Options, Plan, Problem, Result, Spans, VectorView,
    VectorViewMut, kernel_core,
};

const FLUSH_BYTES: usize = 256 << 20;
const REPEATS: usize = 20;

/// Median milliseconds of `call`.
fn time(gpu: &Gpu, flush: &mut cudarc::driver::CudaSlice<u8>, mut call: impl FnMut() -> Result<()>) -> Result<f32> {
    let stream = gpu.stream().clone();
    let mut times = Vec::new();
    for round in 0..REPEATS + 3 {
        stream.memset_zeros(flush).map_err(kernel_core::Error::from)?;
        let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(kernel_core::Error::from);
        let start = event()?;
        call()?;
        let end = event()?;
        gpu.synchronize()?;
        if round >= 3 {
            times.push(start.elapsed_ms(&end).map_err(kernel_core::Error::from)?);
        }
    }
    times.sort_by(f32::total_cmp);
    Ok(times[times.len() / 2])
}

/// Values that look random, of a size as normalised tokens have.
fn values(count: usize, seed: u32) -> Vec<bf16> {
    let mut state = seed;
    let block: Vec<bf16> = (0..count.min(1 << 20))
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bf16::from_f32((state >> 8) as f32 / (1 << 24) as f32 * 0.3 - 0.15)
        })
        .collect();
    block.iter().copied().cycle().take(count).collect()
}

fn measure(
    gpu: &Gpu,
    flush: &mut cudarc::driver::CudaSlice<u8>,
    name: &str,
    problem: Problem,
    step: bool,
) -> Result<()> {
    let dim = problem.dim;
    let (query_rows, doc_rows) = (problem.queries.rows(), problem.docs.rows());
    let (queries, docs) = (gpu.upload(&values(query_rows * dim, 1))?, gpu.upload(&values(doc_rows * dim, 2))?);
    let mut scores = gpu.alloc::<f32>(problem.scores())?;
    let mut plan = Plan::new(gpu, problem.clone(), Options::default())?;
    let inputs = Inputs {
        queries: MatrixView::new("queries", &queries, [query_rows, dim])?,
        docs: MatrixView::new("docs", &docs, [doc_rows, dim])?,
        query_mask: None,
        doc_mask: None,
    };
    let mut scores = VectorViewMut::new("scores", &mut scores, [problem.scores()])?;
    let forward = time(gpu, flush, || plan.forward(&inputs, &mut scores, None))?;
    let tera = problem.forward_flop() / f64::from(forward) / 1e9;
    let gigabytes = ((query_rows + doc_rows) * dim * 2) as f64 / f64::from(forward) / 1e6;
    let mut line = format!("{name:34} forward {forward:8.4} ms {tera:6.0} TFLOP/s {gigabytes:6.0} GB/s");
    if step {
        let mut choices = gpu.alloc::<i32>(problem.argmaxes())?;
        let d_scores = gpu.upload(&vec![1.0f32; problem.scores()])?;
        let d_scores = VectorView::new("d_scores", &d_scores, [problem.scores()])?;
        let (mut d_queries, mut d_docs) = (gpu.alloc::<bf16>(query_rows * dim)?, gpu.alloc::<bf16>(doc_rows * dim)?);
        let with_argmax = time(gpu, flush, || {
            let mut choices = VectorViewMut::new("argmax", &mut choices, [problem.argmaxes()])?;
            plan.forward(&inputs, &mut scores, Some(&mut choices))
        })?;
        line += &format!("  argmax {with_argmax:8.4}");
        let mut sides = [0.0; 3];
        for (index, side) in sides.iter_mut().enumerate() {
            *side = time(gpu, flush, || {
                let mut written = VectorViewMut::new("argmax", &mut choices, [problem.argmaxes()])?;
                if index == 2 {
                    plan.forward(&inputs, &mut scores, Some(&mut written))?;
                }
                let choices = written.as_view();
                let d_queries = MatrixViewMut::new("d_queries", &mut d_queries, [query_rows, dim])?;
                let d_docs = MatrixViewMut::new("d_docs", &mut d_docs, [doc_rows, dim])?;
                let mut gradients =
                    Gradients { d_queries: (index != 1).then_some(d_queries), d_docs: (index != 0).then_some(d_docs) };
                plan.backward(&inputs, &d_scores, &choices, &mut gradients)
            })?;
        }
        line += &format!("  d_queries {:8.4}  d_docs {:8.4}  step {:8.4}", sides[0], sides[1], sides[2]);
    }
    println!("{line}");
    Ok(())
}

fn main() -> Result<()> {
    let gpu = match Gpu::new(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("no GPU, nothing was measured: {error}");
            return Ok(());
        }
    };
    let started = std::time::Instant::now();
    let mut flush = gpu.alloc::<u8>(FLUSH_BYTES)?;
    let crosses = [
        (1, 1000, 32, 300, 128),
        (1, 1000, 32, 1024, 128),
        (1, 1000, 128, 1024, 128),
        (1, 10000, 32, 300, 128),
        (128, 128, 32, 300, 128),
        (256, 256, 32, 300, 128),
        (1, 500, 1024, 1024, 128),
        (64, 64, 1024, 1024, 128),
        (1, 1000, 32, 300, 512),
        (1, 1000, 32, 1024, 48),
        (1, 10000, 32, 300, 64),
        (64, 64, 32, 180, 128),
        (64, 64, 32, 1024, 128),
        (32, 32, 1024, 1024, 128),
    ];
    for (nq, nd, lq, ld, dim) in crosses {
        let problem = Problem::cross(Spans::padded(nq, lq), Spans::padded(nd, ld), dim, kernel_core::DType::Bf16);
        measure(&gpu, &mut flush, &format!("cross {nq},{nd},{lq},{ld},{dim}"), problem, nq > 1)?;
    }
    let half = Spans::of_lengths((0..256).map(|i| (i * 97) % 301));
    let problem = Problem::cross(Spans::padded(256, 32), half, 128, kernel_core::DType::Bf16);
    measure(&gpu, &mut flush, "packed, half of 256,256,32,300,128", problem, false)?;
    for (nq, k, lq, ld) in [(64, 32, 32, 300), (256, 16, 32, 1024)] {
        let (queries, docs) = (Spans::padded(nq, lq), Spans::padded(nq * k, ld));
        let problem = Problem::candidates(queries, docs, k, 128, kernel_core::DType::Bf16);
        measure(&gpu, &mut flush, &format!("candidates {nq}x{k},{lq},{ld},128"), problem, true)?;
    }
    assert!(started.elapsed() < Duration::from_secs(600), "the benchmark took {:?}", started.elapsed());
    Ok(())
}
