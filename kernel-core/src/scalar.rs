//! Scalar arguments: host values, or device values that cost no host sync.

use cudarc::driver::{CudaStream, SyncOnDrop};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::launch::KernelArg;
use crate::tensor::{DeviceData, VectorView};

/// An f32 scalar argument: a value known to the host, or one element of device memory that the kernel reads (no host sync).
#[derive(Debug)]
pub enum Scalar<'a> {
    /// A value.
    Host(f32),
    /// One element in device memory.
    Device(VectorView<'a, f32>),
}

impl<'a> Scalar<'a> {
    /// The single element of `data`. `what` is the name errors give it.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `data` has exactly one element.
    pub fn device(what: &'static str, data: impl DeviceData<'a, f32>) -> Result<Self> {
        Ok(Scalar::Device(VectorView::new(what, data, [1])?))
    }

    /// Checks a host value for finiteness and device memory for its length and context.
    ///
    /// # Errors
    /// [`Error::NonFinite`], [`Error::Shape`], [`Error::WrongDevice`]. A non-finite value in device memory is not looked at: that
    /// would need a host sync.
    pub fn check(&self, what: &'static str, gpu: &Gpu) -> Result<()> {
        match self {
            Scalar::Host(value) => finite(what, *value),
            Scalar::Device(view) => {
                view.require_shape([1])?;
                view.check_context(gpu)
            }
        }
    }

    /// The argument for a launch on `stream`. Drop the guard, if there is one, after the launch.
    pub fn to_arg<'b>(&'b self, stream: &'b CudaStream) -> (ScalarArg, Option<SyncOnDrop<'b>>) {
        match self {
            Scalar::Host(value) => (ScalarArg { device: 0, host: *value }, None),
            Scalar::Device(view) => {
                let (device, guard) = view.device_ptr(stream);
                (ScalarArg { device, host: 0.0 }, Some(guard))
            }
        }
    }
}

impl From<f32> for Scalar<'_> {
    fn from(value: f32) -> Self {
        Scalar::Host(value)
    }
}

fn finite(what: &'static str, value: f32) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(Error::NonFinite { what, value }) }
}

/// A [`Scalar`] as kernels take it: `ScalarArg` of `base.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScalarArg {
    /// Address of the value, or 0 to use `host`.
    pub device: u64,
    /// The value when `device` is 0.
    pub host: f32,
}

// SAFETY: plain data; a pointer and a float in the order, sizes and alignment of the device's struct.
unsafe impl KernelArg for ScalarArg {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_finite_values_are_named() {
        assert!(finite("upstream", -1.5).is_ok());
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let message = finite("upstream", value).unwrap_err().to_string();
            assert!(message.contains("upstream") && message.contains(&value.to_string()), "{message}");
        }
    }

    #[test]
    fn the_argument_is_laid_out_as_on_the_device() {
        assert_eq!((size_of::<ScalarArg>(), align_of::<ScalarArg>()), (16, 8));
        assert_eq!(std::mem::offset_of!(ScalarArg, host), 8);
    }
}
