//! The command: fill README, write the plots, or check that both are what the results give.

use super::{markers, plot, tables};
use crate::results::{BenchFile, ParityFile, ResultsFolder, checkout, load_all, stale};
use crate::slug;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Write README's tables and the plots under docs/ from results/*.json
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when README or a plot is not what the results give
    #[arg(long)]
    check: bool,
    /// The file with the `<!-- report:begin NAME -->` places [default: README.md of the checkout]
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Folder of the plots [default: docs/ beside the README]
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
    #[command(flatten)]
    results: ResultsFolder,
}

const SECTIONS: [&str; 5] = ["parity", "ceilings", "bench-siglip", "bench-swiglu", "bench-maxsim"];

pub(crate) fn run(args: Args) -> Result<()> {
    let readme = match args.readme {
        Some(path) => path,
        None => checkout().context("no checkout here: give --readme FILE")?.join("README.md"),
    };
    let docs = args.docs.unwrap_or_else(|| readme.parent().unwrap_or(Path::new("")).join("docs"));
    let folder = args.results.path();
    let parity: Vec<ParityFile> = load_all(&folder)?;
    let bench: Vec<BenchFile> = load_all(&folder)?;
    for line in parity.iter().flat_map(stale).chain(bench.iter().flat_map(stale)) {
        eprintln!("warning: {line}");
    }

    let text = fs::read_to_string(&readme).with_context(|| format!("reading {}", readme.display()))?;
    if markers::names(&text).is_empty() {
        bail!(
            "{} has no place to fill: expected `<!-- report:begin NAME -->`, NAME one of {}",
            readme.display(),
            SECTIONS.join(", ")
        );
    }
    let filled = markers::fill(&text, &SECTIONS, |name| {
        SECTIONS.contains(&name).then(|| match name {
            "parity" => tables::parity(&parity),
            "ceilings" => tables::ceilings(&bench),
            family => tables::bench(&bench, family.trim_start_matches("bench-")),
        })
    })
    .with_context(|| format!("in {}", readme.display()))?;

    let mut outputs = vec![(readme, filled)];
    for file in &bench {
        match plot::siglip_step(file)? {
            Some(svg) => outputs.push((docs.join(format!("siglip-step-{}.svg", slug::of(&file.header.gpu))), svg)),
            None => println!("no plot for {}: fewer than two sizes of the siglip step were measured", file.header.gpu),
        }
    }
    let mut differing = Vec::new();
    for (path, content) in &outputs {
        let same = fs::read_to_string(path).is_ok_and(|old| old == *content);
        if same {
            println!("{} is up to date", path.display());
        } else if args.check {
            differing.push(path.display().to_string());
        } else {
            write(path, content)?;
            println!("wrote {}", path.display());
        }
    }
    if !differing.is_empty() {
        bail!("{} not what {} gives: run `cargo xtask report`", differing.join(" and "), folder.display());
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}
