//! `xtask bench`: times on the card at hand, ours and the peers in turn.

mod ceilings;
mod command;
mod contender;
mod first_call;
mod maxsim;
mod peer;
mod setting;
mod siglip;
mod swiglu;
mod timing;

pub(crate) use command::{Args, run};
pub(crate) use first_call::{Args as FirstCallArgs, run as run_first_call};
