//! Races the contenders on each problem and turns the measurements into rows.

use super::contenders::{BareProducts, Ours};
use super::problems::{BIAS, BenchProblem, LOG_TEMP, Op, problems};
use crate::bench::contender::{Contender, Measurement};
use crate::bench::setting::{Setting, Subject, missing_line};
use crate::results::BenchRow;
use crate::siglip::{DeviceCall, Number, options, random_rows};
use anyhow::Result;
use half::{bf16, f16};
use kernel_core::DType;
use reference_cpu::siglip::SiglipParams;
use siglip_kernel::{Chunk, Options, Plan, Route};
use std::cell::RefCell;

/// Runs every problem; `done` gets the rows of each as soon as it is measured, `say` a line for the log.
pub(crate) fn run(
    setting: &Setting<'_>,
    say: &mut dyn FnMut(String),
    done: &mut dyn FnMut(Vec<BenchRow>) -> Result<()>,
) -> Result<()> {
    for problem in problems(setting.quick, setting.only) {
        let rows = match problem.dtype {
            DType::F32 => run_problem::<f32>(setting, &problem, say)?,
            DType::F16 => run_problem::<f16>(setting, &problem, say)?,
            DType::Bf16 => run_problem::<bf16>(setting, &problem, say)?,
        };
        done(rows)?;
    }
    Ok(())
}

fn run_problem<T: Number>(
    setting: &Setting<'_>,
    problem: &BenchProblem,
    say: &mut dyn FnMut(String),
) -> Result<Vec<BenchRow>> {
    let Setting { gpu, stopwatch, .. } = *setting;
    let BenchProblem { op, b, d, dtype } = *problem;
    let title = format!("siglip {} B={b} D={d} {dtype}", op.name());
    let mut missing = |who: &str, why: &str| say(missing_line(&title, who, why));

    let (img, txt) = (random_rows::<T>(b, d, 1), random_rows::<T>(b, d, 2));
    let call = RefCell::new(DeviceCall::new(gpu, &img, &txt, d, &SiglipParams::square(b, LOG_TEMP, BIAS))?);
    let plan_of = |route| Plan::new(gpu, call.borrow().problem, options(route, None));
    let automatic = plan_of(Route::Auto)?.route();
    let mut contenders: Vec<Box<dyn Contender + '_>> = Vec::new();
    for route in Route::ALL.into_iter().filter(|route| *route != Route::Auto) {
        match plan_of(route) {
            Ok(plan) => {
                let auto = route == automatic;
                let block = plan.block();
                let name = route.to_string();
                contenders.push(Box::new(Ours { plan, op, auto, route: name.clone(), call: &call, stopwatch }));
                if auto {
                    match BareProducts::new(gpu, problem, block, name, (&img, &txt), stopwatch) {
                        Ok(products) => contenders.push(Box::new(products)),
                        Err(error) => missing("cublas", &format!("{error:#}")),
                    }
                }
            }
            Err(error) => missing(&format!("ours {route}"), &error.to_string()),
        }
    }
    if op == Op::Step && dtype != DType::F32 {
        let options = Options { chunk: Chunk::Workspace(problem.half_of_peer()), ..Options::default() };
        match Plan::new(gpu, call.borrow().problem, options) {
            Ok(plan) => {
                let route = format!("{} in half the peer's memory", plan.route());
                contenders.push(Box::new(Ours { plan, op, auto: false, route, call: &call, stopwatch }));
            }
            Err(error) => missing("ours in half the peer's memory", &error.to_string()),
        }
    }
    if setting.peers.is_some() {
        let (names, left_out) = problem.peers(gpu.info().total_bytes);
        for (name, why) in left_out {
            missing(name, &why);
        }
        setting.join_peers(&names, &problem.for_peers(), &mut contenders, &mut missing);
    }
    let subject = Subject {
        family: "siglip",
        op: op.name().to_owned(),
        shape: problem.shape(),
        dtype: dtype.to_string(),
        flop: problem.flop(),
        bytes: problem.bytes(),
    };
    setting.measure(&subject, &title, contenders, |m| line(&title, problem, m), say)
}

fn line(title: &str, problem: &BenchProblem, m: &Measurement) -> String {
    let ms = m.samples.median();
    let memory = m.peak_bytes.map(|bytes| format!(", {:.0} MB", bytes as f64 / 1e6)).unwrap_or_default();
    let host = m.host_us.map(|us| format!(", host {us:.1} us")).unwrap_or_default();
    format!(
        "{title}: {:<28} {:<9} {ms:9.3} ms [{:.3}..{:.3}], {:4.0} TF/s{memory}{host}",
        m.implementation,
        m.route,
        m.samples.min(),
        m.samples.max(),
        problem.flop() as f64 / ms / 1e9
    )
}
