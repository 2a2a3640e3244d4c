//! Reading and writing safetensors files, with errors that name the tensor, what was found and what was expected.

use crate::siglip::Number;
use anyhow::{Context, Result, bail};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// What an operation reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// Which tensors it needs, in words.
    pub(crate) needs: &'static str,
    /// Every tensor that it knows; the first one sets the dtype.
    pub(crate) known: &'static [&'static str],
}

/// A parsed input file.
pub(crate) struct Input<'a> {
    tensors: SafeTensors<'a>,
    metadata: HashMap<String, String>,
    names: Names,
}

impl<'a> Input<'a> {
    /// Says on stderr which tensors the operation does not know, such as another implementation's results: one with a name spelt wrong would be left
    /// out unnoticed.
    pub(crate) fn parse(bytes: &'a [u8], names: Names) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes).context("not a safetensors file")?;
        let tensors = SafeTensors::deserialize(bytes).context("not a safetensors file")?;
        let mut unknown = tensors.names();
        unknown.retain(|name| !names.known.contains(name));
        unknown.sort_unstable();
        for name in unknown {
            eprintln!("tensor `{name}`: not read by this operation, which knows {}", names.known.join(", "));
        }
        Ok(Self { tensors, metadata: header.metadata().clone().unwrap_or_default(), names })
    }

    /// A value of the file's `__metadata__`, parsed.
    pub(crate) fn metadata<V: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<V>> {
        let Some(text) = self.metadata.get(name) else { return Ok(None) };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => bail!("metadata `{name}`: found `{text}`, expected {expected}"),
        }
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'a>> {
        match self.tensors.tensor(name) {
            Ok(tensor) => Ok(tensor),
            Err(_) => {
                let mut names = self.tensors.names();
                names.sort_unstable();
                let found = if names.is_empty() { "no tensors".to_owned() } else { names.join(", ") };
                bail!("tensor `{name}`: found {found}; expected the tensors {}", self.names.needs)
            }
        }
    }

    pub(crate) fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.tensor(name)?.dtype())
    }

    /// A matrix of `T`: its shape and its elements.
    pub(crate) fn matrix<T: Number>(&self, name: &str) -> Result<([usize; 2], Vec<T>)> {
        let tensor = self.tensor(name)?;
        let expected = dtype_of::<T>();
        if tensor.dtype() != expected {
            let first = self.names.known[0];
            bail!("tensor `{name}`: found dtype {:?}, expected {expected:?}, the dtype of {first}", tensor.dtype());
        }
        match *tensor.shape() {
            [rows, cols] if rows > 0 && cols > 0 => Ok(([rows, cols], elements(tensor.data()))),
            ref other => bail!("tensor `{name}`: found shape {other:?}, expected [rows, D], both at least 1"),
        }
    }

    /// Whether there is a tensor of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// Which of the names of one thing the file has; the first if none.
    pub(crate) fn any_of(&self, mut names: Vec<String>) -> Result<String> {
        let mut found = names.iter().filter(|name| self.has(name));
        match (found.next().cloned(), found.next()) {
            (Some(first), Some(second)) => {
                bail!("tensors `{first}` and `{second}`: found both, expected one of the two")
            }
            (Some(name), None) => Ok(name),
            (None, _) => Ok(names.swap_remove(0)),
        }
    }

    /// A vector of `T` of that length.
    pub(crate) fn vector<T: Number>(&self, name: &str, length: usize) -> Result<Vec<T>> {
        let tensor = self.tensor(name)?;
        let expected = dtype_of::<T>();
        if tensor.dtype() != expected || tensor.shape() != [length] {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            bail!("tensor `{name}`: found {dtype:?} of shape {shape:?}, expected {expected:?} of shape [{length}]");
        }
        Ok(elements(tensor.data()))
    }

    /// A tensor of `T` of any shape without a zero.
    pub(crate) fn array<T: Number>(&self, name: &str) -> Result<(Vec<usize>, Vec<T>)> {
        let tensor = self.tensor(name)?;
        let expected = dtype_of::<T>();
        if tensor.dtype() != expected {
            bail!("tensor `{name}`: found dtype {:?}, expected {expected:?}", tensor.dtype());
        }
        if tensor.shape().contains(&0) {
            bail!("tensor `{name}`: found shape {:?}, expected axes of at least 1", tensor.shape());
        }
        Ok((tensor.shape().to_owned(), elements(tensor.data())))
    }

    /// A vector of indices or offsets, I32 or I64, none negative.
    pub(crate) fn indices(&self, name: &str) -> Result<Vec<usize>> {
        let tensor = self.tensor(name)?;
        let values: Vec<i64> = match tensor.dtype() {
            Dtype::I32 => words(tensor.data()).map(|bytes| i64::from(i32::from_le_bytes(bytes))).collect(),
            Dtype::I64 => words(tensor.data()).map(i64::from_le_bytes).collect(),
            other => bail!("tensor `{name}`: found dtype {other:?}, expected I32 or I64"),
        };
        let index = |value: &i64| usize::try_from(*value);
        match values.iter().map(index).collect() {
            Ok(indices) => Ok(indices),
            Err(_) => bail!("tensor `{name}`: found {:?} in it, expected none below 0", values.iter().min()),
        }
    }

    /// A list of index pairs, `[n, 2]`.
    pub(crate) fn index_pairs(&self, name: &str) -> Result<Vec<(usize, usize)>> {
        match *self.tensor(name)?.shape() {
            [_, 2] => Ok(self.indices(name)?.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()),
            ref other => bail!("tensor `{name}`: found shape {other:?}, expected [n, 2]"),
        }
    }

    /// A mask of `count` entries, BOOL or U8, of any shape.
    pub(crate) fn mask(&self, name: &str, count: usize) -> Result<Vec<bool>> {
        let tensor = self.tensor(name)?;
        if !matches!(tensor.dtype(), Dtype::BOOL | Dtype::U8) || tensor.data().len() != count {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            bail!(
                "tensor `{name}`: found {dtype:?} of shape {shape:?}, expected BOOL or U8, one for each of {count} tokens"
            );
        }
        Ok(tensor.data().iter().map(|byte| *byte != 0).collect())
    }

    /// One f32: a tensor without axes, or with one of length 1.
    pub(crate) fn scalar(&self, name: &str) -> Result<f32> {
        let tensor = self.tensor(name)?;
        if tensor.dtype() != Dtype::F32 {
            bail!("tensor `{name}`: found dtype {:?}, expected F32", tensor.dtype());
        }
        match *tensor.shape() {
            [] | [1] => Ok(elements::<f32>(tensor.data())[0]),
            ref other => bail!("tensor `{name}`: found shape {other:?}, expected [] or [1]"),
        }
    }
}

