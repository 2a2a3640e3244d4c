//! Whether NVRTC is here.

use std::io::Write;

use kernel_core::probe::{Library, ensure};

/// Says on stderr that the calling test is skipped and returns true when there is no NVRTC; fails instead when
/// `KERNELS_REQUIRE_NVRTC=1`.
pub(crate) fn skip_without_nvrtc() -> bool {
    let Err(error) = ensure(Library::Nvrtc) else { return false };
    assert!(std::env::var("KERNELS_REQUIRE_NVRTC").as_deref() != Ok("1"), "KERNELS_REQUIRE_NVRTC=1, but {error}");
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    // Not eprintln, which the test harness keeps to itself when a test passes.
    let line = format!("{test}: skipped: NVRTC not found: {error}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("writing to stderr");
    true
}
