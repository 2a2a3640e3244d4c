//! Parity of the SigLIP loss.

mod case;
mod cpu;
mod truth;

pub(crate) use cpu::{CPU_GROUPS, cpu_groups};
