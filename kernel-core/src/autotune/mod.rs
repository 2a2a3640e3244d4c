//! A persistent cache of measured choices: which of several kernels or tile shapes is fastest for a problem on a device.
//!
//! [`AutotuneCache::tune`] measures the candidates once and remembers every timing on disk, for this and later processes.
//! `KERNELS_AUTOTUNE=off|on|force` controls it ([`AutotuneMode::from_env`]). A cache that cannot be read or written costs a
//! measurement and nothing else.

mod cache;
mod key;
mod store;

pub use cache::AutotuneCache;
pub use key::{AUTOTUNE_VARIABLE, AutotuneMode, TuneKey};
pub use store::Timing;
