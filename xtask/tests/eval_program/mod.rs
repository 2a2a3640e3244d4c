//! `xtask eval` as a program: tensors in, tensors or an error out.

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

pub(crate) type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);
/// Shape and values of each.
pub(crate) type Outputs = HashMap<String, (Vec<usize>, Vec<f32>)>;

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes the input file into `folder`.
pub(crate) fn write(folder: &Path, tensors: &[Tensor], metadata: &[(&str, &str)]) {
    let views =
        tensors.iter().map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let metadata: HashMap<String, String> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    fs::write(folder.join("in.safetensors"), serialize(views, metadata).unwrap()).unwrap();
}

/// Runs `xtask eval family` from and to `folder`.
pub(crate) fn run(family: &str, folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["eval", family, "--input"])
        .arg(folder.join("in.safetensors"))
        .arg("--output")
        .arg(folder.join("out.safetensors"))
        .args(arguments)
        .output()
        .unwrap()
}

/// The outputs, or what went to stderr.
pub(crate) fn eval(
    family: &str,
    tensors: &[Tensor],
    metadata: &[(&str, &str)],
    arguments: &[&str],
) -> Result<Outputs, String> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), tensors, metadata);
    let output = run(family, folder.path(), arguments);
    let path = folder.path().join("out.safetensors");
    if !output.status.success() {
        assert!(!path.exists());
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8], dtype| match dtype {
        Dtype::F32 => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::BF16 => data.chunks(2).map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
        other => panic!("unexpected {other:?}"),
    };
    Ok(file
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(view.data(), view.dtype()))))
        .collect())
}
