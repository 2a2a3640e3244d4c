//! `results/*.json`: their schema, where they lie, and how a partial run is merged into them.

mod folder;
mod schema;
mod store;

pub(crate) use folder::{ResultsFolder, checkout};
pub(crate) use schema::{BenchFile, BenchRow, Header, ParityFile, ParityRow};
pub(crate) use store::{load_all, merge_and_save, stale};

#[cfg(test)]
mod store_test;
#[cfg(test)]
pub(crate) mod testing;
