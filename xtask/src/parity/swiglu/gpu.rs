//! Every GPU route on random problems: against naive f64, against reference-cpu, and twice for the same bits.

use super::case::{Case, cases};
use super::truth::{OPS, Truth};
use crate::parity::runner::{Group, Line, Measured};
use crate::siglip::Number;
use crate::swiglu::{DeviceCall, Step, bits, on_host};
use half::{bf16, f16};
use indicatif::ProgressBar;
use kernel_core::{DType, Gpu};
use swiglu_kernel::{Mode, Options, Plan, Problem, Route};

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
            match Plan::new(gpu, Problem::new(16, 64, 64, dtype), Options { route, ..Options::default() }) {
                Ok(_) => planned.push((dtype, route)),
                Err(error) => bar.suspend(|| println!("swiglu {dtype} {route}: skipped: {error}")),
            }
        }
    }
    bar.inc_length(planned.len() as u64 * u64::from(cases_a_group));
    planned
        .into_iter()
        .map(|(dtype, route)| {
            bar.set_message(format!("swiglu {dtype} {route}"));
            let group = Group {
                family: "swiglu",
                dtype: dtype.to_string(),
                route: route.to_string(),
                ops: OPS,
                cases: cases_a_group,
                seed,
                on_gpu: true,
                bar,
            };
            match dtype {
                DType::F32 => group.run(&cases(route), |case| check::<f32>(gpu, route, case)),
                DType::F16 => group.run(&cases(route), |case| check::<f16>(gpu, route, case)),
                DType::Bf16 => group.run(&cases(route), |case| check::<bf16>(gpu, route, case)),
            }
        })
        .collect()
}

fn check<T: Number>(gpu: &Gpu, route: Route, case: &Case) -> Result<Vec<Measured>, String> {
    let tensors = case.tensors::<T>();
    let truth = Truth::new(case, &tensors).map_err(|error| error.to_string())?;
    let mode = if case.saved { Mode::InPlace } else { Mode::Recompute };
    let mut call = DeviceCall::new(gpu, &tensors, mode).map_err(|error| error.to_string())?;
    let mut plan = call.plan(route).map_err(|error| error.to_string())?;
    let mut run = || -> swiglu_kernel::Result<(Step<T>, Step<T>)> {
        call.poison()?;
        call.forward(&mut plan)?;
        let alone = Step { z: call.results()?.z, ..Step::default() };
        call.poison()?;
        call.step(&mut plan, mode)?;
        Ok((alone, call.results()?))
    };
    let (alone, first) = run().map_err(|error| error.to_string())?;
    let (_, second) = run().map_err(|error| error.to_string())?;
    let differing = bits(&first).zip(bits(&second)).filter(|(a, b)| a != b).count();
    if differing > 0 {
        return Err(format!("two runs of the step differ in {differing} values"));
    }
    let again = Step { z: first.z.clone(), ..Step::default() };
    if bits(&alone).zip(bits(&again)).any(|(a, b)| a != b) {
        return Err("the forward alone and the step's forward give different bits".to_owned());
    }
    let on_cpu = on_host(&tensors, case.saved).map_err(|error| error.to_string())?;
    let mut measured = truth.measure_device(case, &first);
    measured.extend(truth.measure_between(case, &first, &on_cpu));
    Ok(measured)
}
