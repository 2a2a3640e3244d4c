//! What is measured of the SigLIP loss.

mod contenders;
mod problems;
mod run;

#[cfg(test)]
pub(crate) use problems::PEERS;
pub(crate) use run::run;
