//! Shared device headers, compiled into every program: PTX wrappers, the Hopper and the portable GEMM mainloops, numerics.

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
    "ptx/sync.cuh",
    "ptx/tma.cuh",
    "ptx/wgmma.cuh",
    "ptx/wgmma_narrow.cuh",
    "sm90/mainloop.cuh",
    "sm90/scheduler.cuh",
    "sm90/store.cuh",
];
