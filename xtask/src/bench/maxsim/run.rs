//! Races the contenders on each problem and turns the measurements into rows.

use super::contenders::{Buffers, Ours};
use super::problems::{BenchProblem, Op, PEERS, problems};
use crate::bench::contender::{Contender, Measurement};
use crate::bench::setting::{Setting, Subject, missing_line};
use crate::results::BenchRow;
use crate::siglip::random_rows;
use anyhow::Result;
use half::bf16;
use maxsim_kernel::{BackwardRoute, Options, Plan, Route};
use std::cell::RefCell;

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
    // Scores alone are the same kernel with either backward.
    let peers = PEERS.into_iter().filter(|name| op == Op::ScoreStep || !name.ends_with("lowmem"));
    setting.join_peers(&peers.collect::<Vec<_>>(), &problem.for_peers(), &mut contenders, &mut missing);
    let subject = Subject {
        family: "maxsim",
        op: op.name().to_owned(),
        shape: problem.shape(),
        dtype: "bf16".to_owned(),
        flop: problem.flop(),
        bytes: problem.bytes(),
    };
    setting.measure(&subject, &title, contenders, |m| line(&title, problem, m), say)
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
