//! MaxSim as parity and eval call it.

mod device;
mod host;

pub(crate) use device::DeviceCall;
pub(crate) use host::{Found, Tensors, on_host};
