//! Races the contenders on each problem and turns the measurements into rows.

use super::contenders::{Buffers, InTurn, Ours, Search, Searched};
use super::problems::{BenchProblem, Op, PEERS, problems, search_problem};
use crate::bench::contender::{Contender, Measurement};
use crate::bench::setting::{Setting, Subject, missing_line};
use crate::results::BenchRow;
use crate::siglip::random_rows;
use anyhow::Result;
use half::bf16;
use maxsim_kernel::{BackwardRoute, Options, Plan, Route, TopK};
use std::cell::RefCell;

/// Runs every problem; `done` gets the rows of each as soon as it is measured, `say` a line for the log.
pub(crate) fn run(
    setting: &Setting<'_>,
    say: &mut dyn FnMut(String),
    done: &mut dyn FnMut(Vec<BenchRow>) -> Result<()>,
) -> Result<()> {
    if let Some(problem) = search_problem(setting.quick, setting.only) {
        match run_search(setting, &problem, say) {
            Ok(rows) => done(rows)?,
            Err(error) => say(missing_line("maxsim search", "ours", &format!("{error:#}"))),
        }
    }
    for problem in problems(setting.quick, setting.only) {
        done(run_problem(setting, &problem, say)?)?;
    }
    Ok(())
}

/// Documents that a search keeps of each query.
const KEPT: usize = 100;

/// How well the copies of a corpus in host memory and its scores overlap.
fn run_search(setting: &Setting<'_>, problem: &BenchProblem, say: &mut dyn FnMut(String)) -> Result<Vec<BenchRow>> {
    let gpu = setting.gpu;
    let definition = problem.problem();
    let (rows, dim) = (definition.docs.rows(), problem.dim);
    // SAFETY: written in full below, before it is read.
    let mut host = unsafe { gpu.context().alloc_pinned::<bf16>(rows * dim) }?;
    host.as_mut_slice()?.copy_from_slice(&tokens(rows, dim, 2));
    let device = RefCell::new(gpu.upload(host.as_slice()?)?);
    let queries = gpu.upload(&tokens(definition.queries.rows(), dim, 1))?;
    // Each its own, as each is charged with what it holds.
    let top_k = || TopK::new(gpu, &definition, KEPT, Options::default());
    let (streaming, resident) = (RefCell::new(top_k()?), RefCell::new(top_k()?));
    let search = |searched| {
        let top_k = if searched == Searched::Host { &streaming } else { &resident };
        let query_shape = [definition.queries.rows(), dim];
        let search = Search { gpu, top_k, queries: &queries, query_shape, host: &host, device: &device, searched };
        Box::new(search) as Box<dyn Contender + '_>
    };
    let contenders = [Searched::Host, Searched::Copied, Searched::Device].map(search).into_iter().collect();
    let title = format!("maxsim search {}", axes(problem));
    setting.measure(&subject("search", problem), &title, contenders, |m| line(&title, problem, m), say)
}

fn subject(op: &str, problem: &BenchProblem) -> Subject {
    Subject {
        family: "maxsim",
        op: op.to_owned(),
        shape: problem.shape(),
        dtype: "bf16".to_owned(),
        flop: problem.flop(),
        bytes: problem.bytes(),
    }
}

fn axes(problem: &BenchProblem) -> String {
    let axes: Vec<String> = problem.shape().iter().map(|(axis, size)| format!("{axis}={size}")).collect();
    axes.join(" ")
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
    let title = format!("maxsim {} {}", op.name(), axes(problem));
    let mut missing = |who: &str, why: &str| say(missing_line(&title, who, why));

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
    if op == Op::Score && problem.queries == 1 && automatic.route() == Route::Hopper {
        match InTurn::copies(gpu, &buffers.borrow().docs) {
            Ok(copies) => contenders.push(Box::new(InTurn { plan: automatic, buffers: &buffers, copies, stopwatch })),
            Err(error) => missing("ours, inputs in turn", &format!("{error:#}")),
        }
    }
    // Scores alone are the same kernel with either backward.
    let peers =
        PEERS.into_iter().filter(|name| problem.has_peers() && (op == Op::ScoreStep || !name.ends_with("lowmem")));
    setting.join_peers(&peers.collect::<Vec<_>>(), &problem.for_peers(), &mut contenders, &mut missing);
    setting.measure(&subject(op.name(), problem), &title, contenders, |m| line(&title, problem, m), say)
}

fn routes(problem: &BenchProblem) -> Vec<Options> {
    let options = |route, backward| Options { route, backward };
    match problem.op {
        Op::Score if problem.flop() > PORTABLE_FLOP => vec![options(Route::Hopper, BackwardRoute::None)],
        Op::Score => [Route::Hopper, Route::Portable].map(|route| options(route, BackwardRoute::None)).to_vec(),
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
