//! Races the contenders on each problem and turns the measurements into rows.

use super::contenders::{Buffers, Ours};
use super::problems::{BenchProblem, Op, PEERS, problems};
use crate::bench::contender::{Contender, Effort, Measurement, race};
use crate::bench::peer::{Peer, PeerProcess};
use crate::bench::timing::Stopwatch;
use crate::results::BenchRow;
use crate::siglip::random_rows;
use crate::{card, source_hash};
use anyhow::Result;
use half::bf16;
use kernel_core::Gpu;
use maxsim_kernel::{BackwardRoute, Options, Plan, Route};
use std::cell::RefCell;
use std::rc::Rc;

/// What the family's bench is given.
pub(crate) struct Setting<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) stopwatch: &'a RefCell<Stopwatch>,
    pub(crate) peers: Option<Rc<RefCell<PeerProcess>>>,
    pub(crate) quick: bool,
    /// Numbers of queries to keep; empty keeps all.
    pub(crate) only: &'a [usize],
}

/// Runs every problem; `done` gets the rows of each as soon as it is measured, `say` a line for the log.
pub(crate) fn run(
    setting: &Setting<'_>,
    say: &mut dyn FnMut(String),
    done: &mut dyn FnMut(Vec<BenchRow>) -> Result<()>,
) -> Result<()> {
    for problem in problems(setting.quick, setting.only) {
        done(run_problem(setting, &problem, say)?)?;
    }
    Ok(())
}

/// Tokens of unit length; many of them repeat with a period that is no multiple of anything.
fn tokens(rows: usize, dim: usize, seed: u64) -> Vec<bf16> {
    const PERIOD: usize = 65_521;
    let period = random_rows::<bf16>(rows.min(PERIOD), dim, seed);
    period.iter().copied().cycle().take(rows * dim).collect()
}

/// The portable scores take tens of milliseconds where this many operations are exceeded: they are measured below it.
const PORTABLE_FLOP: u64 = 50_000_000_000;

fn run_problem(setting: &Setting<'_>, problem: &BenchProblem, say: &mut dyn FnMut(String)) -> Result<Vec<BenchRow>> {
    let Setting { gpu, stopwatch, .. } = *setting;
    let op = problem.op;
    let shape: Vec<String> = problem.shape().iter().map(|(axis, size)| format!("{axis}={size}")).collect();
    let title = format!("maxsim {} {}", op.name(), shape.join(" "));
    let mut missing = |who: &str, why: &str| say(format!("{title}: MISSING {who}: {why}"));

    let definition = problem.problem();
    let queries = tokens(definition.queries.rows(), problem.dim, 1);
    let docs = tokens(definition.docs.rows(), problem.dim, 2);
    let buffers = RefCell::new(Buffers::new(gpu, &definition, op, &queries, &docs)?);
    let automatic = Plan::new(gpu, definition.clone(), Options::default())?;
    let mut contenders: Vec<Box<dyn Contender + '_>> = Vec::new();
    for options in routes(problem) {
        match Plan::new(gpu, definition.clone(), options) {
            Ok(plan) => {
                let (route, auto) = (Ours::name(&plan, op), Ours::is_auto(&plan, &automatic, op));
                contenders.push(Box::new(Ours { plan, op, auto, buffers: &buffers, stopwatch, route }));
            }
            Err(error) => missing(&format!("ours {}", options.route), &error.to_string()),
        }
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

fn routes(problem: &BenchProblem) -> Vec<Options> {
    let options = |route, backward| Options { route, backward };
    match problem.op {
        Op::Score if problem.flop() > PORTABLE_FLOP => vec![options(Route::Hopper, BackwardRoute::Auto)],
        Op::Score => [Route::Hopper, Route::Portable].map(|route| options(route, BackwardRoute::Auto)).to_vec(),
        Op::ScoreStep => [BackwardRoute::LowMemory, BackwardRoute::Unified].map(|b| options(Route::Auto, b)).to_vec(),
    }
}

fn line(title: &str, problem: &BenchProblem, m: &Measurement) -> String {
    let ms = m.samples.median();
    let memory = m.peak_bytes.map(|bytes| format!(", {:.1} MB", bytes as f64 / 1e6)).unwrap_or_default();
    let host = m.host_us.map(|us| format!(", host {us:.1} us")).unwrap_or_default();
    format!(
        "{title}: {:<38} {:<18} {ms:9.4} ms [{:.4}..{:.4}], {:4.0} TF/s, {:5.0} GB/s{memory}{host}",
        m.implementation,
        m.route,
        m.samples.min(),
        m.samples.max(),
        problem.flop() as f64 / ms / 1e9,
        problem.bytes() as f64 / ms / 1e6,
    )
}

fn row(problem: &BenchProblem, m: Measurement, date: &str) -> BenchRow {
    BenchRow {
        family: "maxsim".to_owned(),
        op: problem.op.name().to_owned(),
        shape: problem.shape(),
        dtype: "bf16".to_owned(),
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
        source_hash: source_hash::of_family("maxsim").unwrap_or_default().to_owned(),
    }
}
