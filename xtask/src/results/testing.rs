//! Made-up results for tests of this crate.

use super::schema::{BenchFile, BenchRow, Header, ParityFile, ParityRow};
use crate::source_hash;
use std::collections::BTreeMap;

pub(crate) fn header() -> Header {
    Header {
        gpu: "NVIDIA H200".into(),
        driver: "580.1".into(),
        cuda: "13.0".into(),
        date: "2026-01-02T03:04:05Z".into(),
        source_hash: source_hash::ALL.into(),
    }
}

pub(crate) fn bench_row(implementation: &str, route: &str, b: u64, ms: f64) -> BenchRow {
    BenchRow {
        family: "siglip".into(),
        op: "step".into(),
        shape: BTreeMap::from([("B".to_owned(), b), ("D".to_owned(), 768)]),
        dtype: "bf16".into(),
        route: route.into(),
        implementation: implementation.into(),
        ms_median: ms,
        ms_min: ms * 0.9,
        ms_max: ms * 1.1,
        flop: 6 * b * b * 768,
        bytes: 8 * b * 768,
        peak_bytes: Some(b * 1000),
        host_us: None,
        auto: implementation == "ours" && route == "chunked",
        reps: 20,
        date: "2026-01-02T03:04:05Z".into(),
        source_hash: source_hash::of_family("siglip").unwrap_or_default().into(),
    }
}

pub(crate) fn bench_file(rows: Vec<BenchRow>) -> BenchFile {
    BenchFile { header: header(), ceilings: BTreeMap::from([("copy_gbps".to_owned(), 4100.0)]), rows }
}

pub(crate) fn parity_row(dtype: &str, worst: f64) -> ParityRow {
    ParityRow {
        family: "siglip".into(),
        op: "step".into(),
        dtype: dtype.into(),
        route: "chunked".into(),
        cases: 64,
        worst_max_rel: worst,
        worst_l2_rel: worst / 2.0,
        tolerance: 3e-3,
        passed: worst < 3e-3,
        reproducible: true,
        seed: 7,
        date: "2026-01-02T03:04:05Z".into(),
        source_hash: source_hash::of_family("siglip").unwrap_or_default().into(),
    }
}

pub(crate) fn parity_file(rows: Vec<ParityRow>) -> ParityFile {
    ParityFile { header: header(), rows }
}
