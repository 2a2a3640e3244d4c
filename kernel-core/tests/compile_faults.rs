//! Compilation and the CUBIN cache under faults. Needs NVRTC, no GPU.

#[path = "common/child.rs"]
mod child;
#[path = "common/nvrtc.rs"]
mod nvrtc;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Duration;

use kernel_core::Error;
use kernel_core::arch::Arch;
use kernel_core::compile::{Cubin, CubinCache, compile_all_in, compile_in, compile_with_report_in};
use kernel_core::program::Program;
use kernel_core::variant::Variant;
use nvrtc::skip_without_nvrtc;

/// Uses a header, a macro and static shared memory, so that each shows when it gets lost.
static SCALE: Program = Program {
    name: "test/scale",
    source: r#"
#include "factor.cuh"
extern "C" __global__ void scale(float* x) {
    __shared__ float tile[TILE];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = factor() * tile[TILE - 1 - threadIdx.x];
}
"#,
    headers: &[("factor.cuh", "#pragma once\nfloat factor() { return 3.0f; }\n")],
};

fn arch() -> Arch {
    Arch::parse("sm_80").unwrap()
}

fn scale(cache: &CubinCache) -> Cubin {
    compile_in(cache, &SCALE, &arch(), &[("TILE", "128".into())]).expect("no fault of the cache is an error")
}

/// The same with registers and spills in the log.
fn scale_with_report(cache: &CubinCache) -> Cubin {
    compile_with_report_in(cache, &SCALE, &arch(), &[("TILE", "128".into())])
        .expect("no fault of the cache is an error")
}

