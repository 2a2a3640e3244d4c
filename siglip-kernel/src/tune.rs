//! The fastest row chunk for a problem on a device, measured once and remembered.

use kernel_core::cudarc::driver::CudaSlice;
use kernel_core::cudarc::driver::sys::CUevent_flags;
use kernel_core::half::{bf16, f16};
use kernel_core::{
    AutotuneCache, AutotuneMode, DType, DeviceInfo, Element, Gpu, MatrixView, MatrixViewMut, Program, Scalar, TuneKey,
    Variant, VectorViewMut, source_hash,
};

use crate::blocks::TILE;
use crate::design::{Design, plan_variants};
use crate::error::{Error, Result};
use crate::io::{Inputs, Outputs};
use crate::plan::Plan;
use crate::problem::{Chunk, Options, Problem, Route};
use crate::programs::variants;

/// Runs of a candidate that are timed, after one that is not.
const RUNS: usize = 3;
/// Steps before all measurements, after which a power-bound card has the clocks that it keeps.
const WARM_UP: usize = 5;
/// Row chunks that are tried beside the default, at most.
const MOST_CHUNKS: usize = 6;
/// Random elements that inputs repeat. No power of two, so that no two rows are alike.
const NOISE: usize = 1_048_573;

/// `options` with the row chunk that is fastest for `problem` on this device: measured by the first call, remembered on disk for all later ones and for later
/// processes. Make the [`Plan`] with what it returns.
///
/// The defaults were measured on an H200 and are candidates too; problems that need only one block, options whose chunk is given, and
/// [`Route::LowMemory`], which is not about time, come back as they are. The environment variable `KERNELS_AUTOTUNE` is followed: `off` never measures, `force`
/// measures again.
///
/// The kernels of all candidates are compiled side by side before the first is measured. Measuring takes 13 to 33 steps of the problem, or of a part of it when N·M·D is more than 65,536²·768 (20,000²·768 in f32 and before Hopper), and meanwhile the memory of one and of a plan.
/// Results are kept by device, driver, sources, dtype, route and shape, with rows and columns rounded to powers of two. It may not run in a graph capture.
///
/// # Errors
/// Those of [`Plan::new`], when no candidate can be measured, and `Unsupported` for another value of `KERNELS_AUTOTUNE`. A cache that can be neither read nor
/// written is none.
pub fn tune(gpu: &Gpu, problem: &Problem, options: Options) -> Result<Options> {
    tune_in(&AutotuneCache::default_location(), AutotuneMode::from_env()?, gpu, problem, options)
}

/// [`tune`] with a cache and a mode of the caller's choice.
///
/// # Errors
/// As [`tune`].
pub fn tune_in(
    cache: &AutotuneCache,
    mode: AutotuneMode,
    gpu: &Gpu,
    problem: &Problem,
    options: Options,
) -> Result<Options> {
    let candidates = Candidates::new(gpu.info(), problem, &options)?;
    let names: Vec<String> = candidates.chunks.iter().map(|chunk| format!("{chunk:?}")).collect();
    let key = candidates.key(gpu.info());
    let choice = match candidates.sample.dtype {
        DType::F32 => cache.tune(&key, &names, mode, measure::<f32>(gpu, &candidates)),
        DType::F16 => cache.tune(&key, &names, mode, measure::<f16>(gpu, &candidates)),
        DType::Bf16 => cache.tune(&key, &names, mode, measure::<bf16>(gpu, &candidates)),
    }?;
    Ok(Options { chunk: candidates.chunks[choice], ..options })
}

/// What is measured.
struct Candidates {
    problem: Problem,
    /// All of it, or a part that takes no longer than there is to gain.
    sample: Problem,
    route: Route,
    /// The default first; all of different blocks.
    chunks: Vec<Chunk>,
}

impl Candidates {
    fn new(info: &DeviceInfo, problem: &Problem, options: &Options) -> Result<Self> {
        let whole = Design::new(info, problem, options)?;
        // A tenth of a second at most of what the engines reach.
        let flop = if info.arch().has_wgmma() && problem.dtype != DType::F32 { 2.1e13 } else { 2e12 };
        let mut sample = *problem;
        while sample.step_flop() > flop && sample.rows.max(sample.cols) > 1 {
            let longer = if sample.rows > sample.cols { &mut sample.rows } else { &mut sample.cols };
            *longer = longer.div_ceil(2);
        }
        let mut candidates = Self { problem: *problem, sample, route: whole.route, chunks: vec![options.chunk] };
        if options.chunk != Chunk::Auto || whole.route == Route::LowMemory {
            return Ok(candidates);
        }
        // Row chunks whose gradients fill the multiprocessors in whole waves.
        let (width, sms) = (sample.dim.div_ceil(TILE), info.sm_count as usize);
        let by_rule = Design::new(info, &sample, options)?.images.blocks;
        if by_rule.rows >= sample.rows && by_rule.cols >= sample.cols {
            return Ok(candidates);
        }
        let whole_waves: Vec<usize> = (32..=sms.max(32)).filter(|tiles| (tiles * width).is_multiple_of(sms)).collect();
        let mut blocks = vec![by_rule];
        for tiles in whole_waves.iter().step_by(whole_waves.len().div_ceil(MOST_CHUNKS).max(1)) {
            let chunk = Chunk::Rows(tiles * TILE);
            let design = Design::new(info, &sample, &Options { chunk, ..*options })?;
            if !blocks.contains(&design.images.blocks) {
                blocks.push(design.images.blocks);
                candidates.chunks.push(chunk);
            }
        }
        Ok(candidates)
    }

