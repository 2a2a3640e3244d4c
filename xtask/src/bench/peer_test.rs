use super::*;
use std::fs;

/// Speaks the protocol without torch.
const SCRIPT: &str = r#"
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["cmd"] == "hello":
        answer = {"ok": True, "versions": {"python": "3"}, "impls": {"fast one": {"version": "1.2"}, "gone": {"error": "ModuleNotFoundError: x"}}}
    elif request["cmd"] == "setup":
        answer = {"ok": True} if request["shape"]["B"] < 100 else {"ok": False, "error": "OutOfMemoryError: too large"}
    elif request["cmd"] == "time":
        answer = {"ok": True, "ms": [0.5] * request["reps"]}
    elif request["cmd"] == "costs":
        answer = {"ok": True, "peak_bytes": 1000, "host_us": 12.5}
    elif request["cmd"] == "drop":
        sys.exit(3)
    print(json.dumps(answer), flush=True)
"#;

fn process() -> (tempfile::TempDir, Rc<RefCell<PeerProcess>>) {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("peer.py");
    fs::write(&script, SCRIPT).unwrap();
    let process = PeerProcess::start("python3", &script).unwrap();
    (folder, Rc::new(RefCell::new(process)))
}

fn problem(b: u64) -> Value {
    json!({"op": "step", "shape": {"B": b}, "dtype": "bf16"})
}

#[test]
fn speaks_with_a_script() {
    let (_folder, process) = process();
    let mut peer = Peer::set_up(&process, "fast one", &problem(8)).unwrap();
    assert_eq!(peer.implementation(), "fast 1.2 one");
    assert_eq!(peer.round(3).unwrap(), [0.5; 3]);
    assert_eq!(peer.costs().unwrap(), (Some(1000), Some(12.5)));
}

#[test]
fn reasons_reach_the_caller() {
    let (_folder, process) = process();
    let why = |name: &str, b| Peer::set_up(&process, name, &problem(b)).err().map(|error| error.to_string());
    assert_eq!(why("gone", 8).unwrap(), "ModuleNotFoundError: x");
    assert_eq!(why("unheard of", 8).unwrap(), "the script does not know it");
    assert_eq!(why("fast one", 100).unwrap(), "OutOfMemoryError: too large");
    assert_eq!(why("fast one", 8), None, "the process outlives an error");
    let ended = process.borrow_mut().drop_all().unwrap_err().to_string();
    assert!(ended.contains("ended") && ended.contains('3'), "{ended}");
}

#[test]
fn the_scripts_answer_on_any_machine() {
    answers("siglip_peer.py", &super::super::siglip::PEERS);
    answers("swiglu_peer.py", &super::super::swiglu::PEERS);
    answers("maxsim_peer.py", &super::super::maxsim::PEERS);
}

fn answers(script: &str, expected: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/peers").join(script);
    let process = PeerProcess::start("python3", &script).unwrap();
    let names: Vec<&String> = process.peers.keys().collect();
    assert_eq!(names, expected);
    for (name, state) in &process.peers {
        if let Err(why) = state {
            eprintln!("{name} is not installed here: {why}");
            assert!(why.contains("Error"), "{why}");
        }
    }
    assert!(process.versions.contains("python"), "{}", process.versions);
}

#[test]
fn a_python_that_is_not_there_is_named() {
    let error = PeerProcess::start("no-such-python", Path::new("x.py")).err().unwrap();
    assert!(format!("{error:#}").contains("no-such-python x.py"), "{error:#}");
}

#[test]
fn what_takes_too_long_is_given_up() {
    let script = "
import peer
with peer.limited(None), peer.limited(60):
    pass
try:
    with peer.limited(0.05):
        while True:
            pass
except TimeoutError as error:
    print(error)
";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/peers");
    let output = Command::new("python3").args(["-B", "-c", script]).current_dir(folder).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "compiling and tuning took longer than 0.05 s");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
