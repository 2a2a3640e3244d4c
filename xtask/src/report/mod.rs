//! `xtask report`: README's tables and the plots from `results/*.json`.

mod command;
mod format;
mod markers;
mod plot;
mod tables;

pub(crate) use command::{Args, run};
