//! The pairs of embeddings.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensors};
use siglip_kernel::kernel_core::half::f16;

use crate::matrix::Matrix;

/// Row i of one side belongs to row i of the other.
pub(crate) struct Pairs {
    pub(crate) queries: Matrix,
    pub(crate) codes: Matrix,
}

impl Pairs {
    pub(crate) fn len(&self) -> usize {
        self.queries.rows
    }

    /// The first `count` pairs, and the others.
    pub(crate) fn split(&self, count: usize) -> Result<(Pairs, Pairs)> {
        let len = self.len();
        ensure!(len > count, "the data hold {len} pairs, expected more than {count}");
        let part = |start, end| Pairs { queries: self.queries.rows(start, end), codes: self.codes.rows(start, end) };
        Ok((part(0, count), part(count, len)))
    }
}

/// The file in the repository; the published crate comes without it.
pub(crate) fn default_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/docstring-code/pooled.safetensors")
}

fn matrix(tensors: &SafeTensors<'_>, name: &str) -> Result<Matrix> {
    let tensor = tensors.tensor(name).with_context(|| format!("tensor {name:?}"))?;
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    ensure!(dtype == Dtype::F16, "tensor {name:?} is {dtype:?}, expected F16");
    let &[rows, cols] = shape else {
        anyhow::bail!("tensor {name:?} has the shape {shape:?}, expected two axes");
    };
    let halves = tensor.data().chunks_exact(2).map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]));
    Ok(Matrix { data: halves.map(f16::to_f32).collect(), rows, cols })
}

pub(crate) fn read(path: &Path) -> Result<Pairs> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {} (see --data)", path.display()))?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    let pairs = Pairs { queries: matrix(&tensors, "query")?, codes: matrix(&tensors, "code")? };
    let (queries, codes) = (&pairs.queries, &pairs.codes);
    let shapes = [[queries.rows, queries.cols], [codes.rows, codes.cols]];
    ensure!(shapes[0] == shapes[1], "query and code have the shapes {:?} and {:?}, expected one", shapes[0], shapes[1]);
    Ok(pairs)
}
