//! Where caches live on disk.

use std::path::PathBuf;

use etcetera::BaseStrategy;

/// The variable that names the cache directory.
pub const CACHE_DIR_VARIABLE: &str = "FUSED_KERNELS_CACHE_DIR";

/// The directory of this project's caches: compiled kernels, measured choices and the installed toolchain.
///
/// `FUSED_KERNELS_CACHE_DIR` when it is set and not empty, else `fused-kernels` below `$XDG_CACHE_HOME` (below `~/.cache` when that
/// is unset). It need not exist. For a user without a home directory the answer is a path that cannot exist, which turns
/// caching off: a directory that other users may write, such as `/tmp`, is no place to load machine code from.
pub fn cache_dir() -> PathBuf {
    if let Some(directory) = std::env::var_os(CACHE_DIR_VARIABLE).filter(|value| !value.is_empty()) {
        return PathBuf::from(directory);
    }
    match etcetera::choose_base_strategy() {
        Ok(strategy) => strategy.cache_dir().join("fused-kernels"),
        Err(_) => PathBuf::from(if cfg!(windows) { "NUL" } else { "/dev/null" }).join("fused-kernels"),
    }
}