fn only_file(directory: &Path) -> PathBuf {
    let files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn every_architecture_gives_machine_code_and_a_report() {
    if skip_without_nvrtc() {
        return;
    }
    for arch in Arch::ALL {
        let cubin = compile_with_report_in(&CubinCache::disabled(), &SCALE, &arch, &[("TILE", "128".into())]).unwrap();
        assert!(cubin.image.starts_with(b"\x7fELF") && !cubin.from_cache);
        let report = cubin.report();
        let usage = report.entry("scale").expect("the kernel's line in the log");
        assert!(usage.kernel && usage.registers > 0 && !usage.spills(), "{usage:?}");
        // Blackwell counts 1 KiB of reserved shared memory on top.
        assert!(usage.shared_bytes == 512 || usage.shared_bytes == 1536, "{arch}: {usage:?}");
        assert!(report.warnings.is_empty(), "{report:?}");
    }
}

#[test]
fn a_broken_source_gives_the_log_with_its_line() {
    if skip_without_nvrtc() {
        return;
    }
    static BROKEN: Program = Program {
        name: "test/broken",
        source: "extern \"C\" __global__ void k() {}\n\nextern \"C\" __global__ void b() { undeclared(); }\n",
        headers: &[],
    };
    let root = tempfile::tempdir().unwrap();
    let cache = CubinCache::at(root.path());
    for _ in 0..2 {
        let error = compile_in(&cache, &BROKEN, &arch(), &[]).unwrap_err();
        let Error::Compile { program, arch, log } = &error else { panic!("wrong kind: {error}") };
        assert_eq!((program.as_str(), arch.as_str()), ("test/broken", "sm_80"));
        assert!(log.contains("test/broken.cu(3): error") && log.contains("undeclared"), "{log}");
        assert!(error.to_string().contains(log.as_str()));
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "failures are not cached");
}

#[test]
fn bad_requests_name_what_was_wrong() {
    if skip_without_nvrtc() {
        return;
    }
    static MISSING: Program = Program { name: "test/missing", source: "#include \"nowhere.cuh\"\n", headers: &[] };
    static NUL: Program = Program { name: "test/nul", source: "int x;\0", headers: &[] };
    let disabled = CubinCache::disabled();
    let cases = [
        (compile_in(&disabled, &MISSING, &arch(), &[]), "nowhere.cuh"),
        (compile_in(&disabled, &NUL, &arch(), &[]), "the source contains a NUL byte at 6"),
        (compile_in(&disabled, &SCALE, &arch(), &[("TILE", "1\0".into())]), "NUL byte"),
        (compile_in(&disabled, &SCALE, &arch(), &[]), "TILE"),
        (compile_in(&disabled, &SCALE, &Arch::parse("sm_999").unwrap(), &[("TILE", "1".into())]), "sm_999"),
    ];
    for (result, part) in cases {
        let error = result.expect_err(part);
        assert!(matches!(error, Error::Compile { .. }) && error.to_string().contains(part), "{part:?}: {error}");
    }
}

#[test]
fn the_cache_gives_the_same_code_and_log() {
    if skip_without_nvrtc() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let cache = CubinCache::at(root.path());
    let (first, second) = (scale_with_report(&cache), scale_with_report(&cache));
    assert!(!first.from_cache && second.from_cache);
    assert_eq!((&first.image, &first.log), (&second.image, &second.log));
    assert!(second.report().entry("scale").is_some());
    let other = compile_with_report_in(&cache, &SCALE, &arch(), &[("TILE", "64".into())]).unwrap();
    assert!(!other.from_cache && other.report().entry("scale").unwrap().shared_bytes == 256);
}

#[test]
fn a_report_is_made_for_those_who_ask() {
    if skip_without_nvrtc() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let cache = CubinCache::at(root.path());
    let plain = scale(&cache);
    assert!(plain.report().usage.is_empty(), "{}", plain.log);
    let reported = scale_with_report(&cache);
    assert!(!reported.from_cache && reported.report().entry("scale").is_some());
    let again = scale(&cache);
    assert!(again.from_cache && again.log == reported.log && again.image == reported.image);
    only_file(root.path());
}

/// [`SCALE`] with tiles of so many elements.
fn variant(tile: &str) -> Variant {
    Variant { program: &SCALE, entry: "scale", defines: vec![("TILE", tile.into())], hot: true, min_arch: None }
}

#[test]
fn several_are_compiled_side_by_side() {
    if skip_without_nvrtc() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let cache = CubinCache::at(root.path());
    let tiles = [32, 64, 96, 128, 160, 192];
    let variants = tiles.map(|tile| variant(&tile.to_string()));
    for (cache, from_cache) in [(&CubinCache::disabled(), false), (&cache, false), (&cache, true)] {
        let cubins = compile_all_in(cache, &variants, &arch());
        assert_eq!(cubins.len(), variants.len());
        for (cubin, variant) in cubins.into_iter().zip(&variants) {
            let (cubin, alone) = (cubin.unwrap(), compile_in(cache, &SCALE, &arch(), &variant.defines).unwrap());
            assert_eq!((cubin.from_cache, &cubin.image), (from_cache, &alone.image), "{:?}", variant.defines);
        }
    }
    assert!(compile_all_in(&cache, &[], &arch()).is_empty());
}

#[test]
fn one_that_does_not_compile_leaves_the_others() {
    if skip_without_nvrtc() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let cache = CubinCache::at(root.path());
    let variants = [variant("32"), variant("undeclared"), variant("64"), variant("-1")];
    let cubins = compile_all_in(&cache, &variants, &arch());
    let compiled: Vec<bool> = cubins.iter().map(Result::is_ok).collect();
    assert_eq!(compiled, [true, false, true, false]);
    let message = cubins[1].as_ref().unwrap_err().to_string();
    assert!(message.contains("test/scale") && message.contains("undeclared"), "{message}");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
}

#[test]
fn damaged_files_are_compiled_again_and_repaired() {
    if skip_without_nvrtc() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let cache = CubinCache::at(root.path());
    let image = scale(&cache).image;
    let file = only_file(root.path());
    let good = fs::read(&file).unwrap();
    let middle = good.len() / 2;
    let mut flipped = good.clone();
    flipped[middle] ^= 1;
    for damaged in [Vec::new(), good[..20].to_vec(), good[..middle].to_vec(), flipped, b"garbage".repeat(1000)] {
        fs::write(&file, &damaged).unwrap();
        let again = scale(&cache);
        assert!(!again.from_cache && again.image == image);
        assert!(scale(&cache).from_cache, "repaired");
    }
}

#[test]
fn unusable_places_only_cost_a_compilation() {
    if skip_without_nvrtc() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let occupied = root.path().join("occupied");
    scale(&CubinCache::at(&occupied));
    let file = only_file(&occupied);
    fs::remove_file(&file).unwrap();
    // A directory that a rename cannot replace stands where the file belongs.
    fs::create_dir_all(file.join("full")).unwrap();
    let plain = root.path().join("file");
    fs::write(&plain, "not a directory").unwrap();
    for directory in [occupied.clone(), plain.clone(), plain.join("below"), PathBuf::from("/dev/null/x")] {
        for _ in 0..2 {
            let cubin = scale(&CubinCache::at(&directory));
            assert!(!cubin.from_cache && cubin.image.starts_with(b"\x7fELF"), "{}", directory.display());
        }
    }
    assert_eq!(fs::read_to_string(&plain).unwrap(), "not a directory");
    assert_eq!(only_file(&occupied), file, "no temporary files are left behind");
}

#[test]
fn threads_share_one_compilation() {
    if skip_without_nvrtc() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let cache = CubinCache::at(root.path());
    let barrier = Barrier::new(4);
    let cubins: Vec<Cubin> = std::thread::scope(|scope| {
        let start = || {
            barrier.wait();
            scale_with_report(&cache)
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // ptxas writes its own run time into the log, to the microsecond: equal logs come from one run.
    assert!(cubins[0].log.contains("Compile time"), "{}", cubins[0].log);
    for cubin in &cubins {
        assert_eq!((&cubin.image, &cubin.log), (&cubins[0].image, &cubins[0].log));
    }
    only_file(root.path());
}

#[test]
fn processes_can_share_a_cache() {
    if skip_without_nvrtc() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = child::command("child_compiles");
        command.env("TEST_DIRECTORY", root.path()).spawn().expect("starting a child process")
    };
    let children = [start(), start()];
    fs::write(root.path().join("go"), "").unwrap();
    children.into_iter().for_each(child::expect_pass);
    let cache = CubinCache::at(root.path().join("cache"));
    assert!(scale(&cache).from_cache);
    only_file(cache.directory().unwrap());
}

#[test]
#[ignore = "the child process of processes_can_share_a_cache"]
fn child_compiles() {
    let Some(root) = std::env::var_os("TEST_DIRECTORY").map(PathBuf::from) else {
        eprintln!("skipped: child_compiles is run by processes_can_share_a_cache");
        return;
    };
    while !root.join("go").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let cache = CubinCache::at(root.join("cache"));
    for _ in 0..20 {
        assert!(scale(&cache).image.starts_with(b"\x7fELF"));
        // Make room for the other process to write while this one reads.
        if let Ok(entries) = fs::read_dir(root.join("cache")) {
            for entry in entries.flatten().filter(|entry| entry.path().extension().is_some_and(|ext| ext == "cubin")) {
                // The other process may have been first.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    scale(&cache);
}
