//! One launcher a kernel, named as its `.cu`.

pub(crate) mod finalize;
pub(crate) mod fused_sm90;
pub(crate) mod gradient_int8;
pub(crate) mod gradient_sm90;
pub(crate) mod gradient_split;
pub(crate) mod gradient_tiles;
pub(crate) mod logits_int8;
pub(crate) mod logits_portable;
pub(crate) mod logits_sm90;
pub(crate) mod logits_split;
pub(crate) mod pairs_f32;
pub(crate) mod quantize_fp8;
pub(crate) mod quantize_int8;
mod rows;
pub(crate) mod split_inputs;

pub(crate) use finalize::{Finalize, GradientFactor, PadParams, PositivePairs, ReduceParams, ScaleParams};
pub(crate) use fused_sm90::{FusedParams, FusedSm90};
pub(crate) use gradient_int8::{GradientInt8, GradientInt8Params};
pub(crate) use gradient_sm90::{GradientParams, GradientSm90};
pub(crate) use gradient_split::{GradientSplit, GradientSplitParams};
pub(crate) use logits_int8::{LogitsInt8, LogitsInt8Params};
pub(crate) use logits_portable::{LogitsPortable, LogitsPortableParams, Operand};
pub(crate) use logits_sm90::{LogitsParams, LogitsSm90};
pub(crate) use logits_split::{LogitsSplit, LogitsSplitParams};
pub(crate) use pairs_f32::{PairsF32, PairsF32Params};
pub(crate) use quantize_fp8::{EXPONENTS, QuantizeFp8, QuantizeParams, QuantizeSide};
pub(crate) use quantize_int8::{QuantizeInt8, QuantizeInt8Params, QuantizeInt8Side, SLICES};
pub(crate) use split_inputs::{SCALE_ROWS, SplitInputs, SplitInputsParams, SplitSide};

use kernel_core::sm90::CONSUMER_WARPS;
use kernel_core::{DeviceInfo, Gpu, Kernel, Variant};

use crate::error::Result;

/// f64 values that every warp of a logit kernel keeps: the loss, and the sums of dL/dz and of dL/dz times the dot product.
pub(crate) const SUMS_PER_WARP: usize = 3;

/// Per-warp slots of sums that launches of a Hopper logit kernel on this device write, at most.
pub(crate) fn sm90_slots(info: &DeviceInfo) -> usize {
    info.sm_count as usize * CONSUMER_WARPS
}

fn load(gpu: &Gpu, variant: &Variant) -> Result<Kernel> {
    Ok(gpu.kernel(variant.program, variant.entry, &variant.defines)?)
}
