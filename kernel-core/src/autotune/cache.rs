//! Looking up and measuring.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use super::key::{AutotuneMode, TuneKey};
use super::store::{self, Entry, Timing};
use crate::cache_dir::cache_dir;
use crate::error::{Error, Result};

/// A directory of measured choices, one JSON file for each family and GPU, shared by processes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AutotuneCache {
    directory: PathBuf,
}

/// What this process measured but could not write, so that it is measured once a process at least.
static UNWRITTEN: LazyLock<Mutex<Vec<(PathBuf, Entry)>>> = LazyLock::new(Mutex::default);

impl Default for AutotuneCache {
    /// [`AutotuneCache::default_location`].
    fn default() -> Self {
        AutotuneCache::default_location()
    }
}

impl AutotuneCache {
    /// A cache in `directory`, which is made when the first choice is stored.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        AutotuneCache { directory: directory.into() }
    }

    /// The cache of all programs of this user: `autotune` in [`cache_dir`].
    pub fn default_location() -> Self {
        AutotuneCache::at(cache_dir().join("autotune"))
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The fastest of `candidates` as measured before, by index. `None` when this key and set of candidates (in any order) was
    /// not measured, or when the cache cannot be read.
    pub fn get(&self, key: &TuneKey, candidates: &[String]) -> Option<usize> {
        self.entry(key, candidates)?.fastest(candidates)
    }

    /// The stored timing of each candidate, in the order of `candidates`; `None` as in [`AutotuneCache::get`].
    pub fn timings(&self, key: &TuneKey, candidates: &[String]) -> Option<Vec<Timing>> {
        let entry = self.entry(key, candidates)?;
        candidates.iter().map(|name| entry.timings.get(name).cloned()).collect()
    }

    /// Chooses one of `candidates` (by index), measuring each with `measure` (milliseconds) when that is needed.
    ///
    /// Candidate 0 is the default: it is taken without measuring in [`AutotuneMode::Off`], which callers also pass for small
    /// problems. Of equally fast candidates the earlier one is taken. A candidate whose measurement fails is passed over, and its
    /// error is stored. When another process measured the same meanwhile, the faster timing of each candidate counts. Must not
    /// be called while a stream that `measure` uses is being captured.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] without candidates; the first candidate's error when every measurement fails. Nothing about the
    /// cache is an error.
    pub fn tune(
        &self,
        key: &TuneKey,
        candidates: &[String],
        mode: AutotuneMode,
        mut measure: impl FnMut(usize) -> Result<f32>,
    ) -> Result<usize> {
        match (candidates.len(), mode) {
            (0, _) => return Err(Error::ZeroSize { what: "candidates to tune" }),
            (_, AutotuneMode::Off) => return Ok(0),
            (1, _) => return Ok(0),
            (_, AutotuneMode::On) => {
                if let Some(choice) = self.get(key, candidates) {
                    return Ok(choice);
                }
            }
            (_, AutotuneMode::Force) => {}
        }

        let mut timings = BTreeMap::new();
        let mut first_error = None;
        for (at, name) in candidates.iter().enumerate() {
            let timing = match measure(at) {
                Ok(ms) if ms.is_finite() && ms >= 0.0 => Timing::Ms(ms),
                Ok(ms) => {
                    let what = format!("a measured time of {ms} ms for {name}; expected a finite one of at least 0");
                    let text = what.clone();
                    first_error.get_or_insert(Error::Unsupported { what });
                    Timing::Error(text)
                }
                Err(error) => {
                    let text = error.to_string();
                    first_error.get_or_insert(error);
                    Timing::Error(text)
                }
            };
            timings.insert(name.clone(), timing);
        }
        let entry = Entry::new(key, timings);
        let Some(choice) = entry.fastest(candidates) else {
            return Err(first_error.unwrap_or(Error::ZeroSize { what: "candidates to tune" }));
        };
        match store::add(&store::file(&self.directory, key), entry.clone(), mode == AutotuneMode::Force) {
            Ok(stored) => Ok(stored.fastest(candidates).unwrap_or(choice)),
            Err(_) => {
                self.remember(entry);
                Ok(choice)
            }
        }
    }

    fn entry(&self, key: &TuneKey, candidates: &[String]) -> Option<Entry> {
        // The names alone matter for finding it.
        let names = candidates.iter().map(|name| (name.clone(), Timing::Error(String::new()))).collect();
        let wanted = Entry::new(key, names);
        store::find(&store::file(&self.directory, key), &wanted).or_else(|| {
            let unwritten = UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
            let mut mine = unwritten.iter().filter(|(directory, _)| *directory == self.directory);
            mine.find(|(_, entry)| entry.same_subject(&wanted)).map(|(_, entry)| entry.clone())
        })
    }

    fn remember(&self, entry: Entry) {
        let mut unwritten = UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
        unwritten.retain(|(directory, other)| *directory != self.directory || !other.same_subject(&entry));
        unwritten.push((self.directory.clone(), entry));
    }
}
