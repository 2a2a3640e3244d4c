//! Reading and writing results files.

use super::schema::{ResultsFile, Row};
use crate::source_hash;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Merges `newer` into `<folder>/<KIND>-<slug>.json` and returns the file's path.
///
/// A file that was measured on another card is not touched: that is an error.
pub(crate) fn merge_and_save<F: ResultsFile>(folder: &Path, slug: &str, newer: F) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join(format!("{}-{slug}.json", F::KIND));
    let file = match load::<F>(&path)? {
        None => newer,
        Some(old) if old.header().gpu != newer.header().gpu => bail!(
            "{} was measured on `{}`, this card is `{}`: give another folder with --results",
            path.display(),
            old.header().gpu,
            newer.header().gpu
        ),
        Some(mut old) => {
            old.absorb(newer);
            old
        }
    };
    let mut text = serde_json::to_string_pretty(&file).context("writing the results as JSON")?;
    text.push('\n');
    // Written beside it and renamed: an interrupted run leaves the old file whole.
    let partial = path.with_extension("json.partial");
    fs::write(&partial, text).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, &path).with_context(|| format!("renaming {} to {}", partial.display(), path.display()))?;
    Ok(path)
}

fn load<F: ResultsFile>(path: &Path) -> Result<Option<F>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let file = serde_json::from_str(&text).with_context(|| format!("{} is not a results file", path.display()))?;
    Ok(Some(file))
}

/// All files of a kind in `folder`, in the order of their names; none when the folder does not exist.
pub(crate) fn load_all<F: ResultsFile>(folder: &Path) -> Result<Vec<F>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&format!("{}-", F::KIND)) && name.ends_with(".json") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        files.extend(load::<F>(&path)?);
    }
    Ok(files)
}

/// One line a family whose rows were measured on other sources than this binary was built from.
pub(crate) fn stale<F: ResultsFile>(file: &F) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for row in file.rows() {
        let today = source_hash::of_family(row.family());
        if today != Some(row.source_hash()) {
            let line = format!(
                "{} of {} on {}: measured on sources {}, today's are {}",
                F::KIND,
                row.family(),
                file.header().gpu,
                row.source_hash(),
                today.unwrap_or("unknown")
            );
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}
