//! One launcher a kernel, named as its `.cu`.

pub(crate) mod column_sums;
pub(crate) mod decode;
pub(crate) mod decode_sm90;
pub(crate) mod forward_sm90;
pub(crate) mod gate;
pub(crate) mod input_gradient_sm90;
mod maps;
pub(crate) mod through_sm90;
pub(crate) mod weight_gradient_sm90;

pub(crate) use column_sums::{ColumnSums, ColumnSumsCall};
pub(crate) use decode::{Decode, DecodeCall};
pub(crate) use decode_sm90::DecodeSm90;
pub(crate) use forward_sm90::{ForwardCall, ForwardSm90};
pub(crate) use gate::{GateBackward, GateBackwardCall, GateForward, GateForwardCall, Rounding, RoundingCall};
pub(crate) use input_gradient_sm90::{InputGradientCall, InputGradientSm90};
pub(crate) use through_sm90::{ThroughCall, ThroughSm90};
pub(crate) use weight_gradient_sm90::{WeightGradientCall, WeightGradientSm90};

use kernel_core::{Gpu, Kernel, Variant};

use crate::error::Result;

fn load(gpu: &Gpu, variant: &Variant) -> Result<Kernel> {
    Ok(gpu.kernel(variant.program, variant.entry, &variant.defines)?)
}
