//! What a results file holds. DESIGN: one file a GPU and kind, rows merged by key, so that a partial run replaces only its own rows.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where and on what the newest rows of a file were measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// The card's full name, as the driver gives it.
    pub(crate) gpu: String,
    /// The driver's version, such as `580.95.05`.
    pub(crate) driver: String,
    /// The version of NVRTC that compiled the kernels.
    pub(crate) cuda: String,
    /// RFC 3339, UTC.
    pub(crate) date: String,
    /// Hash of the sources of all families (each row carries its own family's).
    pub(crate) source_hash: String,
}

/// What tells a row of one kind from another: a new row replaces the old one with the same key.
pub(crate) trait Row: Serialize + DeserializeOwned + Clone {
    type Key: PartialEq;
    fn key(&self) -> Self::Key;
    fn family(&self) -> &str;
    fn source_hash(&self) -> &str;
}

/// A results file, generic in its rows and in what else it holds.
pub(crate) trait ResultsFile: Serialize + DeserializeOwned {
    /// The file is `<KIND>-<gpu>.json`.
    const KIND: &'static str;
    type Row: Row;
    fn header(&self) -> &Header;
    fn rows(&self) -> &[Self::Row];
    /// Takes the header, the rows and whatever else a newer run measured.
    fn absorb(&mut self, newer: Self);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ParityFile {
    #[serde(flatten)]
    pub(crate) header: Header,
    pub(crate) rows: Vec<ParityRow>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ParityRow {
    pub(crate) family: String,
    pub(crate) op: String,
    pub(crate) dtype: String,
    pub(crate) route: String,
    pub(crate) cases: u64,
    /// Worst max|d| / max|ref| over the cases.
    pub(crate) worst_max_rel: f64,
    /// Worst |d|2 / |ref|2 over the cases.
    pub(crate) worst_l2_rel: f64,
    /// The loosest bound that a case was held to, on both figures.
    pub(crate) tolerance: f64,
    pub(crate) passed: bool,
    /// Every case was run twice and gave the same bits.
    pub(crate) reproducible: bool,
    pub(crate) seed: u64,
    pub(crate) date: String,
    pub(crate) source_hash: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BenchFile {
    #[serde(flatten)]
    pub(crate) header: Header,
    /// What the card reaches on the plainest work: `copy_gbps`, `read_gbps`, `gemm_bf16_tflops`; and costs that belong to no shape.
    #[serde(default)]
    pub(crate) ceilings: BTreeMap<String, f64>,
    pub(crate) rows: Vec<BenchRow>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BenchRow {
    pub(crate) family: String,
    /// `forward`, `step` (forward and all gradients), `score`, `score_step`.
    pub(crate) op: String,
    pub(crate) shape: BTreeMap<String, u64>,
    pub(crate) dtype: String,
    pub(crate) route: String,
    /// `ours`, `cublas`, or a peer's name and version.
    #[serde(rename = "impl")]
    pub(crate) implementation: String,
    pub(crate) ms_median: f64,
    pub(crate) ms_min: f64,
    pub(crate) ms_max: f64,
    /// Floating-point operations that the definition of the operation needs.
    pub(crate) flop: u64,
    /// Bytes that any implementation must move: inputs read once, outputs written once.
    pub(crate) bytes: u64,
    /// Device memory above the inputs, outputs included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peak_bytes: Option<u64>,
    /// Host time of one call on an idle stream, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host_us: Option<f64>,
    /// Set on the route that `auto` takes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) auto: bool,
    pub(crate) reps: u64,
    pub(crate) date: String,
    pub(crate) source_hash: String,
}

impl Row for ParityRow {
    type Key = [String; 4];
    fn key(&self) -> Self::Key {
        [self.family.clone(), self.op.clone(), self.dtype.clone(), self.route.clone()]
    }
    fn family(&self) -> &str {
        &self.family
    }
    fn source_hash(&self) -> &str {
        &self.source_hash
    }
}

impl Row for BenchRow {
    type Key = ([String; 5], BTreeMap<String, u64>);
    fn key(&self) -> Self::Key {
        let words = [&self.family, &self.op, &self.dtype, &self.route, &self.implementation];
        (words.map(String::clone), self.shape.clone())
    }
    fn family(&self) -> &str {
        &self.family
    }
    fn source_hash(&self) -> &str {
        &self.source_hash
    }
}

/// Replaces rows of the same key in place and appends the others.
pub(crate) fn merge_rows<R: Row>(rows: &mut Vec<R>, newer: Vec<R>) {
    for row in newer {
        match rows.iter_mut().find(|old| old.key() == row.key()) {
            Some(old) => *old = row,
            None => rows.push(row),
        }
    }
}

impl ResultsFile for ParityFile {
    const KIND: &'static str = "parity";
    type Row = ParityRow;
    fn header(&self) -> &Header {
        &self.header
    }
    fn rows(&self) -> &[ParityRow] {
        &self.rows
    }
    fn absorb(&mut self, newer: Self) {
        self.header = newer.header;
        merge_rows(&mut self.rows, newer.rows);
    }
}

impl ResultsFile for BenchFile {
    const KIND: &'static str = "bench";
    type Row = BenchRow;
    fn header(&self) -> &Header {
        &self.header
    }
    fn rows(&self) -> &[BenchRow] {
        &self.rows
    }
    fn absorb(&mut self, newer: Self) {
        self.header = newer.header;
        self.ceilings.extend(newer.ceilings);
        merge_rows(&mut self.rows, newer.rows);
    }
}
