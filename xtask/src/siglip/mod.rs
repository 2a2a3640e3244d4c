//! The SigLIP loss as parity, bench and eval call it.

mod data;
mod device;
mod host;

pub(crate) use data::{normal, random_rows};
pub(crate) use device::{DeviceCall, bits, options};
pub(crate) use host::{Number, Step, on_host};
