//! What the card reaches on the plainest work, to hold the kernels against.

use super::timing::{Samples, Stopwatch};
use anyhow::{Context, Result};
use cudarc::driver::DevicePtr;
use kernel_core::half::bf16;
use kernel_core::{DType, GemmPlan, GemmSpec, Gpu, LaunchConfig, MatrixSpec, Program};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::collections::BTreeMap;

static READ: Program =
    Program { name: "xtask/read_bandwidth", source: include_str!("../../cuda/read_bandwidth.cu"), headers: &[] };

const GEMM: usize = 8192;

pub(crate) fn measure(gpu: &Gpu, stopwatch: &mut Stopwatch, reps: usize) -> Result<BTreeMap<String, f64>> {
    let mut ceilings = BTreeMap::new();
    // 2 GiB, or what an eighth of a small card holds.
    let bytes = (2usize << 30).min(gpu.info().total_bytes / 8) / 4096 * 4096;
    ceilings.insert("copy_gbps".to_owned(), copy(gpu, stopwatch, bytes, reps).context("copying")?);
    ceilings.insert("read_gbps".to_owned(), read(gpu, stopwatch, bytes, reps).context("reading")?);
    ceilings.insert("gemm_bf16_tflops".to_owned(), gemm(gpu, stopwatch, reps).context("the cuBLASLt product")?);
    Ok(ceilings)
}

/// GB/s of a device-to-device copy, bytes read and bytes written counted.
fn copy(gpu: &Gpu, stopwatch: &mut Stopwatch, bytes: usize, reps: usize) -> Result<f64> {
    let from = gpu.alloc::<u8>(bytes)?;
    let mut to = gpu.alloc::<u8>(bytes)?;
    let ms = median(stopwatch.round(reps, 2, || Ok(gpu.stream().memcpy_dtod(&from, &mut to)?))?);
    Ok(2.0 * bytes as f64 / ms / 1e6)
}

/// GB/s of a kernel that only reads.
fn read(gpu: &Gpu, stopwatch: &mut Stopwatch, bytes: usize, reps: usize) -> Result<f64> {
    let kernel = gpu.kernel(&READ, "read_all", &[])?;
    let data = gpu.alloc::<u8>(bytes)?;
    let sink = gpu.alloc::<u32>(1)?;
    let config = LaunchConfig::linear(gpu.info().sm_count * 8, 256);
    let ms = median(stopwatch.round(reps, 2, || {
        let stream = gpu.stream();
        let ((data, _data), (sink, _sink)) = (data.device_ptr(stream), sink.device_ptr(stream));
        // SAFETY: `data` holds bytes / 16 aligned vectors and `sink` one word, both alive until the round has been waited for.
        unsafe { kernel.launch(stream, &config, &[&data, &((bytes / 16) as u64), &sink]) }?;
        Ok(())
    })?);
    Ok(bytes as f64 / ms / 1e6)
}

/// TFLOP/s of a square bf16 product through cuBLASLt, on random numbers (zeros would draw less power and run faster).
fn gemm(gpu: &Gpu, stopwatch: &mut Stopwatch, reps: usize) -> Result<f64> {
    let matrix = MatrixSpec::new(DType::Bf16, GEMM);
    let spec = GemmSpec { m: GEMM, n: GEMM, k: GEMM, a: matrix, b: matrix, c: matrix };
    let plan = GemmPlan::new(gpu, spec, 64 << 20)?;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let host: Vec<bf16> = (0..GEMM * GEMM).map(|_| bf16::from_f32(rng.random::<f32>() - 0.5)).collect();
    let (a, b, c) = (gpu.upload(&host)?, gpu.upload(&host)?, gpu.alloc::<bf16>(GEMM * GEMM)?);
    let workspace = gpu.alloc::<u8>(plan.workspace_bytes().max(16))?;
    let ms = median(stopwatch.round(reps, 2, || {
        let stream = gpu.stream();
        let ((a, _a), (b, _b)) = (a.device_ptr(stream), b.device_ptr(stream));
        let ((c, _c), (workspace, _workspace)) = (c.device_ptr(stream), workspace.device_ptr(stream));
        // SAFETY: the matrices and the workspace have the sizes of the plan and live until the round has been waited for.
        unsafe { plan.run(stream, 1.0, a, b, 0.0, c, workspace) }?;
        Ok(())
    })?);
    Ok(spec.flop() / ms / 1e9)
}

fn median(ms: Vec<f64>) -> f64 {
    let mut samples = Samples::default();
    samples.extend(ms);
    samples.median()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_core::compile::compile_with_report_in;
    use kernel_core::{Arch, CubinCache, Error};

    #[test]
    fn the_reading_kernel_compiles() {
        for arch in Arch::ALL {
            match compile_with_report_in(&CubinCache::disabled(), &READ, &arch, &[]) {
                Ok(cubin) => {
                    let usage = cubin.report();
                    let usage = usage.entry("read_all").unwrap_or_else(|| panic!("{arch}: {}", cubin.log));
                    assert!(!usage.spills(), "{arch}: {}", cubin.log);
                }
                Err(Error::MissingLibrary { .. }) if std::env::var("KERNELS_REQUIRE_NVRTC").as_deref() != Ok("1") => {
                    eprintln!(
                        "skipped: NVRTC is not here, so nothing was compiled (KERNELS_REQUIRE_NVRTC=1 makes this fail)"
                    );
                    return;
                }
                Err(error) => panic!("{arch}: {error}"),
            }
        }
    }
}
