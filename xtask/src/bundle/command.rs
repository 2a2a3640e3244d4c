//! The command: build with cargo, copy into a folder.

use super::artifacts::{Artifact, executables, has_target};
use super::script::RUN;
use crate::results::checkout;
use crate::source_hash;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// Collect xtask, the GPU tests, the benches and the peers' scripts in one folder for a GPU machine without Rust
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder; what an earlier bundle left in it is replaced
    #[arg(long, value_name = "DIR", default_value = "bundle")]
    out: PathBuf,
    /// Leave out the GPU tests
    #[arg(long)]
    no_tests: bool,
    /// Leave out the criterion benches
    #[arg(long)]
    no_benches: bool,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
const FAMILIES: [&str; 4] = ["kernel-core", "siglip-kernel", "swiglu-kernel", "maxsim-kernel"];
/// Made by an earlier bundle, and the only things removed from the folder.
const PARTS: [&str; 6] = ["bin", "tests", "benches", "peers", "run", "MANIFEST.txt"];

pub(crate) fn run(args: Args) -> Result<()> {
    let workspace = checkout().context("no checkout here: `bundle` builds from the sources")?;
    prepare(&args.out)?;
    let mut manifest = format!("sources {}\n", source_hash::ALL);

    let xtask = build(&workspace, &["build", "--package", "xtask", "--bin", "xtask"])?;
    for artifact in xtask.iter().filter(|artifact| artifact.target == "xtask") {
        copy(artifact, &args.out.join("bin/xtask"), &mut manifest)?;
    }
    for package in FAMILIES {
        bundle_targets(&workspace, package, &args, &mut manifest)?;
    }
    copy_peers(&workspace.join("bench/peers"), &args.out.join("peers"))?;
    let script = args.out.join("run");
    fs::write(&script, RUN).with_context(|| format!("writing {}", script.display()))?;
    make_executable(&script)?;
    fs::write(args.out.join("MANIFEST.txt"), &manifest).context("writing MANIFEST.txt")?;
    print!("{manifest}");
    println!("bundle: {} ({:.1} MB); on the GPU machine: ./run parity", args.out.display(), megabytes(&args.out)?);
    Ok(())
}

/// The `gpu` test of a package and its benches, or a line that says that it has none.
fn bundle_targets(workspace: &Path, package: &str, args: &Args, manifest: &mut String) -> Result<()> {
    let out = &args.out;
    if args.no_tests {
        println!("{package}: tests left out, as asked");
    } else if has_target(workspace, package, "tests", "gpu") {
        let built = build(workspace, &["test", "--no-run", "--package", package, "--test", "gpu"])?;
        for artifact in built.iter().filter(|artifact| artifact.kind == "test" && artifact.target == "gpu") {
            copy(artifact, &out.join("tests").join(format!("{package}-gpu")), manifest)?;
        }
    } else {
        println!("{package}: no tests/gpu.rs, nothing to bundle");
    }
    if !args.no_benches && workspace.join(package).join("benches").is_dir() {
        let built = build(workspace, &["bench", "--no-run", "--package", package, "--benches"])?;
        for artifact in built.iter().filter(|artifact| artifact.kind == "bench") {
            copy(artifact, &out.join("benches").join(format!("{package}-{}", artifact.target)), manifest)?;
        }
    }
    Ok(())
}

/// Runs cargo with a profile of its own (release, stripped), so that the usual build is neither reused unstripped nor thrown away.
fn build(workspace: &Path, arguments: &[&str]) -> Result<Vec<Artifact>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.current_dir(workspace).args(arguments).args([
        "--profile",
        "bundle",
        "--message-format=json-render-diagnostics",
    ]);
    command.args(["--config", "profile.bundle.inherits='release'", "--config", "profile.bundle.strip=true"]);
    if !cfg!(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu")) {
        command.args(["--target", TARGET]);
    }
    // Variables that cargo set for this process must not reach the next cargo as if they were settings.
    command.env_remove("CARGO_MANIFEST_DIR").stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("starting {}", cargo.to_string_lossy()))?;
    if !output.status.success() {
        bail!("`cargo {}` failed: {}", arguments.join(" "), output.status);
    }
    executables(&String::from_utf8_lossy(&output.stdout))
}

