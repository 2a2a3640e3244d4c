//! Libraries that are absent or broken give an error value. Each case runs in a process of its own, because the search runs
//! once a process.

#[path = "common/child.rs"]
mod child;
#[path = "common/nvrtc.rs"]
mod nvrtc;

use std::fs;
use std::path::Path;

use kernel_core::Error;
use kernel_core::arch::Arch;
use kernel_core::compile::{CubinCache, compile_in};
use kernel_core::probe::{LIBRARY_PATH_VARIABLE, Library, ensure, status};
use kernel_core::program::Program;

static EMPTY: Program = Program { name: "test/empty", source: "extern \"C\" __global__ void k() {}\n", headers: &[] };

#[test]
fn absent_libraries_are_errors_that_say_what_to_do() {
    let nowhere = tempfile::tempdir().unwrap();
    let mut command = child::command("child_finds_nothing");
    command.env(LIBRARY_PATH_VARIABLE, nowhere.path()).env("TEST_TRIED", nowhere.path());
    child::expect_pass(command.spawn().unwrap());
}

#[test]
#[cfg(target_os = "linux")]
fn broken_libraries_are_errors_that_say_why() {
    let broken = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libnvrtc.so", "libcublasLt.so"] {
        fs::write(broken.path().join(name), "no ELF file, but longer than one's header is: ".repeat(10)).unwrap();
    }
    let mut command = child::command("child_finds_nothing");
    command.env(LIBRARY_PATH_VARIABLE, broken.path()).env("TEST_TRIED", "invalid ELF header");
    child::expect_pass(command.spawn().unwrap());
}

#[test]
#[ignore = "the child process of the tests above"]
fn child_finds_nothing() {
    let Some(want) = std::env::var_os("TEST_TRIED") else {
        eprintln!("skipped: child_finds_nothing is run by other tests");
        return;
    };
    let want = want.to_string_lossy();
    for library in Library::ALL {
        let error = ensure(library).expect_err("nothing usable is in the only directory");
        let Error::MissingLibrary { library: name, tried, hint } = &error else { panic!("wrong kind: {error}") };
        assert_eq!((*name, *hint), (library.name(), library.hint()));
        assert!(tried.iter().any(|tried| tried.contains(want.as_ref())), "{tried:?}");
        assert!(status(library).found.is_none());
    }
    let error = compile_in(&CubinCache::disabled(), &EMPTY, &Arch::ALL[0], &[]).unwrap_err();
    assert!(matches!(error, Error::MissingLibrary { .. }), "wrong kind: {error}");
    assert!(error.to_string().contains("cargo xtask toolchain"), "{error}");
}

/// A child that has only a home directory: whatever this machine has by default, nothing panics.
#[test]
fn a_bare_environment_never_panics() {
    let home = tempfile::tempdir().unwrap();
    let mut command = child::command("child_looks");
    command.env_clear().env("HOME", home.path()).env("TEST_LOOK", "1");
    child::expect_pass(command.spawn().unwrap());
}

/// NVRTC in the toolchain directory of the cache is found, with its builtins, without any variable that points there.
#[test]
#[cfg(target_os = "linux")]
fn nvrtc_in_the_toolchain_directory_is_found() {
    if nvrtc::skip_without_nvrtc() {
        return;
    }
    let found = status(Library::Nvrtc).found.unwrap();
    let source = fs::canonicalize(found).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let lib = cache.path().join("toolchain/cuda-13.0/nvidia/cu13/lib");
    fs::create_dir_all(&lib).unwrap();
    for entry in fs::read_dir(source.parent().unwrap()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // As the wheel has it: versioned names only.
        if name.starts_with("libnvrtc") && !name.ends_with(".so") {
            std::os::unix::fs::symlink(entry.path(), lib.join(name)).unwrap();
        }
    }
    let mut command = child::command("child_looks");
    command.env_clear().env("FUSED_KERNELS_CACHE_DIR", cache.path()).env("TEST_LOOK", "1").env("TEST_NEEDS_NVRTC", "1");
    child::expect_pass(command.spawn().unwrap());
}

#[test]
#[ignore = "the child process of the tests above"]
fn child_looks() {
    if std::env::var_os("TEST_LOOK").is_none() {
        eprintln!("skipped: child_looks is run by other tests");
        return;
    }
    for library in Library::ALL {
        let status = status(library);
        assert_eq!(ensure(library).is_ok(), status.found.is_some(), "{status:?}");
        assert!(status.found.is_some() || !status.tried.is_empty());
    }
    match compile_in(&CubinCache::disabled(), &EMPTY, &Arch::ALL[0], &[]) {
        Ok(cubin) => assert!(cubin.image.starts_with(b"\x7fELF")),
        Err(error) => {
            assert!(matches!(error, Error::MissingLibrary { .. }), "wrong kind: {error}");
            assert!(std::env::var_os("TEST_NEEDS_NVRTC").is_none(), "{error}");
        }
    }
    if let Some(found) = status(Library::Nvrtc).found {
        assert!(Path::new(&found).exists(), "{found}");
    }
}
