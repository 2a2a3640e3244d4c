//! Where results, README and docs lie.

use std::env;
use std::path::{Path, PathBuf};

/// The folder that holds `results/`, and the repository root when run from a checkout.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ResultsFolder {
    /// Folder of the results files [default: results/ of the checkout, or of the current folder outside of one]
    #[arg(long = "results", value_name = "DIR", env = "RESULTS_DIR", global = false)]
    folder: Option<PathBuf>,
}

impl ResultsFolder {
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.clone().unwrap_or_else(|| checkout().unwrap_or_default().join("results"))
    }
}

/// The checkout's root when cargo runs us (`cargo xtask ...`), or the nearest folder upwards that holds this workspace.
pub(crate) fn checkout() -> Option<PathBuf> {
    let from_cargo =
        env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).and_then(|xtask| Some(xtask.parent()?.to_owned()));
    let upwards =
        env::current_dir().ok().and_then(|here| here.ancestors().find(|dir| is_checkout(dir)).map(Path::to_owned));
    from_cargo.filter(|dir| is_checkout(dir)).or(upwards)
}

fn is_checkout(directory: &Path) -> bool {
    directory.join("xtask/Cargo.toml").is_file() && directory.join("kernel-core/Cargo.toml").is_file()
}
