//! Looking for the CUDA libraries before the bindings do.
//!
//! The bindings load libraries on first use and panic when one is absent. [`ensure`] looks first, in more places, and gives an
//! error value. What it finds is loaded and stays loaded, so that the bindings' own look-up by name succeeds.

use std::ffi::c_int;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys::CUDA_VERSION;
use libloading::Library as Handle;

use crate::cache_dir::cache_dir;
use crate::error::{Error, Result};

/// The variable that names the only directories (separated as in `PATH`) to look in, instead of the loader's path and all others.
pub const LIBRARY_PATH_VARIABLE: &str = "FUSED_KERNELS_LIBRARY_PATH";

/// A library that is needed at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Library {
    /// `libcuda`, part of the NVIDIA driver.
    Driver,
    /// `libnvrtc`, the run-time compiler.
    Nvrtc,
    /// `libcublasLt`, matrix products.
    CublasLt,
}

/// What is known about a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryStatus {
    /// The file that was loaded, when there is one.
    pub found: Option<String>,
    /// Its version as it tells itself, such as `13.0`. For the driver, the newest CUDA version that it supports.
    pub version: Option<String>,
    /// The places that were searched, in order, up to the one where it was found.
    pub tried: Vec<String>,
}

/// What the search for one library came to; kept for the life of the process.
#[derive(Default)]
struct Outcome {
    loaded: Option<&'static Handle>,
    found: Option<String>,
    version: Option<String>,
    tried: Vec<String>,
}

impl Library {
    /// Every library.
    pub const ALL: [Library; 3] = [Library::Driver, Library::Nvrtc, Library::CublasLt];

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Library::Driver => "the CUDA driver library (libcuda)",
            Library::Nvrtc => "the CUDA run-time compiler (libnvrtc)",
            Library::CublasLt => "cuBLASLt (libcublasLt)",
        }
    }

    /// What to do when it is missing.
    pub const fn hint(self) -> &'static str {
        match self {
            Library::Driver => "install the NVIDIA driver: libcuda comes with it, not with the CUDA toolkit",
            Library::Nvrtc => {
                "run `cargo xtask toolchain` in this project's repository, or install NVRTC 12 or newer (CUDA toolkit, or `pip \
                 install nvidia-cuda-nvrtc`) and put its directory into LD_LIBRARY_PATH, or set CUDA_HOME"
            }
            Library::CublasLt => {
                "run `cargo xtask toolchain --cublas` in this project's repository, or install cuBLAS 12 or newer (CUDA toolkit, or \
                 `pip install nvidia-cublas`) and put its directory into LD_LIBRARY_PATH, or set CUDA_HOME"
            }
        }
    }

    const fn stem(self) -> &'static str {
        match self {
            Library::Driver => "cuda",
            Library::Nvrtc => "nvrtc",
            Library::CublasLt => "cublasLt",
        }
    }

    /// Symbols without which the library is too old; the bindings would panic on the first that is absent.
    const fn symbols(self) -> &'static [&'static str] {
        match self {
            Library::Driver => &["cuDriverGetVersion", "cuLaunchKernelEx", "cuTensorMapEncodeTiled"],
            Library::Nvrtc => &["nvrtcVersion", "nvrtcGetCUBINSize", "nvrtcGetCUBIN"],
            Library::CublasLt => &["cublasLtGetVersion", "cublasLtMatmul", "cublasLtMatmulAlgoGetHeuristic"],
        }
    }

    /// File names under which the bindings look for it, in their order.
    fn file_names(self) -> Vec<String> {
        let stem = self.stem();
        let major = CUDA_VERSION / 1000;
        let mut names = if cfg!(windows) {
            let stem = if self == Library::Driver { "nvcuda" } else { stem };
            vec![
                format!("{stem}.dll"),
                format!("{stem}64_{major}.dll"),
                format!("{stem}64_12.dll"),
                format!("{stem}64_{major}0_0.dll"),
            ]
        } else {
            let last = if self == Library::Driver { "1" } else { "12" };
            vec![format!("lib{stem}.so"), format!("lib{stem}.so.{major}"), format!("lib{stem}.so.{last}")]
        };
        names.dedup();
        names
    }

    fn outcome(self) -> &'static Outcome {
        static OUTCOMES: [OnceLock<Outcome>; 3] = [const { OnceLock::new() }; 3];
        OUTCOMES[self as usize].get_or_init(|| search(self))
    }
}

