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
        format!("{}\n\n{}", provenance(&file.header), markdown(&header.map(str::to_owned), &rows))
    });
    or_nothing(tables.collect())
}

/// What each card reaches on plain copies and plain cuBLASLt products.
pub(crate) fn ceilings(files: &[BenchFile]) -> String {
    let measured: Vec<_> = files.iter().filter(|file| !file.ceilings.is_empty()).collect();
    let mut names: Vec<&String> = measured.iter().flat_map(|file| file.ceilings.keys()).collect();
    names.sort();
    names.dedup();
    let header: Vec<String> =
        std::iter::once("card".to_owned()).chain(names.iter().map(|name| (*name).clone())).collect();
    let rows: Vec<Vec<String>> = measured
        .iter()
        .map(|file| {
            let figures = names.iter().map(|name| file.ceilings.get(*name).map_or("-".into(), |v| significant(*v, 4)));
            std::iter::once(file.header.gpu.clone()).chain(figures).collect()
        })
        .collect();
    if rows.is_empty() { NOTHING.to_owned() } else { markdown(&header, &rows) }
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
        for op in ops {
            let rows: Vec<&BenchRow> = file.rows.iter().filter(|row| row.family == family && row.op == op).collect();
            let what = if op == "step" { "loss and all gradients".to_owned() } else { op.replace('_', " ") };
            parts.push(format!("**{what}**: {}\n\n{}", provenance(&file.header), op_table(&rows)));
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

fn op_table(rows: &[&BenchRow]) -> String {
    let columns = columns(rows);
    let mut shapes: Vec<(BTreeMap<String, u64>, String)> =
        rows.iter().map(|row| (row.shape.clone(), row.dtype.clone())).collect();
    shapes.sort_by(|a, b| (&a.1, shape_order(&a.0)).cmp(&(&b.1, shape_order(&b.0))));
    shapes.dedup();
    let header: Vec<String> = ["shape".to_owned(), "dtype".to_owned()]
        .into_iter()
        .chain(columns.iter().map(column_name))
        .chain(["ours against the best peer".to_owned()])
        .collect();
    let lines: Vec<Vec<String>> = shapes
        .iter()
        .map(|(shape, dtype)| {
            let here: Vec<&BenchRow> =
                rows.iter().copied().filter(|row| &row.shape == shape && &row.dtype == dtype).collect();
            let cells = columns.iter().map(|(implementation, route)| {
                here.iter()
                    .find(|row| &row.implementation == implementation && &row.route == route)
                    .map_or("-".into(), |r| cell(r))
            });
            [shape_name(shape), dtype.clone()].into_iter().chain(cells).chain([ratio(&here)]).collect()
        })
        .collect();
    markdown(&header, &lines)
}

fn cell(row: &BenchRow) -> String {
    let memory = row.peak_bytes.map(|peak| format!(", {}", bytes(peak))).unwrap_or_default();
    format!("{} ms ({:.0} TF/s{memory})", milliseconds(row.ms_median), tflops(row.flop, row.ms_median))
}

/// How many times faster our automatic route is than the fastest peer, and whether two runs stand behind that; `-` where either was not measured.
fn ratio(rows: &[&BenchRow]) -> String {
    let ours = rows.iter().find(|row| row.implementation == "ours" && row.auto);
    let peers = rows.iter().filter(|row| row.implementation != "ours" && row.implementation != "cublas");
    let best = peers.min_by(|a, b| a.ms_median.total_cmp(&b.ms_median));
    match (ours, best) {
        (Some(ours), Some(best)) => {
            // The rows of one race carry one date.
            let runs = if ours.date == best.date { "" } else { " (two runs)" };
            format!("{:.2}×{runs}", best.ms_median / ours.ms_median)
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

fn provenance(header: &Header) -> String {
    let day = header.date.split('T').next().unwrap_or_default();
    format!("{}, driver {}, CUDA {}, {day}", header.gpu, header.driver, header.cuda)
}

fn or_nothing(parts: Vec<String>) -> String {
    if parts.is_empty() { NOTHING.to_owned() } else { parts.join("\n") }
}

#[cfg(test)]
#[path = "tables_test.rs"]
mod tests;
