//! Parity of late-interaction scores.

mod case;
mod choices;
mod groups;
mod truth;

pub(crate) use groups::{GROUPS, cpu_groups, gpu_groups};
