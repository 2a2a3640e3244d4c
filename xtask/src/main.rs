//! Parity checks, benchmarks and tools of this workspace: `cargo xtask --help`.

mod bundle;
mod card;
mod parity;
mod report;
mod results;
mod slug;
mod source_hash;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "xtask", about = "Parity checks, benchmarks and tools of this workspace", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Parity(parity::Args),
    Report(report::Args),
    Bundle(bundle::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Parity(args) => parity::run(args),
        Command::Report(args) => report::run(args),
        Command::Bundle(args) => bundle::run(args),
    }
}
