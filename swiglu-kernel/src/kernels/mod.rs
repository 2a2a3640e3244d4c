//! One launcher a kernel, named as its `.cu`.

pub(crate) mod column_sums;
pub(crate) mod decode;
pub(crate) mod forward_sm90;
pub(crate) mod gate;

pub(crate) use column_sums::{ColumnSums, ColumnSumsCall};
pub(crate) use decode::{Decode, DecodeCall};
pub(crate) use forward_sm90::{ForwardCall, ForwardSm90};
pub(crate) use gate::{GateBackward, GateBackwardCall, GateForward, GateForwardCall};

use kernel_core::{DType, Gpu, Kernel, MapType, Variant};

use crate::error::Result;

fn load(gpu: &Gpu, variant: &Variant) -> Result<Kernel> {
    Ok(gpu.kernel(variant.program, variant.entry, &variant.defines)?)
}

fn map_type(dtype: DType) -> MapType {
    match dtype {
        DType::F32 => MapType::F32,
        DType::F16 => MapType::F16,
        DType::Bf16 => MapType::Bf16,
    }
}
