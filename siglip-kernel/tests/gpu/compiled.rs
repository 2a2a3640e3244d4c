//! Plans load the kernels that they list, so that none is compiled after the others.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use siglip_kernel::cpu::Element;
use siglip_kernel::kernel_core::Variant;
use siglip_kernel::kernel_core::half::bf16;
use siglip_kernel::{Chunk, Gpu, Options, Plan, Problem, Route, plan_variants};

use crate::case::Case;
use crate::support::{gpu, routes, say};

const CACHE: &str = "FUSED_KERNELS_CACHE_DIR";
/// Which group a child process takes.
const GROUP: &str = "SIGLIP_TEST_GROUP";
/// Child processes at once, each of which compiles on all cores.
const AT_ONCE: usize = 4;

/// Cases that list the same kernels, each group in a process of its own, whose cache is empty: what is compiled is there as a file.
#[test]
fn plans_compile_what_they_list() {
    let Some(gpu) = gpu() else { return };
    let count = groups(&gpu).len();
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            scope.spawn(move || (first..count).step_by(AT_ONCE).for_each(child));
        }
    });
}

fn child(group: usize) {
    let cache = std::env::temp_dir().join(format!("siglip-plans-{}-{group}", std::process::id()));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "compiled::child_makes_plans", "--ignored", "--nocapture"])
        .env(CACHE, &cache)
        .env(GROUP, group.to_string())
        .output()
        .expect("starting a child process");
    let _ = std::fs::remove_dir_all(&cache);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "the child process of plans_compile_what_they_list"]
fn child_makes_plans() {
    let group = std::env::var(GROUP).ok().and_then(|group| group.parse::<usize>().ok());
    let (Some(gpu), Some(cache), Some(group)) = (gpu(), std::env::var_os(CACHE).map(PathBuf::from), group) else {
        return say("skipped: child_makes_plans is run by plans_compile_what_they_list");
    };
    let (listed, cases) = groups(&gpu).swap_remove(group);
    gpu.compile(&listed.into_iter().collect::<Vec<_>>()).unwrap();
    let compiled = files(&cache.join("cubin"));
    assert!(!compiled.is_empty(), "nothing in {}", cache.display());
    for (problem, options) in cases {
        let plan = Plan::new(&gpu, problem, options).unwrap();
        let now = files(&cache.join("cubin"));
        let more: Vec<_> = now.difference(&compiled).collect();
        assert!(more.is_empty(), "{problem:?}, {options:?} compiled {more:?} too");
        if matches!(options.chunk, Chunk::Workspace(_)) {
            let (rows, cols) = plan.block();
            assert!(rows < problem.rows && cols < problem.cols, "one block has {rows} x {cols}");
        }
    }
}

/// Kernels, and the cases that list them.
type Group = (HashSet<Variant>, Vec<(Problem, Options)>);

fn groups(gpu: &Gpu) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for case in [cases::<f32>(gpu), cases::<bf16>(gpu)].concat() {
        let listed: HashSet<_> = plan_variants(gpu.info(), &case.0, &case.1).unwrap().into_iter().collect();
        match groups.iter_mut().find(|(of, _)| *of == listed) {
            Some((_, cases)) => cases.push(case),
            None => groups.push((listed, vec![case])),
        }
    }
    groups
}

/// One block, several row blocks, several column blocks, in low memory fused launches; and both gradients finished by the last of several blocks.
fn cases<T: Element>(gpu: &Gpu) -> Vec<(Problem, Options)> {
    let of_all = [
        ([300, 270, 40], Chunk::Auto),
        ([300, 270, 40], Chunk::Rows(128)),
        ([20, 730_001, 8], Chunk::Auto),
        ([2500, 14_000, 768], Chunk::Auto),
    ];
    let finished = ([3000, 2500, 40], Chunk::Workspace(1_200_000));
    let mut cases = Vec::new();
    for &route in routes::<T>(gpu) {
        let finishes = T::NAME != "f32" && route == Route::Chunked && gpu.info().arch().has_wgmma();
        let more = finishes.then_some(finished);
        cases.extend(
            of_all.into_iter().chain(more).map(|([rows, cols, dim], chunk)| {
                (Case::new(rows, cols, dim).problem::<T>(), Options { route, chunk })
            }),
        );
    }
    cases
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    std::fs::read_dir(folder).map(|files| files.flatten().map(|file| file.path()).collect()).unwrap_or_default()
}
