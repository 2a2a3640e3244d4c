//! The file of one family and GPU: its JSON, and how processes share it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::key::TuneKey;

/// Version of the file's layout. A file of another version is a miss, and is replaced.
const VERSION: u32 = 1;

/// What measuring one candidate gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// Milliseconds; finite and not negative.
    Ms(f32),
    /// Why it could not be measured.
    Error(String),
}

impl Timing {
    /// The time in milliseconds, if it was measured and makes sense.
    pub fn ms(&self) -> Option<f32> {
        match self {
            Timing::Ms(ms) if ms.is_finite() && *ms >= 0.0 => Some(*ms),
            _ => None,
        }
    }
}

/// All timings of one key and one set of candidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    family: String,
    gpu: String,
    sm_count: u32,
    driver: u32,
    source_hash: String,
    dtype: String,
    bucket: String,
    /// By candidate; the names are the set of candidates.
    pub(super) timings: BTreeMap<String, Timing>,
}

impl Entry {
    pub(super) fn new(key: &TuneKey, timings: BTreeMap<String, Timing>) -> Self {
        Entry {
            family: key.family.to_owned(),
            gpu: key.gpu.clone(),
            sm_count: key.sm_count,
            driver: key.driver,
            source_hash: key.source_hash.clone(),
            dtype: key.dtype.to_string(),
            bucket: key.bucket.clone(),
            timings,
        }
    }

    /// Whether both hold timings of the same thing.
    pub(super) fn same_subject(&self, other: &Entry) -> bool {
        (&self.family, &self.gpu, self.sm_count, self.driver)
            == (&other.family, &other.gpu, other.sm_count, other.driver)
            && (&self.source_hash, &self.dtype, &self.bucket) == (&other.source_hash, &other.dtype, &other.bucket)
            && self.timings.keys().eq(other.timings.keys())
    }

    /// The fastest of `candidates`; the earlier one of two that are equally fast.
    pub(super) fn fastest(&self, candidates: &[String]) -> Option<usize> {
        let timed = candidates.iter().enumerate().filter_map(|(at, name)| Some((at, self.timings.get(name)?.ms()?)));
        timed.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(at, _)| at)
    }

    /// Takes over what `other` measured faster, or measured at all.
    fn merge(&mut self, other: &Entry) {
        for (name, theirs) in &other.timings {
            if let Some(ours) = self.timings.get_mut(name)
                && theirs.ms().is_some_and(|theirs| ours.ms().is_none_or(|ours| theirs < ours))
            {
                *ours = theirs.clone();
            }
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    version: u32,
    entries: Vec<Entry>,
}

/// The file of `key` in `directory`.
pub(super) fn file(directory: &Path, key: &TuneKey) -> PathBuf {
    let name = format!("{}-{}", key.family, key.gpu).to_lowercase();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(100).collect();
    directory.join(format!("{name}.json"))
}

/// The entry of the same subject as `wanted`, when the file has an intact one.
pub(super) fn find(file: &Path, wanted: &Entry) -> Option<Entry> {
    read(file).entries.into_iter().find(|entry| entry.same_subject(wanted))
}

/// Adds `entry` to the file and returns it as it stands there: merged with what another process measured meanwhile, or in its
/// place when `replace` is set.
///
/// # Errors
/// When the file cannot be written; nothing is lost by it but the memory of this measurement.
pub(super) fn add(file: &Path, entry: Entry, replace: bool) -> io::Result<Entry> {
    let directory = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    // The lock is on a file of its own, because the data file is replaced by a rename. Closing it unlocks.
    let lock = File::options().create(true).truncate(false).write(true).open(file.with_extension("lock"))?;
    match lock.lock() {
        // A file system without locks: whole files are still guaranteed by the rename; two simultaneous writers may lose an entry.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        locked => locked?,
    }
    let mut contents = read(file);
    let mut entry = entry;
    if let Some(at) = contents.entries.iter().position(|other| other.same_subject(&entry)) {
        let other = contents.entries.swap_remove(at);
        if !replace {
            entry.merge(&other);
        }
    }
    contents.version = VERSION;
    contents.entries.push(entry.clone());

    let mut temporary = tempfile::Builder::new().prefix(".writing-").tempfile_in(directory)?;
    serde_json::to_writer_pretty(&mut temporary, &contents).map_err(io::Error::other)?;
    temporary.write_all(b"\n")?;
    temporary.persist(file)?;
    Ok(entry)
}

/// The file's entries; none when it is absent, unreadable, damaged or of another version.
fn read(file: &Path) -> Contents {
    let read = || serde_json::from_slice::<Contents>(&fs::read(file).ok()?).ok();
    read().filter(|contents| contents.version == VERSION).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    fn key(bucket: &str) -> TuneKey {
        TuneKey {
            family: "siglip",
            gpu: "NVIDIA H200 / x".into(),
            sm_count: 132,
            driver: 13000,
            source_hash: "0f".into(),
            dtype: DType::Bf16,
            bucket: bucket.into(),
        }
    }

    fn entry(bucket: &str, timings: &[(&str, Timing)]) -> Entry {
        Entry::new(&key(bucket), timings.iter().map(|(name, timing)| ((*name).to_owned(), timing.clone())).collect())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn fastest_breaks_ties_by_position_and_skips_nonsense() {
        let entry = entry(
            "b",
            &[
                ("a", Timing::Ms(2.0)),
                ("b", Timing::Ms(1.0)),
                ("c", Timing::Ms(1.0)),
                ("d", Timing::Ms(-1.0)),
                ("e", Timing::Error("no".into())),
            ],
        );
        assert_eq!(entry.fastest(&names(&["a", "b", "c", "d", "e"])), Some(1));
        assert_eq!(entry.fastest(&names(&["c", "b", "a"])), Some(0));
        assert_eq!(entry.fastest(&names(&["d", "e"])), None);
    }

    #[test]
    fn adding_merges_unless_it_replaces() {
        let root = tempfile::tempdir().unwrap();
        let file = file(root.path(), &key("b"));
        assert_eq!(file.file_name().unwrap(), "siglip-nvidia-h200---x.json");
        let first = entry("b", &[("a", Timing::Ms(3.0)), ("b", Timing::Error("busy".into()))]);
        let second = entry("b", &[("a", Timing::Ms(4.0)), ("b", Timing::Ms(5.0))]);
        add(&file, first.clone(), false).unwrap();
        add(&file, entry("other", &[("a", Timing::Ms(9.0))]), false).unwrap();
        let merged = add(&file, second.clone(), false).unwrap();
        assert_eq!(merged, entry("b", &[("a", Timing::Ms(3.0)), ("b", Timing::Ms(5.0))]));
        assert_eq!(find(&file, &second), Some(merged));
        assert_eq!(add(&file, second.clone(), true).unwrap(), second);
        assert_eq!(find(&file, &first), Some(second));
        assert_eq!(read(&file).entries.len(), 2, "the other bucket stays");
    }

    #[test]
    fn another_candidate_set_is_another_subject() {
        let (a, b) = (entry("b", &[("a", Timing::Ms(1.0))]), entry("b", &[("b", Timing::Ms(1.0))]));
        assert!(!a.same_subject(&b) && a.same_subject(&a));
        let mut driver = a.clone();
        driver.driver = 13010;
        assert!(!a.same_subject(&driver));
    }
}
