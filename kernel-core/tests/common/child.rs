//! Runs one ignored test of this binary in a process of its own.

use std::process::{Child, Command, Stdio};

/// A command that runs the ignored test `name` of the current binary, with its output captured.
pub(crate) fn command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this test binary"));
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the child, and fails with its output unless the test ran and passed.
pub(crate) fn expect_pass(child: Child) {
    let output = child.wait_with_output().expect("waiting for a child process");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed") && !text.contains("panicked"), "{text}");
}
