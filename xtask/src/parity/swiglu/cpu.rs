//! reference-cpu on random problems, through the crate's CPU calls, against naive f64.

use super::case::{Case, cases};
use super::truth::{OPS, Truth};
use crate::parity::runner::{Group, Line, Measured};
use crate::siglip::Number;
use crate::swiglu::on_host;
use half::{bf16, f16};
use indicatif::ProgressBar;
use kernel_core::DType;
use swiglu_kernel::Route;

pub(crate) const CPU_GROUPS: u64 = 3;

pub(crate) fn cpu_groups(cases_a_group: u32, seed: u64, bar: &ProgressBar) -> Vec<(Vec<Line>, Option<String>)> {
    let group = |dtype: DType| Group {
        family: "swiglu",
        dtype: dtype.to_string(),
        route: "reference-cpu".to_owned(),
        ops: OPS,
        cases: cases_a_group,
        seed,
        on_gpu: false,
        bar,
    };
    vec![
        group(DType::F32).run(&cases(Route::Auto), check::<f32>),
        group(DType::F16).run(&cases(Route::Auto), check::<f16>),
        group(DType::Bf16).run(&cases(Route::Auto), check::<bf16>),
    ]
}

fn check<T: Number>(case: &Case) -> Result<Vec<Measured>, String> {
    let tensors = case.tensors::<T>();
    let truth = Truth::new(case, &tensors).map_err(|error| error.to_string())?;
    let found = on_host(&tensors, case.saved).map_err(|error| error.to_string())?;
    Ok(truth.measure_host(case, &found))
}
