//! The tables of README, from results files.

use super::format::{bytes, markdown, milliseconds, significant, tflops, thousands};
use crate::results::{BenchFile, BenchRow, Header, ParityFile};
use std::collections::BTreeMap;

const NOTHING: &str = "Nothing measured yet.";

/// Worst errors against f64, per family, operation, dtype and route.
pub(crate) fn parity(files: &[ParityFile]) -> String {
    let header = [
        "family",
        "op",
        "dtype",
        "route",
        "cases",
        "worst max\\|Δ\\|/max\\|ref\\|",
        "worst ‖Δ‖/‖ref‖",
        "tolerance",
        "result",
    ];
    let tables = files.iter().map(|file| {
        let rows: Vec<Vec<String>> = file
            .rows
            .iter()
            .map(|row| {
                let result = match (row.passed, row.reproducible) {
                    (true, true) => "pass, same bits twice",
                    (true, false) => "pass",
                    (false, _) => "**fail**",
                };
                vec![
                    row.family.clone(),
                    row.op.clone(),
                    row.dtype.clone(),
                    row.route.clone(),
                    row.cases.to_string(),
                    format!("{:.1e}", row.worst_max_rel),
                    format!("{:.1e}", row.worst_l2_rel),
                    format!("{:.1e}", row.tolerance),
                    result.to_owned(),
                ]
            })
            .collect();
        let dates = file.rows.iter().map(|row| row.date.as_str());
        format!("{}\n\n{}", provenance(&file.header, dates), markdown(&header.map(str::to_owned), &rows))
    });
    or_nothing(tables.collect())
}

/// What each card reaches on plain copies and plain cuBLASLt products, and what a first call costs: a line a figure, a column a card.
pub(crate) fn ceilings(files: &[BenchFile]) -> String {
    let measured: Vec<_> = files.iter().filter(|file| !file.ceilings.is_empty()).collect();
    let mut names: Vec<&String> = measured.iter().flat_map(|file| file.ceilings.keys()).collect();
    names.sort();
    names.dedup();
    let header: Vec<String> =
        std::iter::once("figure".to_owned()).chain(measured.iter().map(|file| file.header.gpu.clone())).collect();
    let rows: Vec<Vec<String>> = names
        .iter()
        .map(|name| {
            let figures = measured.iter().map(|f| f.ceilings.get(*name).map_or("-".into(), |v| significant(*v, 4)));
            std::iter::once(ceiling_name(name).to_owned()).chain(figures).collect()
        })
        .collect();
    if rows.is_empty() { NOTHING.to_owned() } else { markdown(&header, &rows) }
}

/// What a key of [`BenchFile::ceilings`] stands for, with its unit; a key of another version as it is.
fn ceiling_name(key: &str) -> &str {
    match key {
        "copy_gbps" => "copying on the device, read and written, GB/s",
        "read_gbps" => "reading, GB/s",
        "gemm_bf16_tflops" => "cuBLASLt's bf16 product of 8,192 cubed, TF/s",
        "siglip_first_call_without_cache_s" => "SigLIP's first step, B = 4,096, nothing cached, s",
        "siglip_first_call_with_cache_s" => "SigLIP's first step, B = 4,096, in a later process, s",
        "siglip_tuned_first_call_without_cache_s" => "SigLIP's first step with `tune`, B = 65,536, nothing cached, s",
        "siglip_tuned_first_call_with_cache_s" => "SigLIP's first step with `tune`, B = 65,536, in a later process, s",
        key => key,
    }
}

/// Times and memory of one family, a table for each card and operation: a line a shape, a column an implementation.
pub(crate) fn bench(files: &[BenchFile], family: &str) -> String {
    let mut parts = Vec::new();
    for file in files {
        let mut ops: Vec<&str> = Vec::new();
        for row in file.rows.iter().filter(|row| row.family == family) {
            if !ops.contains(&row.op.as_str()) {
                ops.push(&row.op);
            }
        }
        let newest = file.rows.iter().filter(|row| row.family == family).max_by(|a, b| a.date.cmp(&b.date));
        let sources = newest.map_or("", |row| row.source_hash.as_str());
        for op in ops {
            let rows: Vec<&BenchRow> = file.rows.iter().filter(|row| row.family == family && row.op == op).collect();
            let what = if op == "step" { "loss and all gradients".to_owned() } else { op.replace('_', " ") };
            let dates = rows.iter().map(|row| row.date.as_str());
            parts.push(format!("**{what}**: {}\n\n{}", provenance(&file.header, dates), op_table(&rows, sources)));
        }
    }
    or_nothing(parts)
}

