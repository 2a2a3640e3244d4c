//! The groups: reference-cpu for each dtype, and every GPU route, each run twice.

use super::case::cases;
use super::truth::check;
use crate::maxsim::{DeviceCall, Found, Tensors};
use crate::parity::runner::{Group, Line};
use crate::siglip::Number;
use half::{bf16, f16};
use indicatif::ProgressBar;
use kernel_core::{DType, Gpu};
use maxsim_kernel::{BackwardRoute, Options, Plan, Problem, Route, Spans};

const OPS: &[&str] = &["score", "score_step"];
pub(crate) const GROUPS: u64 = 3;

pub(crate) fn cpu_groups(cases_a_group: u32, seed: u64, bar: &ProgressBar) -> Vec<(Vec<Line>, Option<String>)> {
    let group = |dtype: DType| Group {
        family: "maxsim",
        dtype: dtype.to_string(),
        route: "reference-cpu".to_owned(),
        ops: OPS,
        cases: cases_a_group,
        seed,
        on_gpu: false,
        bar,
    };
    vec![
        group(DType::F32).run(&cases(), |case| check::<f32>(case, None)),
        group(DType::F16).run(&cases(), |case| check::<f16>(case, None)),
        group(DType::Bf16).run(&cases(), |case| check::<bf16>(case, None)),
    ]
}

/// A group for each dtype, scoring route and backward route that this device has; what it has not is printed with the reason.
pub(crate) fn gpu_groups(
    gpu: &Gpu,
    cases_a_group: u32,
    seed: u64,
    bar: &ProgressBar,
) -> Vec<(Vec<Line>, Option<String>)> {
    let mut planned = Vec::new();
    for dtype in DType::ALL {
        for route in [Route::Hopper, Route::Portable] {
            let problem = Problem::pairs(Spans::padded(1, 8), Spans::padded(1, 8), 64, dtype);
            match Plan::new(gpu, problem, Options { route, ..Options::default() }) {
                Ok(_) => planned.extend([BackwardRoute::LowMemory, BackwardRoute::Unified].map(|b| (dtype, route, b))),
                Err(error) => bar.suspend(|| println!("maxsim {dtype} {route}: skipped: {error}")),
            }
        }
    }
    bar.inc_length(planned.len() as u64 * u64::from(cases_a_group));
    let run = |(dtype, route, backward): (DType, Route, BackwardRoute)| {
        bar.set_message(format!("maxsim {dtype} {route}, {backward}"));
        let group = Group {
            family: "maxsim",
            dtype: dtype.to_string(),
            route: format!("{route}, {backward}"),
            ops: OPS,
            cases: cases_a_group,
            seed,
            on_gpu: true,
            bar,
        };
        let on = Some((gpu, Options { route, backward }));
        let (mut lines, failure) = match dtype {
            DType::F32 => group.run(&cases(), |case| check::<f32>(case, on)),
            DType::F16 => group.run(&cases(), |case| check::<f16>(case, on)),
            DType::Bf16 => group.run(&cases(), |case| check::<bf16>(case, on)),
        };
        // Atomic additions come in any order: scores are compared bit by bit, these gradients are not.
        for line in lines.iter_mut().filter(|line| line.op == "score_step") {
            line.reproducible &= backward != BackwardRoute::Unified;
        }
        (lines, failure)
    };
    planned.into_iter().map(run).collect()
}

/// The same problem twice, and once without choices. The inner error tells of bits that differ.
pub(super) fn run_on_gpu<T: Number>(
    gpu: &Gpu,
    tensors: &Tensors<T>,
    options: Options,
) -> maxsim_kernel::Result<Result<Found<T>, String>> {
    let mut call = DeviceCall::new(gpu, tensors, options)?;
    let ((alone, found), (_, again)) = (call.run()?, call.run()?);
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let narrow_bits = |values: &[T]| values.iter().map(|x| x.wide().to_bits()).collect::<Vec<_>>();
    let checks = [
        ("scores of a second run", bits(&found.scores) == bits(&again.scores)),
        ("scores without choices", bits(&found.scores) == bits(&alone)),
        ("choices of a second run", found.argmax == again.argmax),
        (
            "gradients of a second run",
            options.backward == BackwardRoute::Unified
                || (narrow_bits(&found.d_queries) == narrow_bits(&again.d_queries)
                    && narrow_bits(&found.d_docs) == narrow_bits(&again.d_docs)),
        ),
    ];
    Ok(match checks.iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(format!("{what} have other bits")),
        None => Ok(found),
    })
}
