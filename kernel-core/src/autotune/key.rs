//! What a measured choice depends on, and whether to measure at all.

use std::fmt;
use std::str::FromStr;

use crate::dtype::DType;
use crate::error::{Error, Result};

/// The variable that sets the mode.
pub const AUTOTUNE_VARIABLE: &str = "KERNELS_AUTOTUNE";

/// Whether to measure candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AutotuneMode {
    /// Never measure and never look into the cache: take the first candidate. Also what a caller passes for problems so small
    /// that measuring costs more than it gains.
    Off,
    /// Measure what the cache does not hold.
    #[default]
    On,
    /// Measure again and replace what the cache holds.
    Force,
}

impl AutotuneMode {
    /// Reads `KERNELS_AUTOTUNE`; unset or empty is [`AutotuneMode::On`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for anything but `off`, `on` and `force`.
    pub fn from_env() -> Result<Self> {
        match std::env::var_os(AUTOTUNE_VARIABLE).filter(|value| !value.is_empty()) {
            None => Ok(AutotuneMode::default()),
            Some(value) => value.to_string_lossy().parse(),
        }
    }
}

impl fmt::Display for AutotuneMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            AutotuneMode::Off => "off",
            AutotuneMode::On => "on",
            AutotuneMode::Force => "force",
        })
    }
}

impl FromStr for AutotuneMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(AutotuneMode::Off),
            "on" => Ok(AutotuneMode::On),
            "force" => Ok(AutotuneMode::Force),
            _ => Err(Error::Unsupported { what: format!("{AUTOTUNE_VARIABLE}={text:?}; expected off, on or force") }),
        }
    }
}

/// Everything a measured choice depends on, next to the set of candidates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TuneKey {
    /// The kernel family and, when it tunes several things, which: `siglip`.
    pub family: &'static str,
    /// The device's name.
    pub gpu: String,
    /// Its number of multiprocessors: devices of one name differ in it.
    pub sm_count: u32,
    /// The driver's CUDA version, such as 13000.
    pub driver: u32,
    /// [`crate::program::source_hash`] of the sources that are measured.
    pub source_hash: String,
    /// The dtype of the operands.
    pub dtype: DType,
    /// The problem's shape, rounded so that near sizes share a choice: `b8192 d768`.
    pub bucket: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_round_trip_and_errors_name_the_choices() {
        for mode in [AutotuneMode::Off, AutotuneMode::On, AutotuneMode::Force] {
            assert_eq!(mode.to_string().parse::<AutotuneMode>().unwrap(), mode);
        }
        let message = "maybe".parse::<AutotuneMode>().unwrap_err().to_string();
        assert!(message.contains("KERNELS_AUTOTUNE") && message.contains("off, on or force"), "{message}");
    }
}
