//! Launches on addresses, in their order. Checks and views are the plans' business.

mod backward;
mod core;
mod forward;
mod slices;

pub(crate) use core::{Engine, From, Source, Targets};
pub(crate) use slices::Slices;