/// Empties what an earlier bundle made; a folder that holds other things only is refused.
fn prepare(out: &Path) -> Result<()> {
    let foreign =
        fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) && !out.join("MANIFEST.txt").is_file();
    if foreign {
        bail!("{} is not empty and holds no bundle: give a new folder with --out", out.display());
    }
    for part in PARTS {
        let path = out.join(part);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    for part in ["bin", "tests", "benches", "peers"] {
        fs::create_dir_all(out.join(part)).with_context(|| format!("creating {}", out.join(part).display()))?;
    }
    // Says whose folder this is, also when the build fails.
    fs::write(out.join("MANIFEST.txt"), "unfinished\n").context("writing MANIFEST.txt")
}

fn copy(artifact: &Artifact, to: &Path, manifest: &mut String) -> Result<()> {
    let size = fs::copy(&artifact.executable, to)
        .with_context(|| format!("copying {} to {}", artifact.executable.display(), to.display()))?;
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    manifest
        .push_str(&format!("{name}: {} `{}` of {}, {size} bytes\n", artifact.kind, artifact.target, artifact.package));
    Ok(())
}

fn copy_peers(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let path = entry.with_context(|| format!("listing {}", from.display()))?.path();
        if path.is_file() {
            let target = to.join(path.file_name().unwrap_or_default());
            fs::copy(&path, &target).with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

fn make_executable(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| format!("{}", path.display()))?;
    }
    Ok(())
}

fn megabytes(folder: &Path) -> Result<f64> {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            let entry = entry?;
            if entry.path().is_dir() { folders.push(entry.path()) } else { bytes += entry.metadata()?.len() }
        }
    }
    Ok(bytes as f64 / 1e6)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A bundle of shell scripts instead of binaries, to see what `run` does with them.
    fn bundle_of(tests: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path()).unwrap();
        let file = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::write(&path, text).unwrap();
            make_executable(&path).unwrap();
        };
        file("run", RUN);
        file("bin/xtask", "#!/bin/sh\necho \"xtask [$*] peers=$XTASK_PEERS_DIR\"\n");
        for (name, body) in tests {
            file(&format!("tests/{name}"), &format!("#!/bin/sh\n{body}\n"));
        }
        folder
    }

    fn run_script(folder: &Path, arguments: &[&str]) -> (bool, String, String) {
        let elsewhere = tempfile::tempdir().unwrap();
        let output = Command::new(folder.join("run")).args(arguments).current_dir(elsewhere.path()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    #[test]
    fn run_hands_commands_to_xtask() {
        let folder = bundle_of(&[]);
        let (ok, out, _) = run_script(folder.path(), &["bench", "--gpu", "h200", "a b"]);
        assert!(
            ok && out.starts_with("xtask [bench --gpu h200 a b] peers=/") && out.trim().ends_with("/peers"),
            "{out}"
        );
        let (ok, out, _) = run_script(folder.path(), &[]);
        assert!(ok && out.contains("./run parity") && !out.contains("xtask ["), "{out}");
    }

    #[test]
    fn run_test_runs_every_test_and_fails_when_one_does() {
        let folder = bundle_of(&[("a-gpu", "echo a \"$*\"; exit 1"), ("b-gpu", "echo b \"$*\" $KERNELS_REQUIRE_GPU")]);
        let (ok, out, _) = run_script(folder.path(), &["test", "name"]);
        assert!(!ok, "{out}");
        assert!(out.contains("a --test-threads=1 name") && out.contains("b --test-threads=1 name 1"), "{out}");
        let (ok, _, _) = run_script(bundle_of(&[("a-gpu", "exit 0")]).path(), &["test"]);
        assert!(ok);
    }

    #[test]
    fn run_test_without_tests_is_a_failure() {
        let (ok, _, error) = run_script(bundle_of(&[]).path(), &["test"]);
        assert!(!ok && error.contains("nothing in"), "{error}");
    }

    #[test]
    fn a_folder_of_other_things_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious.txt"), "x").unwrap();
        let message = prepare(folder.path()).unwrap_err().to_string();
        assert!(message.contains("is not empty and holds no bundle"), "{message}");
        assert!(folder.path().join("precious.txt").is_file());
        let ours = bundle_of(&[("a-gpu", "exit 0")]);
        prepare(ours.path()).unwrap();
        assert!(!ours.path().join("tests/a-gpu").exists(), "an earlier bundle is replaced, an unfinished one too");
    }
}
