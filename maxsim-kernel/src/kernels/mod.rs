//! One launcher a kernel, named as its `.cu`, and the structs they share.

mod backward_docs;
mod backward_queries;
mod finish_gradients;
mod forward_mma;
mod forward_portable;
mod forward_sm90;
mod forward_stream;
mod gather_rows;
mod params;
mod prepare;
mod settle;
mod top_k;

pub(crate) use backward_docs::{BackwardDocs, Choosers, MOST_PLACES, places_log2};
pub(crate) use backward_queries::BackwardQueries;
pub(crate) use finish_gradients::{FinishGradients, FinishParams};
pub(crate) use forward_mma::ForwardMma;
pub(crate) use forward_portable::ForwardPortable;
pub(crate) use forward_sm90::{ForwardSm90, HopperParams, RowsAt, Shape, maps, row_map};
pub(crate) use forward_stream::{ForwardStream, StreamParams, StreamShape, join_bytes};
pub(crate) use gather_rows::{GatherParams, GatherRows, NONE};
pub(crate) use params::{ForwardParams, GradientParams, ItemsArg, MeetingsArg, TextsArg, pairing_code};
pub(crate) use prepare::{MaskParams, NormParams, PadParams, Prepare, ReduceParams, ScheduleParams};
pub(crate) use settle::{Settle, SettleParams};
pub(crate) use top_k::{KeepBest, MOST, TopKParams};

use kernel_core::{DeviceInfo, Gpu, Kernel, LaunchConfig, Variant};

use crate::error::Result;

fn load(gpu: &Gpu, variant: &Variant) -> Result<Kernel> {
    Ok(gpu.kernel(variant.program, variant.entry, &variant.defines)?)
}

/// A launch whose prologue may overlap the end of the one ahead of it: every kernel here begins with `grid_dependency_wait`, but
/// for `maxsim_backward_docs` told to run behind the queries' gradient, which `backward` launches right behind it and whose inputs are ready before that one begins.
fn overlapped(info: &DeviceInfo, config: LaunchConfig) -> LaunchConfig {
    config.with_programmatic(info.compute_capability >= (9, 0))
}

/// The device that launchers are sized for in tests.
#[cfg(test)]
pub(crate) fn h200() -> DeviceInfo {
    DeviceInfo {
        name: String::new(),
        ordinal: 0,
        compute_capability: (9, 0),
        sm_count: 132,
        l2_bytes: 60 << 20,
        shared_bytes_optin: 232_448,
        total_bytes: 0,
        driver_version: 13000,
    }
}
