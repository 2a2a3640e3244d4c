//! From a [`Program`] to a [`Cubin`]: the flags, the key, the cache, and one compilation at a time for each key.
//!
//! Registers and spills are left to those who ask: NVRTC that reports them (`--ptxas-options=-v`) compiles one program at a time, on whatever threads.

use std::collections::HashMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::thread;

use super::cache::CubinCache;
use super::log::CompileReport;
use super::nvrtc;
use crate::arch::Arch;
use crate::error::{Error, Result};
use crate::program::{FieldHash, Program, hash_program};
use crate::variant::Variant;

/// Machine code for one architecture, with what the compiler said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    /// The CUBIN, an ELF file for `cuModuleLoadData`.
    pub image: Vec<u8>,
    /// NVRTC's log: warnings, and from [`compile_with_report_in`] ptxas's registers and spills. What is read from the cache has the log that was kept with it: that of
    /// either of the two, where registers and spills are not asked for.
    pub log: String,
    /// Whether it came from the disk cache.
    pub from_cache: bool,
}

impl Cubin {
    /// Registers, spills and warnings, read out of the log.
    pub fn report(&self) -> CompileReport {
        CompileReport::parse(&self.log)
    }
}

/// Compiles `program` for `arch` with the macros `defines` (name, value), through the user's cache
/// ([`CubinCache::default_location`]).
///
/// Macros reach NVRTC's built-in headers too, so their names must not be common identifiers: `-DT=1` breaks every template there.
///
/// Costs a few milliseconds on a hit (the first call in a process also loads NVRTC) and up to seconds when it compiles. Threads
/// that ask for the same at the same time share one compilation.
///
/// # Errors
/// [`Error::MissingLibrary`] without NVRTC, [`Error::Unsupported`] for a macro name that is no C identifier,
/// [`Error::Compile`] with the compiler's log when the source does not compile.
pub fn compile(program: &Program, arch: &Arch, defines: &[(&str, String)]) -> Result<Cubin> {
    compile_in(&CubinCache::default_location(), program, arch, defines)
}

/// [`compile()`] with a cache of the caller's choice.
///
/// # Errors
/// As [`compile()`]. Nothing about the cache is an error.
pub fn compile_in(cache: &CubinCache, program: &Program, arch: &Arch, defines: &[(&str, String)]) -> Result<Cubin> {
    cached(cache, program, arch, defines, Log::Warnings)
}

/// [`compile_in`] with registers and spills in the log, for [`Cubin::report`]. The code is the same, and so is its place in the cache; what lies there without
/// them is compiled again. Compilations with a report do not run side by side: NVRTC makes one wait for the other.
///
/// # Errors
/// As [`compile_in`].
pub fn compile_with_report_in(
    cache: &CubinCache,
    program: &Program,
    arch: &Arch,
    defines: &[(&str, String)],
) -> Result<Cubin> {
    cached(cache, program, arch, defines, Log::Resources)
}

