//! Parity of the gated layer.

mod case;
mod cpu;
mod gpu;
mod truth;

pub(crate) use cpu::{CPU_GROUPS, cpu_groups};
pub(crate) use gpu::gpu_groups;