    fn key(&self, info: &DeviceInfo) -> TuneKey {
        let Problem { rows, cols, dim, dtype, .. } = self.sample;
        let mut programs: Vec<&Program> = variants().iter().map(|variant| variant.program).collect();
        programs.sort_by_key(|program| program.name);
        programs.dedup();
        TuneKey {
            family: "siglip",
            gpu: info.name.clone(),
            sm_count: info.sm_count,
            driver: info.driver_version,
            source_hash: programs.iter().map(|program| source_hash(program)[..8].to_owned()).collect(),
            dtype,
            bucket: format!("{} n{} m{} d{dim}", self.route, rows.next_power_of_two(), cols.next_power_of_two()),
        }
    }

    /// The kernels of all candidates, and of the plan that is made with one of them.
    fn variants(&self, info: &DeviceInfo) -> Result<Vec<Variant>> {
        let of = |&chunk| {
            let options = Options { route: self.route, chunk };
            let [sample, whole] = [&self.sample, &self.problem].map(|problem| plan_variants(info, problem, &options));
            Ok([sample?, whole?].concat())
        };
        Ok(self.chunks.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
    }

    fn plan(&self, gpu: &Gpu, candidate: usize) -> Result<Plan> {
        Plan::new(gpu, self.sample, Options { route: self.route, chunk: self.chunks[candidate] })
    }
}

/// Gives a function that measures candidates, in milliseconds. Its memory is allocated when the first one is measured.
fn measure<T: Element>(gpu: &Gpu, candidates: &Candidates) -> impl FnMut(usize) -> kernel_core::Result<f32> {
    let mut rehearsal = None;
    move |candidate| {
        let mut timed = || -> Result<f32> {
            if rehearsal.is_none() {
                gpu.compile(&candidates.variants(gpu.info())?)?;
                let mut made = Rehearsal::<T>::new(gpu, &candidates.sample)?;
                let mut plan = candidates.plan(gpu, candidate)?;
                (0..WARM_UP).try_for_each(|_| made.step(gpu, &mut plan).map(|_| ()))?;
                rehearsal = Some(made);
            }
            let Some(rehearsal) = &mut rehearsal else { return Ok(f32::NAN) };
            let mut plan = candidates.plan(gpu, candidate)?;
            rehearsal.step(gpu, &mut plan)?;
            let mut times = (0..RUNS).map(|_| rehearsal.step(gpu, &mut plan)).collect::<Result<Vec<_>>>()?;
            times.sort_by(f32::total_cmp);
            Ok(times[RUNS / 2])
        };
        timed().map_err(|error| match error {
            Error::Gpu(error) => error,
            Error::Cpu(error) => kernel_core::Error::Unsupported { what: error.to_string() },
        })
    }
}

/// Inputs and outputs to measure with.
struct Rehearsal<T> {
    img: CudaSlice<T>,
    txt: CudaSlice<T>,
    d_img: CudaSlice<T>,
    d_txt: CudaSlice<T>,
    scalars: [CudaSlice<f32>; 3],
    problem: Problem,
}

impl<T: Element> Rehearsal<T> {
    fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        let Problem { rows, cols, dim, .. } = *problem;
        // Random numbers, not zeros: a card draws less power on zeros and runs faster. Rows of length 1, as in training.
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut noise = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            T::from_f32(((state >> 40) as f32 / 8_388_608.0 - 1.0) * (3.0 / dim as f32).sqrt())
        };
        let noise: Vec<T> = (0..NOISE).map(&mut noise).collect();
        let side = |rows: usize, shift: usize| -> Vec<T> {
            noise.iter().cycle().skip(shift).take(rows * dim).copied().collect()
        };
        Ok(Self {
            img: gpu.upload(&side(rows, 0))?,
            txt: gpu.upload(&side(cols, NOISE / 2))?,
            d_img: gpu.alloc(rows * dim)?,
            d_txt: gpu.alloc(cols * dim)?,
            scalars: [gpu.alloc(1)?, gpu.alloc(1)?, gpu.alloc(1)?],
            problem: *problem,
        })
    }

    /// Milliseconds of one step.
    fn step(&mut self, gpu: &Gpu, plan: &mut Plan) -> Result<f32> {
        let Problem { rows, cols, dim, .. } = self.problem;
        let [loss, d_log_temp, d_bias] = &mut self.scalars;
        let inputs = Inputs {
            img: MatrixView::new("img", &self.img, [rows, dim])?,
            txt: MatrixView::new("txt", &self.txt, [cols, dim])?,
            log_temp: Scalar::Host(std::f32::consts::LN_10),
            bias: Scalar::Host(-10.0),
        };
        let mut outputs = Outputs {
            loss: VectorViewMut::new("loss", loss, [1])?,
            d_img: MatrixViewMut::new("d_img", &mut self.d_img, [rows, dim])?,
            d_txt: MatrixViewMut::new("d_txt", &mut self.d_txt, [cols, dim])?,
            d_log_temp: VectorViewMut::new("d_log_temp", d_log_temp, [1])?,
            d_bias: VectorViewMut::new("d_bias", d_bias, [1])?,
        };
        let driver = |call| move |error| Error::from(kernel_core::Error::driver(call)(error));
        let event =
            || gpu.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver("cuEventRecord"));
        let start = event()?;
        plan.forward_backward(&inputs, &Scalar::Host(1.0), &mut outputs)?;
        start.elapsed_ms(&event()?).map_err(driver("cuEventElapsedTime"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::design::tests::h200;

    fn candidates(problem: &Problem, options: Options) -> Candidates {
        Candidates::new(&h200(), problem, &options).unwrap()
    }

    #[test]
    fn candidates_fill_waves_and_differ() {
        for (dim, rows) in [(768, [5632, 8448, 11264, 14080, 16896].as_slice()), (512, &[4224, 8448, 12672, 16896])] {
            let problem = Problem::square(65536, dim, DType::Bf16);
            let by_rule = Design::new(&h200(), &problem, &Options::default()).unwrap().images.blocks.rows;
            let others = rows.iter().filter(|rows| **rows != by_rule).map(|rows| Chunk::Rows(*rows));
            let expected: Vec<Chunk> = [Chunk::Auto].into_iter().chain(others).collect();
            assert_eq!(candidates(&problem, Options::default()).chunks, expected);
        }
    }

    #[test]
    fn candidates_are_few() {
        for dim in [1536, 2816, 8448] {
            let chunks = candidates(&Problem::square(65536, dim, DType::Bf16), Options::default()).chunks;
            assert!((3..=1 + MOST_CHUNKS).contains(&chunks.len()), "{dim}: {chunks:?}");
        }
    }

    #[test]
    fn what_leaves_no_choice_is_not_measured() {
        let large = Problem::square(65536, 768, DType::Bf16);
        for one_block in [2048, 8192] {
            assert_eq!(
                candidates(&Problem::square(one_block, 768, DType::Bf16), Options::default()).chunks,
                [Chunk::Auto]
            );
        }
        let given = Options { chunk: Chunk::Rows(4096), ..Options::default() };
        assert_eq!(candidates(&large, given).chunks, [Chunk::Rows(4096)]);
        let low_memory = Options { route: Route::LowMemory, ..Options::default() };
        assert_eq!(candidates(&large, low_memory).chunks, [Chunk::Auto]);
    }

    #[test]
    fn large_problems_are_measured_in_part() {
        let sample = candidates(&Problem::square(1 << 20, 768, DType::Bf16), Options::default()).sample;
        assert_eq!((sample.rows, sample.cols), (65536, 65536));
        let sample = candidates(&Problem::square(100_000, 64, DType::F32), Options::default()).sample;
        assert!(sample.step_flop() <= 2e12 && sample.rows >= 50_000);
    }

    #[test]
    fn keys_tell_routes_and_shapes_apart_and_near_ones_not() {
        let key = |batch, dim, dtype, route| {
            candidates(&Problem::square(batch, dim, dtype), Options { route, ..Options::default() }).key(&h200())
        };
        let base = key(65536, 768, DType::Bf16, Route::Auto);
        assert_eq!(base, key(60_000, 768, DType::Bf16, Route::Chunked));
        assert_eq!(base.bucket, "chunked n65536 m65536 d768");
        for other in [
            key(30_000, 768, DType::Bf16, Route::Auto),
            key(65536, 512, DType::Bf16, Route::Auto),
            key(65536, 768, DType::F16, Route::Auto),
            key(65536, 768, DType::Bf16, Route::Fp8),
        ] {
            assert_ne!(base, other);
        }
    }
}
