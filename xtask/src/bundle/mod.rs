//! `xtask bundle`: everything that a GPU machine without Rust needs, in one small folder.

mod artifacts;
mod command;
mod script;

pub(crate) use command::{Args, run};