/// Makes sure that `library` is loaded and can be called through the bindings. The search runs once per process; later calls are free.
///
/// Searched, in this order: the loader's path, `$CUDA_HOME` and `$CUDA_PATH`, `/usr/local/cuda`, and the toolchain in the cache
/// directory (see [`cache_dir`]). The driver is looked for on the loader's path and where WSL and NixOS keep it.
///
/// # Errors
/// [`Error::MissingLibrary`] with the places that were tried and what to install.
pub fn ensure(library: Library) -> Result<()> {
    let outcome = library.outcome();
    match outcome.loaded {
        Some(_) => Ok(()),
        None => {
            Err(Error::MissingLibrary { library: library.name(), tried: outcome.tried.clone(), hint: library.hint() })
        }
    }
}

/// Where `library` was found, its version, and where it was looked for. Loads it when it is there.
pub fn status(library: Library) -> LibraryStatus {
    let Outcome { found, version, tried, .. } = library.outcome();
    LibraryStatus { found: found.clone(), version: version.clone(), tried: tried.clone() }
}

fn search(library: Library) -> Outcome {
    let mut outcome = Outcome::default();
    let names = library.file_names();
    let only = std::env::var_os(LIBRARY_PATH_VARIABLE).filter(|value| !value.is_empty());
    if only.is_none() && accept_by_name(library, &names, &mut outcome) {
        return outcome;
    }
    let directories = match &only {
        Some(path) => std::env::split_paths(path).collect(),
        None => directories(library, &names),
    };
    for directory in directories {
        outcome.tried.push(directory.display().to_string());
        for file in names.iter().map(|name| directory.join(name)).filter(|file| file.exists()) {
            if library == Library::Nvrtc {
                preload_builtins(&directory);
            }
            match open(file.as_os_str()) {
                // The bindings look by name: they must come to a usable library too, and that one is reported.
                Ok(_) if accept_by_name(library, &names, &mut outcome) => return outcome,
                Ok(_) => {
                    outcome.tried.push(format!("{}: not reachable by name or not usable", file.display()));
                }
                Err(error) => outcome.tried.push(format!("{}: {}", file.display(), reason(&error))),
            }
        }
    }
    outcome
}

/// Loads the first of `names` that the loader finds, on its path or among the libraries loaded already, and checks it.
fn accept_by_name(library: Library, names: &[String], outcome: &mut Outcome) -> bool {
    let mut failures = Vec::new();
    for name in names {
        let handle = match open(name.as_ref()) {
            Ok(handle) => handle,
            Err(error) => {
                // "Not there" is the common case and says nothing; anything else (another architecture, a broken link) does.
                let text = reason(&error);
                if cfg!(unix) && !text.contains("cannot open shared object file") {
                    failures.push(format!("{name}: {text}"));
                }
                continue;
            }
        };
        let missing = library.symbols().iter().find(|symbol| address(handle, symbol).is_none());
        if let Some(symbol) = missing {
            // The bindings would take this one too, so a good one further down the list does not help.
            failures.push(format!("{name}: too old, it lacks {symbol}"));
            break;
        }
        outcome.found = Some(file_of(handle, library.symbols()[0]).unwrap_or_else(|| name.clone()));
        outcome.version = version(library, handle);
        outcome.loaded = Some(handle);
        break;
    }
    if outcome.loaded.is_none() {
        outcome.tried.push(format!("the loader's path ({})", names.join(", ")));
        outcome.tried.append(&mut failures);
    }
    outcome.loaded.is_some()
}

/// Loads a library for the life of the process: the bindings keep function pointers into it.
fn open(name: &std::ffi::OsStr) -> std::result::Result<&'static Handle, libloading::Error> {
    // SAFETY: NVIDIA's libraries run only their own initialisers when they are loaded, and never get unloaded here.
    let handle = unsafe { Handle::new(name) }?;
    Ok(Box::leak(Box::new(handle)))
}

/// The loader's own words, which are in the source of the error.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| source.to_string())
}

/// NVRTC loads its builtins by name at the first compilation, which fails when only NVRTC itself was found by path.
fn preload_builtins(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("libnvrtc-builtins.so") || name.starts_with("nvrtc-builtins64") {
            // Without it, the first compilation fails with an error that names it.
            let _ = open(entry.path().as_os_str());
        }
    }
}

/// The directories to search after the loader's path.
fn directories(library: Library, names: &[String]) -> Vec<PathBuf> {
    if library == Library::Driver {
        // Not the toolkit's: it has a stub of libcuda that fails on every call.
        return vec!["/usr/lib/wsl/lib".into(), "/run/opengl-driver/lib".into()];
    }
    let mut roots: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(std::env::var_os)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .collect();
    roots.push("/usr/local/cuda".into());
    roots.dedup();
    let within = if cfg!(windows) { ["bin/x64", "bin"] } else { ["lib64", "lib"] };
    let mut directories: Vec<PathBuf> =
        roots.iter().flat_map(|root| within.iter().map(move |name| root.join(name))).collect();
    let toolchain = cache_dir().join("toolchain");
    let before = directories.len();
    find_directories(&toolchain, names, 6, &mut directories);
    if directories.len() == before {
        directories.push(toolchain);
    }
    directories
}

