//! Shared device headers, compiled into every program: PTX wrappers, the Hopper and the portable GEMM mainloops, numerics.

use crate::dtype::DType;

macro_rules! headers {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../cuda/", $name)))),*]
    };
}

/// The headers that every program may include: (name as it is included, text).
pub const HEADERS: &[(&str, &str)] = headers![
    "base.cuh",
    "element.cuh",
    "numerics.cuh",
    "portable/mainloop.cuh",
    "ptx/barrier.cuh",
    "ptx/math.cuh",
    "ptx/matrix.cuh",
    "ptx/shared.cuh",
    "ptx/sync.cuh",
    "ptx/tma.cuh",
    "ptx/wgmma.cuh",
    "ptx/wgmma_narrow.cuh",
    "sm90/mainloop.cuh",
    "sm90/ring.cuh",
    "sm90/scheduler.cuh",
    "sm90/split_mainloop.cuh",
    "sm90/store.cuh",
];

/// The tag of `element.cuh` for a dtype, as the value of a macro.
pub fn element(dtype: DType) -> String {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::Bf16 => "BF16",
    }
    .to_owned()
}

/// A switch as the value of a macro: `1` or `0`.
pub fn flag(on: bool) -> String {
    u32::from(on).to_string()
}
