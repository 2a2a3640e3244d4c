//! The command: which groups run, what is printed and recorded.

use super::runner::Line;
use super::{maxsim, siglip, swiglu};
use crate::results::{ParityFile, ParityRow, ResultsFolder, merge_and_save};
use crate::{card, slug, source_hash};
use anyhow::{Result, bail};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use kernel_core::Gpu;

/// Check every route on random problems against reference-cpu and a naive f64 version
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Random problems for each dtype and route
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..))]
    cases: u32,
    /// Seed of the problems; the same seed draws the same ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, value_enum, default_value_t = Family::All)]
    family: Family,
    /// Fail where there is no GPU, instead of checking reference-cpu alone
    #[arg(long)]
    require_gpu: bool,
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

type Outcome = Vec<(Vec<Line>, Option<String>)>;

pub(crate) fn run(args: Args) -> Result<()> {
    let gpu = match card::open(args.device)? {
        Ok(gpu) => {
            println!(
                "parity on device {}, {}: every route against naive f64 and reference-cpu",
                args.device,
                gpu.info().name
            );
            Some(gpu)
        }
        Err(absent) if args.require_gpu => bail!("--require-gpu: {absent}"),
        Err(absent) => {
            println!("no GPU ({absent})");
            println!(
                "parity without a GPU: reference-cpu against naive f64, and naive f64 against central finite differences"
            );
            println!("NOT checked here: any GPU kernel");
            None
        }
    };
    let wants = |family| args.family == Family::All || args.family == family;
    let bar = progress();
    let mut outcomes: Outcome = Vec::new();
    if wants(Family::Siglip) {
        outcomes.extend(siglip_groups(gpu.as_ref(), &args, &bar));
    }
    let cases = u64::from(args.cases);
    if wants(Family::Swiglu) {
        bar.inc_length(swiglu::CPU_GROUPS * cases);
        bar.set_message("swiglu, reference-cpu");
        outcomes.extend(swiglu::cpu_groups(args.cases, args.seed, &bar));
        if let Some(gpu) = &gpu {
            outcomes.extend(swiglu::gpu_groups(gpu, args.cases, args.seed, &bar));
        }
    }
    if wants(Family::Maxsim) {
        bar.inc_length(maxsim::GROUPS * cases);
        bar.set_message("maxsim, reference-cpu");
        outcomes.extend(maxsim::cpu_groups(args.cases, args.seed, &bar));
        if let Some(gpu) = &gpu {
            outcomes.extend(maxsim::gpu_groups(gpu, args.cases, args.seed, &bar));
        }
    }
    bar.finish_and_clear();

    let lines: Vec<Line> = outcomes.iter().flat_map(|(lines, _)| lines.clone()).collect();
    println!("{}", table(&lines));
    println!(
        "errors are max|d|/max|ref| and |d|2/|ref|2 against f64 on the inputs as rounded to their dtype; seed {}",
        args.seed
    );
    if let Some(gpu) = &gpu {
        save(gpu, &args, &lines)?;
    }
    let failures: Vec<&String> = outcomes.iter().filter_map(|(_, failure)| failure.as_ref()).collect();
    for failure in &failures {
        eprintln!("FAILED {failure}");
    }
    if failures.is_empty() { Ok(()) } else { bail!("{} of {} groups failed", failures.len(), outcomes.len()) }
}

/// reference-cpu is checked on every machine: it is what the GPU is compared with.
fn siglip_groups(gpu: Option<&Gpu>, args: &Args, bar: &ProgressBar) -> Outcome {
    bar.inc_length(siglip::CPU_GROUPS * u64::from(args.cases));
    bar.set_message("siglip, reference-cpu");
    let mut outcomes = siglip::cpu_groups(args.cases, args.seed, bar);
    if let Some(gpu) = gpu {
        outcomes.extend(siglip::gpu_groups(gpu, args.cases, args.seed, bar));
    }
    outcomes
}

fn progress() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:32} {bar:40} {pos}/{len} cases, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["family", "op", "dtype", "route", "cases", "worst max", "worst l2", "tolerance", "result"]);
    for line in lines {
        let result = match (line.passed, line.reproducible) {
            (true, true) => "pass, same bits twice",
            (true, false) => "pass",
            (false, _) => "FAIL",
        };
        table.add_row([
            line.family.to_owned(),
            line.op.clone(),
            line.dtype.clone(),
            line.route.clone(),
            line.cases.to_string(),
            format!("{:.2e}", line.worst.max_rel),
            format!("{:.2e}", line.worst.l2_rel),
            format!("{:.2e}", line.tolerance),
            result.to_owned(),
        ]);
    }
    for index in 4..8 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn save(gpu: &Gpu, args: &Args, lines: &[Line]) -> Result<()> {
    let header = card::header(gpu);
    let date = header.date.clone();
    // JSON has no infinity: a result that was not finite is recorded as the largest number.
    let finite = |value: f64| value.min(f64::MAX);
    let rows = lines.iter().filter(|line| line.on_gpu).map(|line| ParityRow {
        family: line.family.to_owned(),
        op: line.op.clone(),
        dtype: line.dtype.clone(),
        route: line.route.clone(),
        cases: line.cases,
        worst_max_rel: finite(line.worst.max_rel),
        worst_l2_rel: finite(line.worst.l2_rel),
        tolerance: line.tolerance,
        passed: line.passed,
        reproducible: line.reproducible,
        seed: args.seed,
        date: date.clone(),
        source_hash: source_hash::of_family(line.family).unwrap_or_default().to_owned(),
    });
    let file = ParityFile { header, rows: rows.collect() };
    let path = merge_and_save(&args.results.path(), &slug::of(&gpu.info().name), file)?;
    println!("wrote {}", path.display());
    Ok(())
}