/// Directories below `root` that hold a file of one of `names`, newest version (last by name) first.
fn find_directories(root: &Path, names: &[String], depth: usize, found: &mut Vec<PathBuf>) {
    if names.iter().any(|name| root.join(name).is_file()) {
        found.push(root.to_owned());
    }
    let Ok(entries) = fs::read_dir(root) else { return };
    if depth == 0 {
        return;
    }
    // Links are not followed: they cannot lead in circles then, and the toolchain's own lead to places that are visited anyway.
    let mut inner: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    inner.sort();
    for directory in inner.iter().rev() {
        find_directories(directory, names, depth - 1, found);
    }
}

fn address(handle: &'static Handle, symbol: &str) -> Option<usize> {
    // SAFETY: the symbol is only looked at as an address; it is never called or read through this type.
    let symbol = unsafe { handle.get::<*const ()>(symbol.as_bytes()) }.ok()?;
    Some(*symbol as usize)
}

/// The file that `symbol` was loaded from, where the system tells (Linux).
fn file_of(handle: &'static Handle, symbol: &str) -> Option<String> {
    let address = address(handle, symbol)?;
    file_in_maps(&fs::read_to_string("/proc/self/maps").ok()?, address)
}

/// Finds the mapped file that holds `address` in the text of `/proc/self/maps`: `start-end perms offset device inode   path`.
fn file_in_maps(maps: &str, address: usize) -> Option<String> {
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let path = rest.find('/').map(|at| &rest[at..])?;
        range.contains(&address).then(|| path.to_owned())
    })
}

/// The version as the library itself tells.
fn version(library: Library, handle: &'static Handle) -> Option<String> {
    match library {
        Library::Driver => {
            let mut number: c_int = 0;
            // SAFETY: the signature is that of the CUDA driver API; the call needs no initialisation and writes one int.
            let status = unsafe {
                handle.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion").ok()?(&mut number)
            };
            (status == 0).then(|| format!("{}.{}", number / 1000, number % 1000 / 10))
        }
        Library::Nvrtc => {
            let (mut major, mut minor): (c_int, c_int) = (0, 0);
            // SAFETY: the signature is that of NVRTC; the call writes two ints.
            let status = unsafe {
                handle.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(b"nvrtcVersion").ok()?(
                    &mut major, &mut minor,
                )
            };
            (status == 0).then(|| format!("{major}.{minor}"))
        }
        Library::CublasLt => {
            // SAFETY: the signature is that of cuBLASLt; the call takes nothing and returns a size_t.
            let number = unsafe { handle.get::<unsafe extern "C" fn() -> usize>(b"cublasLtGetVersion").ok()?() };
            Some(format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ensure_and_status_agree() {
        for library in Library::ALL {
            let status = status(library);
            match ensure(library) {
                Ok(()) => assert!(status.found.is_some() && status.version.is_some(), "{status:?}"),
                Err(Error::MissingLibrary { library: name, tried, hint }) => {
                    assert_eq!((name, hint), (library.name(), library.hint()));
                    assert!(status.found.is_none() && !tried.is_empty(), "{status:?}");
                }
                Err(other) => panic!("wrong kind: {other}"),
            }
        }
    }

    #[test]
    fn toolchain_directories_are_found_newest_first() {
        let root = tempfile::tempdir().unwrap();
        for version in ["cuda-12.8", "cuda-13.0"] {
            let lib = root.path().join(version).join("nvidia/cu/lib");
            fs::create_dir_all(&lib).unwrap();
            fs::write(lib.join("libx.so"), "").unwrap();
        }
        fs::create_dir_all(root.path().join("other/lib")).unwrap();
        let mut found = Vec::new();
        find_directories(root.path(), &["libx.so".to_owned()], 6, &mut found);
        let want = ["cuda-13.0/nvidia/cu/lib", "cuda-12.8/nvidia/cu/lib"].map(|path| root.path().join(path));
        assert_eq!(found, want);
    }

    #[test]
    fn file_is_read_from_the_maps() {
        let maps = "00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/a b\n7f00-7fff rw-p 00000000 00:00 0\n";
        assert_eq!(file_in_maps(maps, 0x400010).as_deref(), Some("/usr/bin/a b"));
        assert_eq!(file_in_maps(maps, 0x7f10), None);
        assert_eq!(file_in_maps(maps, 0x1), None);
    }
}
