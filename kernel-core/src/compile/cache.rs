//! The disk cache of CUBINs: one file each, checked when it is read.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cache_dir::cache_dir;

/// First bytes of every file; the last one is the version of the layout.
const MAGIC: &[u8; 8] = b"FKCUBIN\x01";
/// Magic, key (64 hexadecimal digits), lengths of image and log, checksum of both.
const HEADER_BYTES: usize = 8 + 64 + 8 + 8 + 32;

/// A directory of compiled kernels, or none.
///
/// Reading and writing never fail: whatever is wrong with a file or the directory makes it a miss. Files are written under
/// another name and renamed, so that processes that share the directory see whole files only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CubinCache {
    directory: Option<PathBuf>,
}

impl CubinCache {
    /// A cache in `directory`, which is made when the first kernel is stored.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        CubinCache { directory: Some(directory.into()) }
    }

    /// The cache of all programs of this user: `cubin` in [`cache_dir`].
    pub fn default_location() -> Self {
        CubinCache::at(cache_dir().join("cubin"))
    }

    /// No cache: every compilation runs.
    pub fn disabled() -> Self {
        CubinCache { directory: None }
    }

    /// Its directory, unless it is disabled.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// The image and log under `key`, when there is an intact file of it.
    pub(super) fn load(&self, stem: &str, key: &str) -> Option<(Vec<u8>, String)> {
        decode(key, &fs::read(self.file(stem, key)?).ok()?)
    }

    /// Stores image and log under `key`; returns whether that worked, which no caller needs to care about.
    pub(super) fn store(&self, stem: &str, key: &str, image: &[u8], log: &str) -> bool {
        let (Some(directory), Some(file)) = (&self.directory, self.file(stem, key)) else { return false };
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(directory)?;
            let mut temporary = tempfile::Builder::new().prefix(".writing-").tempfile_in(directory)?;
            temporary.write_all(&encode(key, image, log))?;
            temporary.persist(&file)?;
            Ok(())
        };
        write().is_ok()
    }

    /// `stem` is for people who look into the directory; the key alone decides.
    fn file(&self, stem: &str, key: &str) -> Option<PathBuf> {
        let keep = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let stem: String = stem.chars().map(keep).take(80).collect();
        Some(self.directory.as_ref()?.join(format!("{stem}-{key}.cubin")))
    }
}

fn checksum(image: &[u8], log: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(image).chain_update(log).finalize().into()
}

fn encode(key: &str, image: &[u8], log: &str) -> Vec<u8> {
    let log = log.as_bytes();
    let mut file = Vec::with_capacity(HEADER_BYTES + image.len() + log.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(key.as_bytes());
    file.extend_from_slice(&(image.len() as u64).to_le_bytes());
    file.extend_from_slice(&(log.len() as u64).to_le_bytes());
    file.extend_from_slice(&checksum(image, log));
    file.extend_from_slice(image);
    file.extend_from_slice(log);
    file
}

fn decode(key: &str, file: &[u8]) -> Option<(Vec<u8>, String)> {
    let rest = file.strip_prefix(MAGIC)?.strip_prefix(key.as_bytes())?;
    let (image_bytes, rest) = rest.split_first_chunk::<8>()?;
    let (log_bytes, rest) = rest.split_first_chunk::<8>()?;
    let (sum, body) = rest.split_first_chunk::<32>()?;
    let image_bytes = usize::try_from(u64::from_le_bytes(*image_bytes)).ok()?;
    let log_bytes = usize::try_from(u64::from_le_bytes(*log_bytes)).ok()?;
    if body.len() != image_bytes.checked_add(log_bytes)? || image_bytes == 0 {
        return None;
    }
    let (image, log) = body.split_at(image_bytes);
    if checksum(image, log) != *sum {
        return None;
    }
    Some((image.to_vec(), String::from_utf8(log.to_vec()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        "0123456789abcdef".repeat(4)
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let root = tempfile::tempdir().unwrap();
        let cache = CubinCache::at(root.path().join("not/made/yet"));
        assert_eq!(cache.load("a/b sm_90a", &key()), None);
        assert!(cache.store("a/b sm_90a", &key(), b"image", "log"));
        assert_eq!(cache.load("a/b sm_90a", &key()), Some((b"image".to_vec(), "log".to_owned())));
        assert_eq!(cache.load("a/b sm_90a", &key().replace('0', "1")), None);
        let names: Vec<_> = fs::read_dir(cache.directory().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [format!("a_b_sm_90a-{}.cubin", key()).as_str()], "temporary files are gone");
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_a_miss() {
        let good = encode(&key(), b"image bytes", "log");
        assert!(decode(&key(), &good).is_some());
        for length in 0..good.len() {
            assert_eq!(decode(&key(), &good[..length]), None, "{length}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(decode(&key(), &bad), None, "{at}");
        }
        let longer = [good.as_slice(), b"x"].concat();
        assert_eq!(decode(&key(), &longer), None);
    }

    #[test]
    fn lengths_that_overflow_are_a_miss() {
        let mut bad = encode(&key(), b"image", "log");
        bad[72..88].fill(0xff);
        assert_eq!(decode(&key(), &bad), None);
    }

    #[test]
    fn disabled_holds_nothing() {
        let cache = CubinCache::disabled();
        assert!(!cache.store("a", &key(), b"image", "log"));
        assert_eq!(cache.load("a", &key()), None);
    }
}
