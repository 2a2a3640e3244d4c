//! Races the contenders on each problem and turns the measurements into rows.

use super::contenders::{BareProducts, Ours, Work};
use super::problems::{BenchProblem, Op, PEERS, problems};
use crate::bench::contender::{Contender, Measurement};
use crate::bench::setting::{Setting, Subject, missing_line};
use crate::results::BenchRow;
use crate::siglip::Number;
use crate::swiglu::{DeviceCall, Tensors, random};
use anyhow::Result;
use half::bf16;
use std::cell::RefCell;
use swiglu_kernel::{Mode, Options, Plan, Problem, Route};

/// Runs every problem; `done` gets the rows of each as soon as it is measured, `say` a line for the log.
pub(crate) fn run(
    setting: &Setting<'_>,
    say: &mut dyn FnMut(String),
    done: &mut dyn FnMut(Vec<BenchRow>) -> Result<()>,
) -> Result<()> {
    for problem in problems(setting.quick, setting.only) {
        done(run_problem::<bf16>(setting, &problem, say)?)?;
    }
    Ok(())
}

/// Random values; many of them repeat with a period that is no multiple of anything.
fn values<T: Number>(len: usize, scale: f32, seed: u64) -> Vec<T> {
    const PERIOD: usize = 4_194_301;
    let period = random::<T>(len.min(PERIOD), scale, seed);
    period.iter().copied().cycle().take(len).collect()
}

fn run_problem<T: Number>(
    setting: &Setting<'_>,
    problem: &BenchProblem,
    say: &mut dyn FnMut(String),
) -> Result<Vec<BenchRow>> {
    let Setting { gpu, stopwatch, .. } = *setting;
    let BenchProblem { op, m, k, n, dtype } = *problem;
    let title = format!("swiglu {} M={m} K={k} N={n} {dtype}", op.name());
    let mut missing = |who: &str, why: &str| say(missing_line(&title, who, why));

    let layer = Problem::new(m, k, n, dtype);
    let tensors = Tensors::<T> {
        problem: layer,
        x: values(m * k, 1.0, 1),
        weights: vec![values(2 * k * n, (k as f32).sqrt().recip(), 2)],
        bias: Vec::new(),
        dz: values(m * n, 1.0, 3),
    };
    let call = RefCell::new(DeviceCall::new(gpu, &tensors, Mode::InPlace)?);
    let plan_of = |route, mode| Plan::new(gpu, layer, Options { route, mode });
    let automatic = plan_of(Route::Auto, Mode::Inference)?.route();
    let mut contenders: Vec<Box<dyn Contender + '_>> = Vec::new();
    for (route, mode, work, name) in works(problem, automatic) {
        match plan_of(route, mode) {
            Ok(plan) => {
                let auto = route == automatic && matches!(work, Work::Forward | Work::Step);
                contenders.push(Box::new(Ours { plan, work, auto, route: name, call: &call, stopwatch }));
            }
            Err(error) => missing(&format!("ours {name}"), &error.to_string()),
        }
    }
    if problem.is_decode() {
        call.borrow_mut().add_weights(STREAK_WEIGHTS)?;
    }
    let both = values::<T>(2 * m * n, 1.0, 4);
    match BareProducts::new(gpu, problem, (&tensors.x, &tensors.weights[0], &both), stopwatch) {
        Ok(products) => contenders.push(Box::new(products)),
        Err(error) => missing("cublas", &format!("{error:#}")),
    }
    setting.join_peers(&PEERS, &problem.for_peers(), &mut contenders, &mut missing);
    let subject = Subject {
        family: "swiglu",
        op: op.name().to_owned(),
        shape: problem.shape(),
        dtype: dtype.to_string(),
        flop: problem.flop(),
        bytes: problem.bytes(),
    };
    setting.measure(&subject, &title, contenders, |m| line(&title, problem, m), say)
}

/// Sets of weights that a streak goes through: together far larger than any L2.
const STREAK_WEIGHTS: usize = 3;

/// What we run on a problem, with the name of its row.
fn works(problem: &BenchProblem, automatic: Route) -> Vec<(Route, Mode, Work, String)> {
    let routes: Vec<Route> = Route::ALL
        .into_iter()
        .filter(|route| match route {
            Route::Auto => false,
            Route::Decode | Route::PortableDecode => problem.is_decode(),
            Route::Fused | Route::Portable => true,
        })
        .collect();
    let mut works = Vec::new();
    match problem.op {
        Op::Forward => {
            works.extend(routes.iter().map(|&r| (r, Mode::Inference, Work::Forward, r.to_string())));
            let (work, name) =
                if problem.is_decode() { (Work::Streak, "streak") } else { (Work::SavingForward, "saving") };
            works.push((automatic, Mode::Inference, work, format!("{automatic}, {name}")));
        }
        Op::Step => {
            works.extend(routes.iter().map(|&r| (r, Mode::InPlace, Work::Step, r.to_string())));
            works.push((automatic, Mode::Recompute, Work::RecomputingStep, format!("{automatic}, recompute")));
        }
    }
    works
}

fn line(title: &str, problem: &BenchProblem, m: &Measurement) -> String {
    let ms = m.samples.median();
    let memory = m.peak_bytes.map(|bytes| format!(", {:.0} MB", bytes as f64 / 1e6)).unwrap_or_default();
    let host = m.host_us.map(|us| format!(", host {us:.1} us")).unwrap_or_default();
    let rate = if problem.is_decode() {
        format!("{:5.0} GB/s", problem.bytes() as f64 / ms / 1e6)
    } else {
        format!("{:4.0} TF/s", problem.flop() as f64 / ms / 1e9)
    };
    format!(
        "{title}: {:<28} {:<18} {ms:9.4} ms [{:.4}..{:.4}], {rate}{memory}{host}",
        m.implementation,
        m.route,
        m.samples.min(),
        m.samples.max(),
    )
}
