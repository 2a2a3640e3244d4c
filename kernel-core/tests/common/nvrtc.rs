//! Whether NVRTC is here.

use kernel_core::probe::{Library, ensure};

/// Says on stderr that the calling test is skipped and returns true when there is no NVRTC; fails instead when
/// `KERNELS_REQUIRE_NVRTC=1`.
pub(crate) fn skip_without_nvrtc() -> bool {
    let Err(error) = ensure(Library::Nvrtc) else { return false };
    assert!(std::env::var("KERNELS_REQUIRE_NVRTC").as_deref() != Ok("1"), "KERNELS_REQUIRE_NVRTC=1, but {error}");
    eprintln!("skipped: NVRTC not found: {error}");
    true
}
