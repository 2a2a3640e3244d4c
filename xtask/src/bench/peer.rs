//! The Python process that runs the peers: one JSON object a line each way (see bench/peers/peer.py).

use super::contender::Contender;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;

/// A running peers' script.
pub(crate) struct PeerProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Name to version, or why the peer cannot run here.
    pub(crate) peers: BTreeMap<String, Result<String, String>>,
    /// Versions of Python and torch, for the log.
    pub(crate) versions: String,
}

#[derive(Deserialize)]
struct Hello {
    versions: BTreeMap<String, String>,
    impls: BTreeMap<String, PeerState>,
}

#[derive(Deserialize)]
struct PeerState {
    version: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Timed {
    ms: Vec<f64>,
}

#[derive(Deserialize)]
struct Costs {
    peak_bytes: u64,
    host_us: f64,
}

/// `bench/peers` of the checkout, or what the bundle's `run` script names.
pub(crate) fn scripts() -> Result<PathBuf> {
    let folder = match env::var_os("XTASK_PEERS_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => crate::results::checkout()
            .context("no checkout here: set XTASK_PEERS_DIR to bench/peers")?
            .join("bench/peers"),
    };
    if !folder.is_dir() {
        bail!("the peers' scripts: no folder {}; set XTASK_PEERS_DIR to bench/peers", folder.display());
    }
    Ok(folder)
}

impl PeerProcess {
    /// Starts `script` with `python` and asks which peers it has.
    pub(crate) fn start(python: &str, script: &Path) -> Result<Self> {
        let mut child = Command::new(python)
            .args(["-B", "-u"])
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{python} {}`", script.display()))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stdout = BufReader::new(stdout.context("the peers' stdout")?);
        let mut process = Self { child, stdin, stdout, peers: BTreeMap::new(), versions: String::new() };
        let hello: Hello = process.request(&json!({"cmd": "hello"}))?;
        process.peers = hello
            .impls
            .into_iter()
            .map(|(name, state)| {
                (name, state.version.ok_or_else(|| state.error.unwrap_or_else(|| "no version and no error".to_owned())))
            })
            .collect();
        let versions: Vec<String> = hello.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        process.versions = versions.join(", ");
        Ok(process)
    }

    /// Sends one request and reads its answer; `{"ok": false, "error": ...}` becomes an error.
    fn request<A: for<'de> Deserialize<'de>>(&mut self, request: &Value) -> Result<A> {
        let stdin = self.stdin.as_mut().context("the peers' process has been told to end")?;
        writeln!(stdin, "{request}")
            .and_then(|()| stdin.flush())
            .context("the peers' process does not listen any more")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line).context("reading the peers' answer")?;
        if line.is_empty() {
            let status = self.child.wait().context("waiting for the peers' process")?;
            bail!("the peers' process ended ({status}) instead of answering {request}");
        }
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("the peers answered `{}`", line.trim()))?;
        if answer["ok"] != true {
            bail!("{}", answer["error"].as_str().unwrap_or("an answer without `ok` and without `error`"));
        }
        serde_json::from_value(answer).with_context(|| format!("the peers answered `{}` to {request}", line.trim()))
    }

    /// Frees everything on the device.
    pub(crate) fn drop_all(&mut self) -> Result<()> {
        self.request::<Value>(&json!({"cmd": "drop"})).map(|_| ())
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        // Closing its stdin ends the script, so that it leaves the device tidily.
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// A peer set up for one operation on one problem.
pub(crate) struct Peer {
    process: Rc<RefCell<PeerProcess>>,
    name: String,
    implementation: String,
}

impl Peer {
    /// `problem` is what the script's `setup` takes beside the name: op, shape, dtype, scalars.
    pub(crate) fn set_up(process: &Rc<RefCell<PeerProcess>>, name: &str, problem: &Value) -> Result<Self> {
        let version = match process.borrow().peers.get(name) {
            None => bail!("the script does not know it"),
            Some(Err(why)) => bail!("{why}"),
            Some(Ok(version)) => version.clone(),
        };
        let mut request = problem.clone();
        request["cmd"] = json!("setup");
        request["impl"] = json!(name);
        process.borrow_mut().request::<Value>(&request)?;
        Ok(Self { process: process.clone(), name: name.to_owned(), implementation: named(name, &version) })
    }
}

/// `siglip-kernel 0.1.2 fp8` of `siglip-kernel fp8` and `0.1.2`: the version follows the package.
fn named(name: &str, version: &str) -> String {
    match name.split_once(' ') {
        Some((package, variant)) => format!("{package} {version} {variant}"),
        None => format!("{name} {version}"),
    }
}

impl Contender for Peer {
    fn implementation(&self) -> &str {
        &self.implementation
    }

    fn route(&self) -> &str {
        "default"
    }

    fn round(&mut self, reps: usize) -> Result<Vec<f64>> {
        let request = json!({"cmd": "time", "impl": self.name, "reps": reps, "warmup": 1});
        Ok(self.process.borrow_mut().request::<Timed>(&request)?.ms)
    }

    fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)> {
        let costs: Costs = self.process.borrow_mut().request(&json!({"cmd": "costs", "impl": self.name}))?;
        Ok((Some(costs.peak_bytes), Some(costs.host_us)))
    }
}

#[cfg(test)]
#[path = "peer_test.rs"]
mod tests;
