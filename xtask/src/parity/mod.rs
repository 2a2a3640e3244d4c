//! `xtask parity`: randomised checks of every route against reference-cpu and a naive f64 version; without a GPU, of reference-cpu itself.

mod command;
mod deviation;
mod maxsim;
mod runner;
mod siglip;
mod swiglu;

pub(crate) use command::{Args, run};
