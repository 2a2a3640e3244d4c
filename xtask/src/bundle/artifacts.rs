//! Which executables cargo built, from the messages of `cargo ... --message-format=json`.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// An executable that goes into the bundle.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Artifact {
    pub(crate) package: String,
    pub(crate) target: String,
    pub(crate) kind: String,
    pub(crate) executable: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The executables named in cargo's messages, one JSON object a line.
pub(crate) fn executables(messages: &str) -> Result<Vec<Artifact>> {
    let mut artifacts = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).with_context(|| format!("cargo's message `{line}`"))?;
        let (Some(target), Some(executable)) = (message.target, message.executable) else { continue };
        if message.reason != "compiler-artifact" {
            continue;
        }
        let manifest = message.manifest_path.as_deref().and_then(Path::parent).and_then(Path::file_name);
        artifacts.push(Artifact {
            package: manifest.unwrap_or_default().to_string_lossy().into_owned(),
            target: target.name,
            kind: target.kind.join("+"),
            executable,
        });
    }
    Ok(artifacts)
}

/// Whether `package` has an integration test or a bench of that name.
pub(crate) fn has_target(workspace: &Path, package: &str, folder: &str, name: &str) -> bool {
    let folder = workspace.join(package).join(folder);
    folder.join(format!("{name}.rs")).is_file() || folder.join(name).join("main.rs").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executables_are_taken() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/kernel-core/Cargo.toml","target":{"name":"kernel_core","kind":["lib"]},"executable":null}
{"reason":"compiler-message","message":{"rendered":"warning"}}
{"reason":"compiler-artifact","manifest_path":"/w/siglip-kernel/Cargo.toml","target":{"name":"gpu","kind":["test"]},"executable":"/t/release/deps/gpu-12ab"}
{"reason":"build-finished","success":true}
   Compiling something"#;
        let found = executables(messages).unwrap();
        let expected = Artifact {
            package: "siglip-kernel".into(),
            target: "gpu".into(),
            kind: "test".into(),
            executable: "/t/release/deps/gpu-12ab".into(),
        };
        assert_eq!(found, [expected]);
        assert!(executables("{broken").is_err());
    }
}
