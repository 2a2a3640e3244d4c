//! Plans load the kernels that they list, so that none is compiled after the others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use siglip_kernel::cpu::Element;
use siglip_kernel::kernel_core::half::{bf16, f16};
use siglip_kernel::{Chunk, Gpu, Options, Plan, Problem, Route, plan_variants};

use crate::case::Case;
use crate::support::{gpu, routes, say};

const CACHE: &str = "FUSED_KERNELS_CACHE_DIR";

/// In a process of its own, whose cache is empty: what is compiled is there as a file.
#[test]
fn plans_compile_what_they_list() {
    if gpu().is_none() {
        return;
    }
    let cache = std::env::temp_dir().join(format!("siglip-plans-{}", std::process::id()));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "compiled::child_makes_plans", "--ignored", "--nocapture"])
        .env(CACHE, &cache)
        .output()
        .expect("starting a child process");
    let _ = std::fs::remove_dir_all(&cache);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "the child process of plans_compile_what_they_list"]
fn child_makes_plans() {
    let (Some(gpu), Some(cache)) = (gpu(), std::env::var_os(CACHE).map(PathBuf::from)) else {
        return say("skipped: child_makes_plans is run by plans_compile_what_they_list");
    };
    let cases = [cases::<f32>(&gpu), cases::<f16>(&gpu), cases::<bf16>(&gpu)].concat();
    let listed = |(problem, options)| plan_variants(gpu.info(), problem, options).unwrap();
    let variants: Vec<_> = cases.iter().flat_map(|(problem, options)| listed((problem, options))).collect();
    gpu.compile(&variants).unwrap();
    let compiled = files(&cache.join("cubin"));
    assert!(!compiled.is_empty(), "nothing in {}", cache.display());
    for (problem, options) in cases {
        Plan::new(&gpu, problem, options).unwrap();
        let now = files(&cache.join("cubin"));
        let more: Vec<_> = now.difference(&compiled).collect();
        assert!(more.is_empty(), "{problem:?}, {options:?} compiled {more:?} too");
    }
}

/// Gradients in one block, in several, and finished by the last of several; low memory with fused launches too.
fn cases<T: Element>(gpu: &Gpu) -> Vec<(Problem, Options)> {
    let shapes = [([300, 270, 40], Chunk::Rows(128)), ([2500, 14_000, 768], Chunk::Workspace(60_000_000))];
    let of = |route: &Route| {
        let route = *route;
        shapes.map(|([rows, cols, dim], chunk)| {
            (
                Case::new(rows, cols, dim).problem::<T>(),
                Options { route, chunk: if route == Route::Fp8 { Chunk::Auto } else { chunk } },
            )
        })
    };
    routes::<T>(gpu).iter().flat_map(of).collect()
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    std::fs::read_dir(folder).map(|files| files.flatten().map(|file| file.path()).collect()).unwrap_or_default()
}
