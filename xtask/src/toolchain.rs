//! `xtask toolchain`: NVRTC (and, when asked for, cuBLASLt and disassemblers) from PyPI into the cache directory.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kernel_core::cache_dir::cache_dir;
use kernel_core::probe::{Library, status};

/// Install NVRTC from PyPI, so that a machine with only a driver can compile kernels
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Install here; then CUDA_HOME must name it [default: the cache directory, which is found by itself]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// cuBLASLt too, for the matrix products
    #[arg(long)]
    cublas: bool,
    /// cuobjdump and nvdisasm too, to look into compiled kernels
    #[arg(long)]
    full: bool,
}

/// Machine code comes from the CUDA 13.0 compiler, which drivers from 580 on accept.
const NVRTC: [&str; 1] = ["nvidia-cuda-nvrtc==13.0.88"];
/// The cuBLAS of the same CUDA release (13.0 update 2).
const CUBLAS: [&str; 1] = ["nvidia-cublas==13.1.0.3"];
/// PyPI has the disassemblers from 13.2 on; they read code of older compilers.
const DISASSEMBLERS: [&str; 2] = ["nvidia-cuda-cuobjdump==13.2.86", "nvidia-cuda-nvdisasm==13.2.86"];

/// The pins that are installed, one a line; written last.
const MARKER: &str = ".installed";
const STAGING: &str = ".staging";

pub(crate) fn run(args: Args) -> Result<()> {
    let directory = args.dir.clone().unwrap_or_else(|| cache_dir().join("toolchain").join("cuda-13.0"));
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let _lock = lock(&directory)?;

    let mut wanted: Vec<&str> = NVRTC.to_vec();
    wanted.extend(CUBLAS.iter().filter(|_| args.cublas));
    wanted.extend(DISASSEMBLERS.iter().filter(|_| args.full));
    let installed = installed(&directory);
    let missing: Vec<&str> = wanted.iter().copied().filter(|pin| !installed.contains(*pin)).collect();
    if missing.is_empty() {
        println!("Already in {}: {}", directory.display(), wanted.join(", "));
    } else {
        install(&directory, &missing)?;
        let all: BTreeSet<String> = installed.into_iter().chain(missing.iter().map(|pin| (*pin).to_owned())).collect();
        let text: String = all.iter().map(|pin| format!("{pin}\n")).collect();
        fs::write(directory.join(MARKER), text).with_context(|| format!("writing {MARKER}"))?;
        println!("Installed in {}: {}", directory.display(), missing.join(", "));
    }
    report(&args, &directory)
}

/// Says how it is found, and checks that it is.
fn report(args: &Args, directory: &Path) -> Result<()> {
    let home = directory.join("nvidia").join("cu13");
    if let Some(named) = &args.dir {
        println!("Programs find it with CUDA_HOME={} ({} is not searched by itself).", home.display(), named.display());
        return Ok(());
    }
    let libraries = [(Library::Nvrtc, true), (Library::CublasLt, args.cublas)];
    for (library, _) in libraries.iter().filter(|(_, wanted)| *wanted) {
        let status = status(*library);
        let Some(found) = status.found else {
            bail!(
                "{} is installed in {}, but does not load; tried: {}",
                library.name(),
                home.display(),
                status.tried.join(", ")
            );
        };
        println!("Programs of this project use {} {} at {found}.", library.name(), status.version.unwrap_or_default());
    }
    if !args.cublas {
        println!("For cuBLASLt (a few hundred MB), where no CUDA toolkit has it: cargo xtask toolchain --cublas");
    }
    if args.full {
        println!("Disassemblers: {}", home.join("bin").display());
    }
    Ok(())
}

