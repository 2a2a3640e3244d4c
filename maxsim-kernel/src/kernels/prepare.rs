//! `cuda/prepare.cu`: masks, norms, padded copies, the division of masked work, and the sums of long queries.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig, Variant};

use super::{ItemsArg, TextsArg, load, overlapped};
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
const WARPS: u64 = THREADS as u64 / 32;
const SCHEDULE_THREADS: u32 = 1024;
const BLOCKS_PER_SM: u32 = 8;

macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name { $(pub(crate) $field: $type),+ }

        // SAFETY: plain data, laid out as the kernel's struct of the same name.
        unsafe impl KernelArg for $name {}
    };
}

params!(
    /// One byte a row in `mask`; the other addresses are written.
    MaskParams { texts: TextsArg, mask: u64, ends: u64, firsts: u64, bits: u64 }
);
params!(
    /// Inverse norms of `count` rows.
    NormParams { rows: u64, row_stride: u64, count: u64, dim: u32, scales: u64 }
);
params!(
    /// Strides in elements.
    PadParams { from: u64, to: u64, from_stride: u64, to_stride: u64, rows: u64, dim: u32, padded: u32 }
);
params!(
    /// `prefix` holds `entries + 1` u64; `starts` as a `Division` has them.
    ScheduleParams { items: ItemsArg, docs: TextsArg, entries: u32, blocks: u32, entry_cost: u32, prefix: u64, starts: u64 }
);
params!(
    /// `segments`: of each query in a cross.
    ReduceParams { items: ItemsArg, queries: TextsArg, partials: u64, segments: u64, tiles: u32, scores: u64, count: u64 }
);

pub(crate) struct Prepare {
    mask: Kernel,
    norms: Kernel,
    pad: Kernel,
    schedule: Kernel,
    reduce: Kernel,
}

impl Prepare {
    const ENTRIES: [&str; 5] = ["maxsim_mask", "maxsim_norms", "maxsim_pad", "maxsim_schedule", "maxsim_reduce"];

    /// What [`Prepare::new`] loads.
    pub(crate) fn variants(dtype: DType) -> impl Iterator<Item = Variant> {
        Self::ENTRIES.into_iter().map(move |entry| programs::prepare(dtype, entry))
    }

    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        let [mask, norms, pad, schedule, reduce] =
            Self::ENTRIES.map(|entry| load(gpu, &programs::prepare(dtype, entry)));
        Ok(Self { mask: mask?, norms: norms?, pad: pad?, schedule: schedule?, reduce: reduce? })
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that they say. So for all the others.
    pub(crate) unsafe fn mask(&self, stream: &CudaStream, info: &DeviceInfo, params: &MaskParams) -> Result<()> {
        let config = spread(info, u64::from(params.texts.count).div_ceil(WARPS));
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.mask.launch(stream, &config, &[params]) }?)
    }

    /// # Safety
    /// As [`Prepare::mask`].
    pub(crate) unsafe fn norms(&self, stream: &CudaStream, info: &DeviceInfo, params: &NormParams) -> Result<()> {
        let config = spread(info, params.count.div_ceil(WARPS));
        // SAFETY: as in `mask`.
        Ok(unsafe { self.norms.launch(stream, &config, &[params]) }?)
    }

    /// # Safety
    /// As [`Prepare::mask`].
    pub(crate) unsafe fn pad(&self, stream: &CudaStream, info: &DeviceInfo, params: &PadParams) -> Result<()> {
        let config = spread(info, params.rows.div_ceil(WARPS));
        // SAFETY: as in `mask`.
        Ok(unsafe { self.pad.launch(stream, &config, &[params]) }?)
    }

    /// # Safety
    /// As [`Prepare::mask`].
    pub(crate) unsafe fn schedule(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        params: &ScheduleParams,
    ) -> Result<()> {
        let config = overlapped(info, LaunchConfig::linear(1, SCHEDULE_THREADS));
        // SAFETY: as in `mask`.
        Ok(unsafe { self.schedule.launch(stream, &config, &[params]) }?)
    }

    /// # Safety
    /// As [`Prepare::mask`].
    pub(crate) unsafe fn reduce(&self, stream: &CudaStream, info: &DeviceInfo, params: &ReduceParams) -> Result<()> {
        let config = spread(info, params.count.div_ceil(u64::from(THREADS)));
        // SAFETY: as in `mask`.
        Ok(unsafe { self.reduce.launch(stream, &config, &[params]) }?)
    }
}

/// A grid whose blocks stride over `blocks` shares.
fn spread(info: &DeviceInfo, blocks: u64) -> LaunchConfig {
    overlapped(info, LaunchConfig::linear(blocks.clamp(1, u64::from(info.sm_count * BLOCKS_PER_SM)) as u32, THREADS))
}
