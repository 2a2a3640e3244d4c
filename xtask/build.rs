//! Puts the hash of each family's sources into the binary, so that a result says which sources it was measured on even when the binary was
//! copied to a machine that has no sources.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    for family in ["siglip", "swiglu", "maxsim"] {
        let hash = hash_of(&workspace, &["kernel-core", &format!("{family}-kernel")]);
        println!("cargo:rustc-env=SOURCE_HASH_{}={hash}", family.to_uppercase());
    }
    let all = hash_of(&workspace, &["kernel-core", "siglip-kernel", "swiglu-kernel", "maxsim-kernel"]);
    println!("cargo:rustc-env=SOURCE_HASH_ALL={all}");
}

/// SHA-256 over path and content of every file in `src/` and `cuda/` of `crates`, in the order of their paths; its first 16 hex digits.
fn hash_of(workspace: &Path, crates: &[&str]) -> String {
    let mut digest = Sha256::new();
    for name in crates {
        for part in ["src", "cuda"] {
            let root = workspace.join(name).join(part);
            if !root.is_dir() {
                continue; // a crate without device code of its own
            }
            println!("cargo:rerun-if-changed={}", root.display());
            let mut files = Vec::new();
            walk(&root, &mut files);
            files.sort();
            for file in files {
                let relative = file.strip_prefix(workspace).expect("walked from there");
                let content = fs::read(&file).unwrap_or_else(|error| panic!("reading {}: {error}", file.display()));
                digest.update(relative.to_string_lossy().replace('\\', "/").as_bytes());
                digest.update((content.len() as u64).to_le_bytes());
                digest.update(&content);
            }
        }
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("listing {}: {error}", directory.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("listing {}: {error}", directory.display())).path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() {
            walk(&path, files);
        } else if !hidden {
            files.push(path);
        }
    }
}