/// Columns of one implementation and route, in the order of first appearance, ours first.
pub(crate) fn columns(rows: &[&BenchRow]) -> Vec<(String, String)> {
    let mut columns: Vec<(String, String)> = Vec::new();
    for row in rows {
        let column = (row.implementation.clone(), row.route.clone());
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns.sort_by_key(|(implementation, _)| match implementation.as_str() {
        "ours" => 0,
        "cublas" => 1,
        _ => 2,
    });
    columns
}

pub(crate) fn column_name((implementation, route): &(String, String)) -> String {
    match implementation.as_str() {
        "ours" => format!("ours, {route}"),
        "cublas" => "bare cuBLAS GEMMs".to_owned(),
        peer => peer.to_owned(),
    }
}

/// One operation's shapes. `sources` is the hash of the family's newest rows; rows of others are marked.
fn op_table(rows: &[&BenchRow], sources: &str) -> String {
    let columns = columns(rows);
    let mut shapes: Vec<(BTreeMap<String, u64>, String)> =
        rows.iter().map(|row| (row.shape.clone(), row.dtype.clone())).collect();
    shapes.sort_by(|a, b| (&a.1, shape_order(&a.0)).cmp(&(&b.1, shape_order(&b.0))));
    shapes.dedup();
    let header: Vec<String> = ["shape".to_owned(), "dtype".to_owned()]
        .into_iter()
        .chain(columns.iter().map(column_name))
        .chain(["host time of a call", "ours against the best peer", "the same by fastest samples"].map(str::to_owned))
        .collect();
    let lines: Vec<Vec<String>> = shapes
        .iter()
        .map(|(shape, dtype)| {
            let here: Vec<&BenchRow> =
                rows.iter().copied().filter(|row| &row.shape == shape && &row.dtype == dtype).collect();
            let cells = columns.iter().map(|(implementation, route)| {
                here.iter()
                    .find(|row| &row.implementation == implementation && &row.route == route)
                    .map_or("-".into(), |r| cell(r, sources))
            });
            let ratios = [ratio(&here, |row| row.ms_median), ratio(&here, |row| row.ms_min)];
            [shape_name(shape), dtype.clone()]
                .into_iter()
                .chain(cells)
                .chain([host_time(&here)])
                .chain(ratios)
                .collect()
        })
        .collect();
    let table = markdown(&header, &lines);
    if table.contains(OLDER) { format!("{table}\n{OLDER} of earlier sources than the rest.\n") } else { table }
}

/// Marks a figure that is not of the family's newest sources.
const OLDER: &str = "†";

fn cell(row: &BenchRow, sources: &str) -> String {
    let memory = row.peak_bytes.map(|peak| format!(", {}", bytes(peak))).unwrap_or_default();
    let older = if row.source_hash == sources { "" } else { OLDER };
    format!("{} ms{older} ({:.0} TF/s{memory})", milliseconds(row.ms_median), tflops(row.flop, row.ms_median))
}

fn ours<'a>(rows: &[&'a BenchRow]) -> Option<&'a BenchRow> {
    rows.iter().copied().find(|row| row.implementation == "ours" && row.auto)
}

/// Of our automatic route.
fn host_time(rows: &[&BenchRow]) -> String {
    ours(rows).and_then(|row| row.host_us).map_or("-".to_owned(), |us| format!("{} µs", significant(us, 3)))
}

/// How many times faster our automatic route is than the fastest peer, and whether two runs stand behind that; `-` where either was not measured.
fn ratio(rows: &[&BenchRow], ms: impl Fn(&BenchRow) -> f64) -> String {
    let peers = rows.iter().copied().filter(|row| row.implementation != "ours" && row.implementation != "cublas");
    let best = peers.min_by(|a, b| ms(a).total_cmp(&ms(b)));
    match (ours(rows), best) {
        (Some(ours), Some(best)) => {
            // The rows of one race carry one date.
            let runs = if ours.date == best.date { "" } else { " (two runs)" };
            format!("{:.2}×{runs}", ms(best) / ms(ours))
        }
        _ => "-".to_owned(),
    }
}

/// Sorts by D first, then by the rest in the order of their names.
fn shape_order(shape: &BTreeMap<String, u64>) -> Vec<u64> {
    let mut order: Vec<u64> = shape.get("D").copied().into_iter().collect();
    order.extend(shape.iter().filter(|(name, _)| *name != "D").map(|(_, value)| *value));
    order
}

pub(crate) fn shape_name(shape: &BTreeMap<String, u64>) -> String {
    shape.iter().map(|(name, value)| format!("{name}={}", thousands(*value))).collect::<Vec<_>>().join(" ")
}

/// Card, versions, and the day or days on which rows of `dates` (RFC 3339) were measured.
fn provenance<'a>(header: &Header, dates: impl Iterator<Item = &'a str> + Clone) -> String {
    let day = |date: &'a str| date.split('T').next().unwrap_or_default();
    let days = match (dates.clone().map(day).min(), dates.map(day).max()) {
        (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
        (_, last) => last.unwrap_or_default().to_owned(),
    };
    format!("{}, driver {}, CUDA {}, {days}", header.gpu, header.driver, header.cuda)
}

fn or_nothing(parts: Vec<String>) -> String {
    if parts.is_empty() { NOTHING.to_owned() } else { parts.join("\n") }
}

#[cfg(test)]
#[path = "tables_test.rs"]
mod tests;
