//! `xtask eval`: one call on tensors from a file, to compare with any other implementation.

mod command;
mod file;
mod maxsim;
mod swiglu;

pub(crate) use command::{Args, run};
