//! Every GPU route on random problems: against naive f64, against reference-cpu (but for the routes of FP8, which that has not), and twice for the same bits.

use super::case::{Case, ChunkCase, cases, widen};
use super::cpu::reference;
use super::truth::{Found, OPS, Tolerances, Truth};
use crate::parity::runner::{Group, Line, Measured};
use crate::siglip::{DeviceCall, Number, bits, options};
use half::{bf16, f16};
use indicatif::ProgressBar;
use kernel_core::{DType, Element, Gpu};
use siglip_kernel::{Chunk, Error, Options, Plan, Problem, Route, workspace_bytes};

/// A group for each dtype and route that this device has; what it has not is printed with the reason.
pub(crate) fn gpu_groups(
    gpu: &Gpu,
    cases_a_group: u32,
    seed: u64,
    bar: &ProgressBar,
) -> Vec<(Vec<Line>, Option<String>)> {
    let mut planned = Vec::new();
    for dtype in DType::ALL {
        for route in Route::ALL.into_iter().filter(|route| *route != Route::Auto) {
            match Plan::new(gpu, Problem::square(256, 64, dtype), options(route, None)) {
                Ok(_) => planned.push((dtype, route)),
                Err(error) => bar.suspend(|| println!("siglip {dtype} {route}: skipped: {error}")),
            }
        }
    }
    bar.inc_length(planned.len() as u64 * u64::from(cases_a_group));
    planned
        .into_iter()
        .map(|(dtype, route)| {
            bar.set_message(format!("siglip {dtype} {route}"));
            let group = Group {
                family: "siglip",
                dtype: dtype.to_string(),
                route: route.to_string(),
                ops: OPS,
                cases: cases_a_group,
                seed,
                on_gpu: true,
                bar,
            };
            match dtype {
                DType::F32 => group.run(&cases(), |case| check::<f32>(gpu, route, case)),
                DType::F16 => group.run(&cases(), |case| check::<f16>(gpu, route, case)),
                DType::Bf16 => group.run(&cases(), |case| check::<bf16>(gpu, route, case)),
            }
        })
        .collect()
}

fn check<T: Number>(gpu: &Gpu, route: Route, case: &Case) -> Result<Vec<Measured>, String> {
    let (img, txt) = case.inputs::<T>();
    let (wide_img, wide_txt, tolerances) = (widen(&img), widen(&txt), Tolerances::of(<T as Element>::DTYPE));
    let on_gpu = run_twice(gpu, route, case, &img, &txt).map_err(|error| error.to_string())??;
    if matches!(route, Route::Fp8 | Route::Int8) {
        return Ok(Truth::quantised(case, route, &wide_img, &wide_txt, tolerances)?.measure(&on_gpu));
    }
    let truth = Truth::new(case, &wide_img, &wide_txt, tolerances)?;
    let on_cpu = reference(case, &img, &txt).map_err(|error| error.to_string())?;
    let mut measured = truth.measure(&on_gpu);
    measured.extend(truth.measure_between(&on_gpu, &on_cpu));
    Ok(measured)
}

fn plan_of(gpu: &Gpu, problem: &Problem, route: Route, chunk: ChunkCase) -> siglip_kernel::Result<Plan> {
    let share = match chunk {
        ChunkCase::Auto => return Plan::new(gpu, *problem, options(route, None)),
        ChunkCase::Rows(rows) => return Plan::new(gpu, *problem, options(route, Some(rows))),
        ChunkCase::Workspace(share) => share,
    };
    let most = workspace_bytes(gpu, problem, &options(route, None))?;
    let mut bytes = (most as f32 * share) as usize + 1;
    // What no block fits is told before anything is compiled.
    loop {
        let options = Options { route, chunk: Chunk::Workspace(bytes) };
        match Plan::new(gpu, *problem, options) {
            Err(Error::Gpu(kernel_core::Error::Shape { what: "chunk", .. })) if bytes < most => {
                bytes = (bytes + bytes / 4 + 256).min(most);
            }
            plan => return plan,
        }
    }
}

/// The outer error is of the call; the inner one tells that two runs gave different bits.
fn run_twice<T: Number>(
    gpu: &Gpu,
    route: Route,
    case: &Case,
    img: &[T],
    txt: &[T],
) -> siglip_kernel::Result<Result<Found, String>> {
    let mut call = DeviceCall::new(gpu, img, txt, case.dim, &case.params)?;
    let mut plan = plan_of(gpu, &call.problem, route, case.chunk)?;
    let mut losses = [0.0f32; 2];
    let mut steps = Vec::new();
    for loss in &mut losses {
        call.poison()?;
        call.forward(&mut plan)?;
        *loss = call.loss()?;
        call.poison()?;
        call.step(&mut plan)?;
        steps.push(call.results()?);
    }
    if losses[0].to_bits() != losses[1].to_bits() {
        return Ok(Err(format!("two runs of forward gave different losses: {} and {}", losses[0], losses[1])));
    }
    let differing = bits(&steps[0]).zip(bits(&steps[1])).filter(|(a, b)| a != b).count();
    if differing > 0 {
        return Ok(Err(format!("two runs of the step differ in {differing} values")));
    }
    Ok(Ok(Found::new(losses[0], &steps[0])))
}
