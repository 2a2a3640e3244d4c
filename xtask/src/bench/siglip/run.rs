//! Races the contenders on each problem and turns the measurements into rows.

use super::contenders::{BareProducts, Ours};
use super::problems::{BIAS, BenchProblem, LOG_TEMP, problems};
use crate::bench::contender::{Contender, Effort, Measurement, race};
use crate::bench::peer::{Peer, PeerProcess};
use crate::bench::timing::Stopwatch;
use crate::results::BenchRow;
use crate::siglip::{DeviceCall, Number, options, random_rows};
use crate::{card, source_hash};
use anyhow::Result;
use half::{bf16, f16};
use kernel_core::{DType, Gpu};
use reference_cpu::siglip::SiglipParams;
use siglip_kernel::{Plan, Route};
use std::cell::RefCell;
use std::rc::Rc;

/// What the family's bench is given.
pub(crate) struct Setting<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) stopwatch: &'a RefCell<Stopwatch>,
    pub(crate) peers: Option<Rc<RefCell<PeerProcess>>>,
    pub(crate) quick: bool,
    /// Sizes B to keep; empty keeps all.
    pub(crate) only: &'a [usize],
}

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
    let mut missing = |who: &str, why: &str| say(format!("{title}: MISSING {who}: {why}"));

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
    if let Some(process) = &setting.peers {
        let (names, left_out) = problem.peers(gpu.info().total_bytes);
        for (name, why) in left_out {
            missing(name, &why);
        }
        for name in names {
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

fn row(problem: &BenchProblem, m: Measurement, date: &str) -> BenchRow {
    BenchRow {
        family: "siglip".to_owned(),
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
        source_hash: source_hash::of_family("siglip").unwrap_or_default().to_owned(),
    }
}