/// [`compile_in`] for several kernels side by side, on as many threads as this process may run at once. In their order; kernels of one program with the same
/// macros are one program, and should be here once.
pub fn compile_all_in(cache: &CubinCache, variants: &[Variant], arch: &Arch) -> Vec<Result<Cubin>> {
    let of = |Variant { program, defines, .. }: &Variant| compile_in(cache, program, arch, defines);
    let results: Vec<OnceLock<Result<Cubin>>> = variants.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(variant) = variants.get(at) else { return };
            // Nobody else has this index.
            let _ = results[at].set(of(variant));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(variants.len());
    thread::scope(|scope| {
        // This thread is one of them. What cannot be started is no loss but of time.
        for _ in 1..threads {
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    // One for each, as the threads have all ended: but a caller pairs them by their places, so none may ever be left out.
    variants.iter().zip(results).map(|(variant, result)| result.into_inner().unwrap_or_else(|| of(variant))).collect()
}

/// What a log holds beside errors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Log {
    Warnings,
    /// Registers and spills too.
    Resources,
}

impl Log {
    fn is_met_by(self, log: &str) -> bool {
        self == Log::Warnings || !CompileReport::parse(log).usage.is_empty()
    }
}

fn cached(
    cache: &CubinCache,
    program: &Program,
    arch: &Arch,
    defines: &[(&str, String)],
    wanted: Log,
) -> Result<Cubin> {
    let options = options(arch, defines)?;
    let version = nvrtc::nvrtc_version()?;
    let key = key(program, &options, version);
    let stem = format!("{}-{arch}", program.name);

    // Threads that want the same wait here for the first of them, and take its result.
    let slot = Slot::enter(cache, &key);
    let mut done = slot.result.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cubin) = done.as_ref().filter(|cubin| wanted.is_met_by(&cubin.log)) {
        return Ok(cubin.clone());
    }
    let cubin = match cache.load(&stem, &key).filter(|(_, log)| wanted.is_met_by(log)) {
        Some((image, log)) => Cubin { image, log, from_cache: true },
        None => {
            let cubin = run(program, arch, options, wanted)?;
            cache.store(&stem, &key, &cubin.image, &cubin.log);
            cubin
        }
    };
    *done = Some(cubin.clone());
    Ok(cubin)
}

fn run(program: &Program, arch: &Arch, mut options: Vec<String>, wanted: Log) -> Result<Cubin> {
    if wanted == Log::Resources {
        options.push("--ptxas-options=-v".to_owned());
    }
    let headers: Vec<(&str, &str)> = program.all_headers().collect();
    let compiled = nvrtc::run(&format!("{}.cu", program.name), program.source, &headers, &options)?;
    match compiled.image {
        Ok(image) => Ok(Cubin { image, log: compiled.log, from_cache: false }),
        Err(failure) => Err(Error::Compile {
            program: program.name.to_owned(),
            arch: arch.to_string(),
            log: if compiled.log.trim().is_empty() { failure } else { compiled.log },
        }),
    }
}

/// The compiler's command line, as far as the code depends on it.
fn options(arch: &Arch, defines: &[(&str, String)]) -> Result<Vec<String>> {
    let mut options = vec![
        // A real architecture: a virtual one would give PTX and an empty CUBIN.
        format!("--gpu-architecture={arch}"),
        "--std=c++17".to_owned(),
        // Functions without __device__ are device functions: there is no host side here.
        "-default-device".to_owned(),
    ];
    for (name, value) in defines {
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(Error::Unsupported { what: format!("macro name {name:?}; expected a C identifier") });
        }
        options.push(format!("-D{name}={value}"));
    }
    Ok(options)
}

/// Everything that the CUBIN depends on.
fn key(program: &Program, options: &[String], (major, minor): (u32, u32)) -> String {
    let mut hash = FieldHash::new();
    hash_program(&mut hash, program);
    for option in options {
        hash.field(option);
    }
    hash.field(&format!("nvrtc {major}.{minor}"));
    hash.hex()
}

type SlotKey = (Option<PathBuf>, String);
type Cell = Arc<Mutex<Option<Cubin>>>;

/// Compilations under way in this process. An entry lives as long as a thread holds its slot.
static UNDER_WAY: LazyLock<Mutex<HashMap<SlotKey, Cell>>> = LazyLock::new(Mutex::default);

struct Slot {
    key: SlotKey,
    result: Cell,
}

impl Slot {
    fn enter(cache: &CubinCache, key: &str) -> Slot {
        let key = (cache.directory().map(PathBuf::from), key.to_owned());
        let mut map = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        let result = map.entry(key.clone()).or_default().clone();
        Slot { key, result }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut map = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        // Two owners are the map and this slot: the last one out clears the entry.
        if Arc::strong_count(&self.result) == 2 {
            map.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program { name: "p", source: "s", headers: &[] };

    #[test]
    fn key_follows_options_order_and_version() {
        let options_of =
            |arch: &str, defines: &[(&str, String)]| options(&Arch::parse(arch).unwrap(), defines).unwrap();
        let base = key(&PROGRAM, &options_of("sm_80", &[]), (13, 0));
        let others = [
            key(&PROGRAM, &options_of("sm_89", &[]), (13, 0)),
            key(&PROGRAM, &options_of("sm_80", &[("A", "1".into())]), (13, 0)),
            key(&PROGRAM, &options_of("sm_80", &[]), (13, 1)),
            key(&Program { source: "t", ..PROGRAM }, &options_of("sm_80", &[]), (13, 0)),
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn macro_names_are_checked() {
        let arch = Arch::parse("sm_80").unwrap();
        for name in ["", "1A", "A B", "A=1", "-I"] {
            let message = options(&arch, &[(name, "1".into())]).expect_err(name).to_string();
            assert!(message.contains(&format!("{name:?}")) && message.contains("C identifier"), "{message}");
        }
        assert!(options(&arch, &[("_TILE_M2", "128".into())]).unwrap().contains(&"-D_TILE_M2=128".to_owned()));
    }

    #[test]
    fn slots_leave_no_trace() {
        let cache = CubinCache::at("/slots");
        let (a, b) = (Slot::enter(&cache, "k"), Slot::enter(&cache, "k"));
        assert!(Arc::ptr_eq(&a.result, &b.result));
        drop(a);
        assert!(UNDER_WAY.lock().unwrap().contains_key(&b.key));
        let key = b.key.clone();
        drop(b);
        assert!(!UNDER_WAY.lock().unwrap().contains_key(&key));
    }
}