/// Tensors to be written.
#[derive(Default)]
pub(crate) struct Output {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Output {
    pub(crate) fn push<T: Number>(&mut self, name: &str, shape: &[usize], values: &[T]) {
        self.tensors.push((name.to_owned(), dtype_of::<T>(), shape.to_owned(), bytes(values)));
    }

    pub(crate) fn save(&self, path: &Path, metadata: HashMap<String, String>) -> Result<()> {
        let mut views = Vec::new();
        for (name, dtype, shape, data) in &self.tensors {
            let view = TensorView::new(*dtype, shape.clone(), data).with_context(|| format!("tensor `{name}`"))?;
            views.push((name.as_str(), view));
        }
        let bytes = serialize(views, Some(metadata)).context("writing the safetensors header")?;
        fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
    }
}

fn dtype_of<T: Number>() -> Dtype {
    match <T as kernel_core::Element>::DTYPE {
        kernel_core::DType::F32 => Dtype::F32,
        kernel_core::DType::F16 => Dtype::F16,
        kernel_core::DType::Bf16 => Dtype::BF16,
    }
}

/// Whole words of `WIDTH` bytes.
fn words<const WIDTH: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; WIDTH]> + '_ {
    bytes.chunks_exact(WIDTH).map(|chunk| std::array::from_fn(|i| chunk[i]))
}

/// From little-endian bytes, which need not be aligned.
fn elements<T: Number>(bytes: &[u8]) -> Vec<T> {
    let width = size_of::<T>();
    let from_bits = |chunk: &[u8]| match <T as kernel_core::Element>::DTYPE {
        kernel_core::DType::F32 => f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]),
        kernel_core::DType::F16 => half::f16::from_le_bytes([chunk[0], chunk[1]]).to_f32(),
        kernel_core::DType::Bf16 => half::bf16::from_le_bytes([chunk[0], chunk[1]]).to_f32(),
    };
    // Widening to f32 and rounding back is exact for every value of the type.
    bytes.chunks_exact(width).map(|chunk| T::rounded(from_bits(chunk))).collect()
}

fn bytes<T: Number>(values: &[T]) -> Vec<u8> {
    let mut out = Vec::with_capacity(size_of_val(values));
    for value in values {
        let wide = kernel_core::Element::to_f32(*value);
        match <T as kernel_core::Element>::DTYPE {
            kernel_core::DType::F32 => out.extend(wide.to_le_bytes()),
            kernel_core::DType::F16 => out.extend(half::f16::from_f32(wide).to_le_bytes()),
            kernel_core::DType::Bf16 => out.extend(half::bf16::from_f32(wide).to_le_bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn elements_survive_the_way_through_bytes() {
        let values = [0.0f32, -1.5, 3.25e-3, 65504.0];
        let f16s = values.map(f16::from_f32);
        let bf16s = values.map(bf16::from_f32);
        assert_eq!(elements::<f32>(&bytes(&values)), values);
        assert_eq!(elements::<f16>(&bytes(&f16s)), f16s);
        assert_eq!(elements::<bf16>(&bytes(&bf16s)), bf16s);
        assert_eq!(bytes(&[1.0f32]), [0, 0, 128, 63]);
    }

    #[test]
    fn tensors_that_are_not_known_are_passed_over() {
        let data = bytes(&[1.0f32, 2.0]);
        let tensor = || TensorView::new(Dtype::F32, vec![2], &data).unwrap();
        let file = serialize([("a_x", tensor()), ("loss", tensor()), ("b_x", tensor())], None).unwrap();
        let input = Input::parse(&file, Names { needs: "a_x or b_x", known: &["a_x", "b_x", "c_x"] }).unwrap();
        assert_eq!(input.vector::<f32>("a_x", 2).unwrap(), [1.0, 2.0]);
        let any_of = |names: &[&str]| input.any_of(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(any_of(&["c_x", "a_x"]).unwrap(), "a_x");
        assert_eq!(any_of(&["c_x", "d_x"]).unwrap(), "c_x");
        assert!(any_of(&["a_x", "c_x", "b_x"]).unwrap_err().to_string().contains("`a_x` and `b_x`"));
    }
}
