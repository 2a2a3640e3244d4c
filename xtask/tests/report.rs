//! `xtask report` as a program.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const README: &str = "# Title\n\n<!-- report:begin parity -->\n<!-- report:end parity -->\n\ntext\n\n\
                      <!-- report:begin bench-siglip -->\nstale\n<!-- report:end bench-siglip -->\n";

fn report(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("report")
        .args(arguments)
        .arg("--results")
        .arg(folder.join("results"))
        .arg("--readme")
        .arg(folder.join("README.md"))
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn row(b: u64, implementation: &str, ms: f64) -> String {
    format!(
        r#"{{"family":"siglip","op":"step","shape":{{"B":{b},"D":768}},"dtype":"bf16","route":"chunked","impl":"{implementation}",
            "ms_median":{ms},"ms_min":{ms},"ms_max":{ms},"flop":{},"bytes":1,"peak_bytes":1000000,"auto":true,"reps":5,
            "date":"2026-01-02T00:00:00Z","source_hash":"feedfeedfeedfeed"}}"#,
        6 * b * b * 768
    )
}

fn workspace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("results")).unwrap();
    fs::write(folder.path().join("README.md"), README).unwrap();
    let rows = [row(8192, "ours", 0.5), row(16384, "ours", 2.0), row(16384, "peer 1.0", 3.0)].join(",");
    let file = format!(
        r#"{{"gpu":"NVIDIA H200","driver":"580.1","cuda":"13.0","date":"2026-01-02T00:00:00Z","source_hash":"feedfeedfeedfeed",
            "ceilings":{{"copy_gbps":4100.0}},"rows":[{rows}]}}"#
    );
    fs::write(folder.path().join("results/bench-h200.json"), file).unwrap();
    folder
}

#[test]
fn writes_readme_and_plot_and_then_checks_clean() {
    let folder = workspace();
    let before = report(folder.path(), &["--check"]);
    assert!(!before.status.success());
    assert!(text(&before.stderr).contains("run `cargo xtask report`"), "{}", text(&before.stderr));
    assert_eq!(fs::read_to_string(folder.path().join("README.md")).unwrap(), README, "--check changes nothing");

    let written = report(folder.path(), &[]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    assert!(text(&written.stderr).contains("measured on sources feedfeedfeedfeed"), "stale rows are told");
    let readme = fs::read_to_string(folder.path().join("README.md")).unwrap();
    assert!(readme.contains("| B=16,384 D=768 | bf16 | 2.00 ms (618 TF/s, 1.00 MB) | 3.00 ms"), "{readme}");
    assert!(
        readme.contains("1.50×") && readme.contains("Nothing measured yet.") && !readme.contains("stale"),
        "{readme}"
    );
    assert!(folder.path().join("docs/siglip-step-h200.svg").is_file());

    let after = report(folder.path(), &["--check"]);
    assert!(after.status.success(), "{}", text(&after.stderr));
    fs::write(folder.path().join("docs/siglip-step-h200.svg"), "<svg/>").unwrap();
    assert!(!report(folder.path(), &["--check"]).status.success(), "a plot changed by hand is found");
}

#[test]
fn a_readme_without_places_is_an_error() {
    let folder = workspace();
    fs::write(folder.path().join("README.md"), "# Title\n").unwrap();
    let output = report(folder.path(), &[]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("has no place to fill"), "{}", text(&output.stderr));
}
