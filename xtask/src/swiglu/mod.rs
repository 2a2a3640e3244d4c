//! The gated layer as parity, bench and eval call it.

mod device;
mod host;

pub(crate) use device::{DeviceCall, random};
pub(crate) use host::{Step, Tensors, bits, on_host};
