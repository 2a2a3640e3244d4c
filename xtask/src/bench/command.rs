//! The command: which card, which families, and where the results go.

use super::contender::Effort;
use super::peer::{PeerProcess, scripts};
use super::setting::Setting;
use super::timing::Stopwatch;
use super::{ceilings, first_call, maxsim, siglip, swiglu};
use crate::results::{BenchFile, BenchRow, ResultsFolder, merge_and_save};
use crate::{card, slug};
use anyhow::{Context, Result};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use kernel_core::Gpu;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Time the kernels, bare cuBLAS products and (with --peers) other implementations, in turn on one card
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The card that is meant; `auto` takes the one that is there
    #[arg(long, value_parser = ["h100", "h200", "a100", "auto"])]
    gpu: String,
    #[arg(long, value_enum, default_value_t = Family::All)]
    family: Family,
    /// Run the peers of bench/peers too, in turn with ours
    #[arg(long)]
    peers: bool,
    /// Fewer sizes and runs
    #[arg(long)]
    quick: bool,
    /// Milliseconds of runs that each contender is given in each of the six rounds [default: 200]
    #[arg(long, value_name = "MS", conflicts_with = "quick")]
    round_ms: Option<f64>,
    /// Seconds that a peer may compile and tune for a problem; one that takes longer is left out of it
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, requires = "peers")]
    peer_setup_s: f64,
    /// Leave out these peers, separated by commas, by the names that the bench prints ("torch eager")
    #[arg(long, value_delimiter = ',', value_name = "PEER", requires = "peers")]
    leave_out: Vec<String>,
    /// Keep only these sizes, separated by commas: B of siglip, M of swiglu, Nq of maxsim
    #[arg(long, value_delimiter = ',', value_name = "SIZE")]
    only: Vec<usize>,
    /// Leave out the ceilings and the cost of the first call
    #[arg(long)]
    no_ceilings: bool,
    /// The Python that has the peers of bench/peers/requirements.txt
    #[arg(long, default_value = "python3")]
    python: String,
    /// Ordinal of the device
    #[arg(long, default_value_t = 0)]
    device: usize,
    #[command(flatten)]
    results: ResultsFolder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    Siglip,
    Swiglu,
    Maxsim,
    All,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let gpu = card::open(args.device)?.context("`bench` needs a GPU")?;
    card::require(&gpu, &args.gpu)?;
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let outcome = measure(&args, &gpu, &bar);
    bar.finish_and_clear();
    outcome
}

fn measure(args: &Args, gpu: &Gpu, bar: &ProgressBar) -> Result<()> {
    let mut say = |line: String| bar.suspend(|| println!("{line}"));
    let stopwatch = RefCell::new(Stopwatch::new(gpu)?);
    if !args.no_ceilings {
        bar.set_message("ceilings");
        let mut figures = ceilings::measure(gpu, &mut stopwatch.borrow_mut(), if args.quick { 5 } else { 20 })?;
        bar.set_message("first call");
        match first_call::measure(args.device) {
            Ok(costs) => figures.extend(costs),
            Err(error) => say(format!("MISSING the cost of the first call: {error:#}")),
        }
        for (name, value) in &figures {
            say(format!("{name} {value:.4}"));
        }
        save(args, gpu, figures, Vec::new())?;
    }
    // Saved after each problem: a run that is cut short keeps what it has measured.
    let mut done = |rows| save(args, gpu, BTreeMap::new(), rows);
    let wants = |family| args.family == Family::All || args.family == family;
    let (quick, only) = (args.quick, args.only.as_slice());
    let effort = Effort::new(quick, args.round_ms);
    let setting = |script: &str, say: &mut dyn FnMut(String)| -> Result<Setting<'_>> {
        let peers = start_peers(args, script, say)?;
        let (peer_setup_s, leave_out) = (args.peer_setup_s, args.leave_out.as_slice());
        Ok(Setting { gpu, stopwatch: &stopwatch, peers, peer_setup_s, leave_out, quick, effort, only })
    };
    if wants(Family::Siglip) {
        bar.set_message("siglip");
        siglip::run(&setting("siglip_peer.py", &mut say)?, &mut say, &mut done)?;
    }
    if wants(Family::Swiglu) {
        bar.set_message("swiglu");
        swiglu::run(&setting("swiglu_peer.py", &mut say)?, &mut say, &mut done)?;
    }
    if wants(Family::Maxsim) {
        bar.set_message("maxsim");
        maxsim::run(&setting("maxsim_peer.py", &mut say)?, &mut say, &mut done)?;
    }
    let file = format!("bench-{}.json", slug::of(&gpu.info().name));
    say(format!("wrote {}", args.results.path().join(file).display()));
    Ok(())
}

/// The family's peers, if any are wanted.
fn start_peers(args: &Args, script: &str, say: &mut dyn FnMut(String)) -> Result<Option<Rc<RefCell<PeerProcess>>>> {
    if !args.peers {
        return Ok(None);
    }
    let process = PeerProcess::start(&args.python, &scripts()?.join(script))?;
    say(format!("peers run on {}", process.versions));
    for (name, state) in &process.peers {
        if let Err(why) = state {
            say(format!("MISSING {name}: {why}"));
        }
    }
    Ok(Some(Rc::new(RefCell::new(process))))
}

fn save(args: &Args, gpu: &Gpu, ceilings: BTreeMap<String, f64>, rows: Vec<BenchRow>) -> Result<()> {
    let file = BenchFile { header: card::header(gpu), ceilings, rows };
    merge_and_save(&args.results.path(), &slug::of(&gpu.info().name), file).map(|_| ())
}