/// Holds off other runs on the same directory until it is dropped.
fn lock(directory: &Path) -> Result<File> {
    let path = directory.join(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            println!("Waiting for another run of `toolchain` on {}.", directory.display());
            file.lock().with_context(|| format!("locking {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("locking {}", path.display())),
    }
    Ok(file)
}

/// The pins that an earlier run installed, as long as their files are still there.
fn installed(directory: &Path) -> BTreeSet<String> {
    if !directory.join("nvidia").is_dir() {
        return BTreeSet::new();
    }
    let text = fs::read_to_string(directory.join(MARKER)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Installs the pins beside what is there. An interrupted run leaves only a staging folder, which the next one removes.
fn install(directory: &Path, pins: &[&str]) -> Result<()> {
    let python = python()?;
    let staging = directory.join(STAGING);
    remove(&staging)?;
    let spinner = ProgressBar::new_spinner().with_message(format!("installing {}", pins.join(", ")));
    spinner.set_style(ProgressStyle::with_template("{spinner} {msg} [{elapsed}]").context("the spinner's template")?);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let output = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"])
        .args(["--no-deps", "--only-binary=:all:", "--target"])
        .arg(&staging)
        .args(pins)
        .output()
        .with_context(|| format!("starting {python}"))?;
    spinner.finish_and_clear();
    if !output.status.success() {
        remove(&staging)?;
        bail!("pip could not install {}:\n{}", pins.join(", "), text(&output));
    }
    drop_unused(&staging)?;
    merge(&staging, directory)?;
    make_executable(&directory.join("nvidia").join("cu13").join("bin"))?;
    remove(&staging)
}

/// The Python to install with, once it is known to have pip.
fn python() -> Result<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let by_hand = format!("or install NVRTC by hand: the wheel {} or a CUDA toolkit", NVRTC[0]);
    match Command::new(&python).args(["-m", "pip", "--version"]).output() {
        Err(error) => bail!(
            "{python} cannot be started ({error}): install Python 3.9 or newer with pip, or set PYTHON; {by_hand}"
        ),
        Ok(output) if !output.status.success() => bail!(
            "{python} has no pip: install it (`{python} -m ensurepip`, or your system's python3-pip); {by_hand}\n{}",
            text(&output)
        ),
        Ok(_) => Ok(python),
    }
}

fn text(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

/// The alternative builds of NVRTC, 114 MB that nothing here loads.
fn drop_unused(staging: &Path) -> Result<()> {
    let lib = staging.join("nvidia").join("cu13").join("lib");
    let Ok(entries) = fs::read_dir(&lib) else { return Ok(()) };
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", lib.display()))?;
        if entry.file_name().to_string_lossy().contains(".alt.so") {
            fs::remove_file(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Moves everything below `from` to the same place below `to`, replacing files.
fn merge(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry.with_context(|| format!("reading {}", from.display()))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            merge(&source, &target)?;
        } else {
            fs::rename(&source, &target)
                .with_context(|| format!("moving {} to {}", source.display(), target.display()))?;
        }
    }
    Ok(())
}

/// Wheels do not always keep the permission to run programs.
#[cfg(unix)]
fn make_executable(bin: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let Ok(entries) = fs::read_dir(bin) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", entry.path().display()))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn make_executable(_bin: &Path) -> Result<()> {
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_and_replaces() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir_all(from.join("nvidia/lib")).unwrap();
        fs::create_dir_all(to.join("nvidia/lib")).unwrap();
        fs::write(to.join("nvidia/lib/kept"), "old").unwrap();
        fs::write(to.join("nvidia/lib/replaced"), "old").unwrap();
        fs::write(from.join("nvidia/lib/replaced"), "new").unwrap();
        fs::write(from.join("nvidia/added"), "new").unwrap();
        merge(&from, &to).unwrap();
        let read = |name: &str| fs::read_to_string(to.join("nvidia").join(name)).unwrap();
        assert_eq!([read("lib/kept"), read("lib/replaced"), read("added")], ["old", "new", "new"]);
    }

    #[test]
    fn the_marker_counts_only_beside_its_files() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(MARKER), "a==1\nb==2\n").unwrap();
        assert_eq!(installed(root.path()), BTreeSet::new());
        fs::create_dir(root.path().join("nvidia")).unwrap();
        assert_eq!(installed(root.path()), BTreeSet::from(["a==1".to_owned(), "b==2".to_owned()]));
    }

    #[test]
    fn alternative_builds_are_dropped() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("nvidia/cu13/lib");
        fs::create_dir_all(&lib).unwrap();
        for name in ["libnvrtc.so.13", "libnvrtc.alt.so.13", "libnvrtc-builtins.alt.so.13.0"] {
            fs::write(lib.join(name), "").unwrap();
        }
        drop_unused(root.path()).unwrap();
        let left: Vec<_> = fs::read_dir(&lib).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["libnvrtc.so.13"]);
        drop_unused(&root.path().join("absent")).unwrap();
    }

    #[test]
    fn a_second_run_waits_for_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let first = lock(root.path()).unwrap();
        let second = File::options().write(true).open(root.path().join(".lock")).unwrap();
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        drop(first);
        second.try_lock().unwrap();
    }
}
