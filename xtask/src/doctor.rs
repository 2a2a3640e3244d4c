//! `xtask doctor`: what is here, what is missing, and what to do about it.

use std::io::Write;
use std::process::Command;

use anyhow::{Result, bail};
use comfy_table::{ContentArrangement, Table, presets};
use kernel_core::autotune::AutotuneMode;
use kernel_core::cache_dir::cache_dir;
use kernel_core::compile::compile_in;
use kernel_core::probe::{self, Library};
use kernel_core::{Arch, CubinCache, Error, Gpu, Program};

/// Say what this machine has, what is missing and what to do
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fail when something that the kernels need on a GPU is missing
    #[arg(long)]
    strict: bool,
}

/// One thing that was looked for.
struct Finding {
    what: String,
    state: State,
    /// What was found, or why it was not.
    detail: String,
    /// What to do when it is missing.
    advice: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// Missing, and some part of this workspace works without it.
    Optional,
    Missing,
}

impl Finding {
    fn ok(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Finding { what: what.into(), state: State::Ok, detail: detail.into(), advice: String::new() }
    }

    fn bad(what: impl Into<String>, state: State, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Finding { what: what.into(), state, detail: detail.into(), advice: advice.into() }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let mut findings = vec![library("driver", Library::Driver)];
    findings.extend(gpus());
    findings.push(library("NVRTC", Library::Nvrtc));
    if probe::ensure(Library::Nvrtc).is_ok() {
        findings.push(compiles());
    }
    findings.push(library("cuBLASLt", Library::CublasLt));
    findings.push(cache());
    findings.push(autotune());
    findings.push(program("Rust", "rustc", "needed to build; install it with rustup"));
    findings.push(program(
        "Python",
        "python3",
        "needed by `toolchain` and by `bench --peers` only; install Python 3.9 or newer with pip",
    ));
    println!("{}", table(&findings));

    let missing: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.state == State::Missing)
        .map(|finding| finding.what.as_str())
        .collect();
    if missing.is_empty() {
        println!("Everything that the kernels need is here.");
    } else {
        println!("Missing for work on a GPU: {}. The CPU routes need none of it.", missing.join(", "));
        if args.strict {
            bail!("missing: {}", missing.join(", "));
        }
    }
    Ok(())
}

fn library(what: &str, library: Library) -> Finding {
    let status = probe::status(library);
    match status.found {
        Some(found) => {
            let version = status.version.unwrap_or_else(|| "unknown version".to_owned());
            let version = if library == Library::Driver { format!("for CUDA up to {version}") } else { version };
            Finding::ok(what, format!("{version}, {found}"))
        }
        None => Finding::bad(what, State::Missing, format!("not in: {}", status.tried.join(", ")), library.hint()),
    }
}

fn gpus() -> Vec<Finding> {
    let count = match Gpu::count() {
        Ok(0) | Err(Error::NoDevice { .. }) => {
            let advice = "a GPU of compute capability 8.0 or newer, visible to this process (CUDA_VISIBLE_DEVICES)";
            return vec![Finding::bad("GPU", State::Missing, "the driver lists none", advice)];
        }
        Ok(count) => count,
        Err(error) => {
            let detail = match error {
                Error::MissingLibrary { .. } => "unknown without a driver".to_owned(),
                error => error.to_string(),
            };
            return vec![Finding::bad("GPU", State::Missing, detail, "a working NVIDIA driver")];
        }
    };
    (0..count).map(gpu).collect()
}

fn gpu(ordinal: usize) -> Finding {
    let what = format!("GPU {ordinal}");
    let gpu = match Gpu::new(ordinal) {
        Ok(gpu) => gpu,
        Err(error) => return Finding::bad(what, State::Missing, error.to_string(), "see the driver's message"),
    };
    let info = gpu.info();
    let (major, minor) = info.compute_capability;
    let gib = info.total_bytes as f64 / (1u64 << 30) as f64;
    let detail = format!(
        "{}, compute capability {major}.{minor} ({}), {} multiprocessors, {gib:.1} GiB",
        info.name,
        info.arch(),
        info.sm_count
    );
    if major < 8 {
        return Finding::bad(what, State::Missing, detail, "the kernels need compute capability 8.0 or newer");
    }
    Finding::ok(what, detail)
}

/// NVRTC may be there without its builtins, which shows at the first compilation only.
fn compiles() -> Finding {
    static TRIAL: Program = Program {
        name: "doctor",
        source: "extern \"C\" __global__ void trial(float* x) { *x = sqrtf(*x); }\n",
        headers: &[],
    };
    match compile_in(&CubinCache::disabled(), &TRIAL, &Arch::ALL[0], &[]) {
        Ok(cubin) => Finding::ok("trial compilation", format!("{}: {} bytes", Arch::ALL[0], cubin.image.len())),
        Err(error) => {
            let advice =
                "reinstall NVRTC with its builtins (libnvrtc-builtins), for example with `cargo xtask toolchain`";
            Finding::bad("trial compilation", State::Missing, error.to_string(), advice)
        }
    }
}

fn cache() -> Finding {
    let directory = cache_dir();
    let trial = || -> std::io::Result<()> {
        std::fs::create_dir_all(&directory)?;
        let file = directory.join(format!(".doctor-{}", std::process::id()));
        std::fs::File::create(&file)?.write_all(b"trial")?;
        std::fs::remove_file(&file)
    };
    match trial() {
        Ok(()) => Finding::ok("cache", format!("{} can be written", directory.display())),
        Err(error) => Finding::bad(
            "cache",
            State::Optional,
            format!("{}: {error}", directory.display()),
            "kernels are compiled in every process; make it writable, or set FUSED_KERNELS_CACHE_DIR",
        ),
    }
}

fn autotune() -> Finding {
    match AutotuneMode::from_env() {
        Ok(mode) => Finding::ok("autotuning", mode.to_string()),
        Err(error) => Finding::bad("autotuning", State::Missing, error.to_string(), "correct or unset the variable"),
    }
}

/// A program on the path that answers to `--version`.
fn program(what: &str, name: &str, advice: &str) -> Finding {
    match Command::new(name).arg("--version").output() {
        Ok(output) if output.status.success() => {
            Finding::ok(what, String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => {
            Finding::bad(what, State::Optional, format!("`{name} --version` failed: {}", output.status), advice)
        }
        Err(error) => Finding::bad(what, State::Optional, format!("{name}: {error}"), advice),
    }
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none() {
        // Not a terminal: long lists of directories still wrap.
        table.set_width(140);
    }
    table.set_header(["", "state", "found", "what to do"]);
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Optional => "optional",
            State::Missing => "MISSING",
        };
        table.add_row([finding.what.as_str(), state, finding.detail.as_str(), finding.advice.as_str()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_comes_with_advice() {
        let finding = program("X", "surely-no-such-program", "install X");
        assert_eq!((finding.state, finding.advice.as_str()), (State::Optional, "install X"));
        assert!(finding.detail.contains("surely-no-such-program"), "{}", finding.detail);
    }

    #[test]
    fn the_table_shows_every_finding() {
        let findings = [
            Finding::ok("a", "found a"),
            Finding::bad("b", State::Missing, "no b", "get b"),
            Finding::bad("c", State::Optional, "", ""),
        ];
        let text = table(&findings).to_string();
        for part in ["found a", "ok", "MISSING", "no b", "get b", "optional"] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn every_library_is_ok_or_has_advice() {
        for which in Library::ALL {
            let finding = library("x", which);
            assert_eq!(finding.state == State::Ok, finding.advice.is_empty(), "{}", finding.detail);
        }
    }
}
