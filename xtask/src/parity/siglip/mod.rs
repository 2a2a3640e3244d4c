//! Parity of the SigLIP loss.

mod case;
mod cpu;
mod gpu;
mod int8;
mod truth;

pub(crate) use cpu::{CPU_GROUPS, cpu_groups};
pub(crate) use gpu::gpu_groups;
