//! The corpus in `data/docstring-code`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use maxsim_kernel::Spans;
use maxsim_kernel::kernel_core::half::f16;

pub(crate) const DIM: usize = 128;

/// Where the repository keeps it.
pub(crate) fn default_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/docstring-code")
}

/// One function.
pub(crate) struct Text {
    pub(crate) query: String,
    /// Where it stands, such as `http/server.py:send_header`.
    pub(crate) source: String,
    pub(crate) query_tokens: Vec<String>,
    pub(crate) code_tokens: Vec<String>,
}

pub(crate) struct Corpus {
    pub(crate) texts: Vec<Text>,
    pub(crate) queries: Spans,
    pub(crate) code: Spans,
    /// `[tokens, DIM]`, rows of unit length.
    pub(crate) query_tokens: Vec<f16>,
    pub(crate) code_tokens: Vec<f16>,
}

impl Corpus {
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let file = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        let lines = String::from_utf8(file("texts.jsonl")?)?;
        let texts = lines.lines().map(text).collect::<Result<Vec<_>>>()?;
        let read = |names: &[&str]| -> Result<Vec<f16>> {
            let mut tokens = Vec::new();
            for name in names {
                tokens.extend(file(name)?.chunks_exact(DIM).flat_map(unit_row));
            }
            Ok(tokens)
        };
        let corpus = Self {
            queries: Spans::of_lengths(texts.iter().map(|text| text.query_tokens.len())),
            code: Spans::of_lengths(texts.iter().map(|text| text.code_tokens.len())),
            query_tokens: read(&["query_tokens.i8"])?,
            code_tokens: read(&["code_tokens_0.i8", "code_tokens_1.i8"])?,
            texts,
        };
        let expected = (corpus.queries.rows() * DIM, corpus.code.rows() * DIM);
        if (corpus.query_tokens.len(), corpus.code_tokens.len()) != expected {
            bail!("the embeddings are not as many as the word pieces");
        }
        Ok(corpus)
    }

    /// One query alone.
    pub(crate) fn query(&self, index: usize) -> (Spans, &[f16]) {
        let span = self.queries.span(index);
        (self.queries.slice(index..index + 1), &self.query_tokens[span.start * DIM..span.end * DIM])
    }

    /// One function alone.
    pub(crate) fn function(&self, index: usize) -> (Spans, &[f16]) {
        let span = self.code.span(index);
        (self.code.slice(index..index + 1), &self.code_tokens[span.start * DIM..span.end * DIM])
    }
}

fn text(line: &str) -> Result<Text> {
    let value: serde_json::Value = serde_json::from_str(line)?;
    let string = |name: &str| value[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
    let strings = |name: &str| -> Result<Vec<String>> {
        let list = value[name].as_array().with_context(|| format!("no {name}"))?;
        Ok(list.iter().map(|piece| piece.as_str().unwrap_or_default().to_owned()).collect())
    };
    Ok(Text {
        query: string("query")?,
        source: string("source")?,
        query_tokens: strings("query_tokens")?,
        code_tokens: strings("code_tokens")?,
    })
}

/// A row of signed bytes as a vector of length 1.
fn unit_row(bytes: &[u8]) -> impl Iterator<Item = f16> + '_ {
    let value = |byte: &u8| f32::from(byte.cast_signed());
    let length = bytes.iter().map(value).map(|x| x * x).sum::<f32>().sqrt().max(1.0);
    bytes.iter().map(move |byte| f16::from_f32(value(byte) / length))
}
