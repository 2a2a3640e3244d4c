//! Parity checks, benchmarks and tools of this workspace: `cargo xtask --help`.

mod bench;
mod bundle;
mod card;
mod compile;
mod doctor;
mod eval;
mod maxsim;
mod parity;
mod report;
mod results;
mod siglip;
mod slug;
mod source_hash;
mod swiglu;
mod toolchain;

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
    Bench(bench::Args),
    Eval(eval::Args),
    Compile(compile::Args),
    Toolchain(toolchain::Args),
    Doctor(doctor::Args),
    Report(report::Args),
    Bundle(bundle::Args),
    #[command(hide = true)]
    FirstCall(bench::FirstCallArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Parity(args) => parity::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Compile(args) => compile::run(args),
        Command::Toolchain(args) => toolchain::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Report(args) => report::run(args),
        Command::Bundle(args) => bundle::run(args),
        Command::FirstCall(args) => bench::run_first_call(args),
    }
}
