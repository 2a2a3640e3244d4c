//! The card that a command runs on, and what is recorded about it.

use crate::results::Header;
use crate::source_hash;
use anyhow::{Result, bail};
use kernel_core::probe::{self, Library};
use kernel_core::{Error, Gpu};
use std::process::Command;
use std::time::SystemTime;
use std::{fs, str};

/// The device of this ordinal, or why there is none; other failures (a driver that is there and does not work) are errors.
pub(crate) fn open(ordinal: usize) -> Result<Result<Gpu, Error>> {
    match Gpu::new(ordinal) {
        Ok(gpu) => Ok(Ok(gpu)),
        Err(absent @ (Error::MissingLibrary { .. } | Error::NoDriver { .. } | Error::NoDevice { .. })) => {
            Ok(Err(absent))
        }
        Err(error) => Err(error.into()),
    }
}

/// What a results file says of the card, the software and the time.
pub(crate) fn header(gpu: &Gpu) -> Header {
    Header {
        gpu: gpu.info().name.clone(),
        driver: driver_version().unwrap_or_else(|| "unknown".to_owned()),
        cuda: cuda_version(gpu),
        date: now(),
        source_hash: source_hash::ALL.to_owned(),
    }
}

/// RFC 3339, UTC, to the second.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// NVRTC's version, which is what compiled the kernels; the driver's CUDA version where NVRTC does not tell.
fn cuda_version(gpu: &Gpu) -> String {
    let driver = gpu.info().driver_version;
    probe::status(Library::Nvrtc).version.unwrap_or_else(|| format!("{}.{}", driver / 1000, driver % 1000 / 10))
}

/// The version of the kernel module, or what nvidia-smi says.
fn driver_version() -> Option<String> {
    let module = fs::read_to_string("/proc/driver/nvidia/version").ok();
    module.as_deref().and_then(version_in).or_else(|| {
        let smi =
            Command::new("nvidia-smi").args(["--query-gpu=driver_version", "--format=csv,noheader"]).output().ok()?;
        version_in(str::from_utf8(&smi.stdout).ok()?.lines().next()?)
    })
}

/// The first word made of numbers and at least one dot.
fn version_in(text: &str) -> Option<String> {
    let numeric = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.split_whitespace().find(numeric).map(str::to_owned)
}

/// Demands that the card is the one that was asked for: `auto` takes any.
pub(crate) fn require(gpu: &Gpu, wanted: &str) -> Result<()> {
    let name = &gpu.info().name;
    if wanted != "auto" && crate::slug::of(name) != wanted {
        bail!(
            "--gpu {wanted}: device {} is `{name}`; expected a card named {}",
            gpu.info().ordinal,
            wanted.to_uppercase()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_version_in_what_the_driver_writes() {
        let module =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)";
        assert_eq!(version_in(module).as_deref(), Some("580.95.05"));
        assert_eq!(version_in("580.159.03\n").as_deref(), Some("580.159.03"));
        assert_eq!(version_in("no version here."), None);
    }

    #[test]
    fn dates_are_utc() {
        let now = now();
        assert!(now.ends_with('Z') && now.len() == "2026-01-02T03:04:05Z".len(), "{now}");
    }
}
