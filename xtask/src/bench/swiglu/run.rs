//! Races the contenders on each problem and turns the measurements into rows.

use super::contenders::{BareProducts, Ours, Work};
use super::problems::{BenchProblem, Op, PEERS, problems};
use crate::bench::contender::{Contender, Effort, Measurement, race};
use crate::bench::peer::{Peer, PeerProcess};
use crate::bench::timing::Stopwatch;
use crate::results::BenchRow;
use crate::siglip::Number;
use crate::swiglu::{DeviceCall, Tensors, random};
use crate::{card, source_hash};
use anyhow::Result;
use half::bf16;
use kernel_core::Gpu;
use std::cell::RefCell;
use std::rc::Rc;
use swiglu_kernel::{Mode, Options, Plan, Problem, Route};

/// What the family's bench is given.
pub(crate) struct Setting<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) stopwatch: &'a RefCell<Stopwatch>,
    pub(crate) peers: Option<Rc<RefCell<PeerProcess>>>,
    pub(crate) quick: bool,
    /// Rows M to keep; empty keeps all.
    pub(crate) only: &'a [usize],
}

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
    let mut missing = |who: &str, why: &str| say(format!("{title}: MISSING {who}: {why}"));

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
    if let Some(process) = &setting.peers {
        for name in PEERS {
            match Peer::set_up(process, name, &problem.for_peers()) {
                Ok(peer) => contenders.push(Box::new(peer)),
                Err(error) => missing(name, &format!("{error:#}")),
            }
        }
    }
    let measured = race(contenders, Effort::new(setting.quick), &mut missing);
    if let Some(process) = &setting.peers {
        process.borrow_mut().drop_all()?;
    }
    for m in &measured {
        say(line(&title, problem, m));
    }
    let date = card::now();
    Ok(measured.into_iter().map(|m| row(problem, m, &date)).collect())
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

fn row(problem: &BenchProblem, m: Measurement, date: &str) -> BenchRow {
    BenchRow {
        family: "swiglu".to_owned(),
        op: problem.op.name().to_owned(),
        shape: problem.shape(),
        dtype: problem.dtype.to_string(),
        route: m.route,
        implementation: m.implementation,
        ms_median: m.samples.median(),
        ms_min: m.samples.min(),
        ms_max: m.samples.max(),
        flop: problem.flop(),
        bytes: problem.bytes(),
        peak_bytes: m.peak_bytes,
        host_us: m.host_us,
        auto: m.auto,
        reps: m.samples.len() as u64,
        date: date.to_owned(),
        source_hash: source_hash::of_family("swiglu").unwrap_or_default().to_owned(),
    }
}
