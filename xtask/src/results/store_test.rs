use super::testing::{bench_file, bench_row, parity_file, parity_row};
use super::*;
use std::fs;
use std::io::Write;

#[test]
fn a_partial_run_replaces_only_its_own_rows() {
    let folder = tempfile::tempdir().unwrap();
    let first = bench_file(vec![bench_row("ours", "chunked", 8192, 1.0), bench_row("ours", "chunked", 16384, 4.0)]);
    let path = merge_and_save(folder.path(), "h200", first).unwrap();
    assert_eq!(path, folder.path().join("bench-h200.json"));

    let mut second =
        bench_file(vec![bench_row("ours", "chunked", 16384, 3.0), bench_row("peer 1.0", "auto", 16384, 5.0)]);
    second.header.date = "2027-01-01T00:00:00Z".into();
    second.ceilings = [("gemm_bf16_tflops".to_owned(), 790.0)].into();
    merge_and_save(folder.path(), "h200", second).unwrap();

    let files: Vec<BenchFile> = load_all(folder.path()).unwrap();
    assert_eq!(files.len(), 1);
    let times: Vec<_> = files[0].rows.iter().map(|row| (row.implementation.as_str(), row.ms_median)).collect();
    assert_eq!(times, [("ours", 1.0), ("ours", 3.0), ("peer 1.0", 5.0)]);
    assert_eq!(files[0].header.date, "2027-01-01T00:00:00Z");
    assert_eq!(files[0].ceilings.len(), 2, "ceilings that were not measured again stay");
}

#[test]
fn rows_differ_by_dtype_route_and_shape() {
    let folder = tempfile::tempdir().unwrap();
    merge_and_save(folder.path(), "h200", parity_file(vec![parity_row("bf16", 1e-3)])).unwrap();
    merge_and_save(folder.path(), "h200", parity_file(vec![parity_row("f16", 1e-4)])).unwrap();
    merge_and_save(folder.path(), "h200", parity_file(vec![parity_row("bf16", 2e-3)])).unwrap();
    let files: Vec<ParityFile> = load_all(folder.path()).unwrap();
    let worst: Vec<_> = files[0].rows.iter().map(|row| (row.dtype.as_str(), row.worst_max_rel)).collect();
    assert_eq!(worst, [("bf16", 2e-3), ("f16", 1e-4)]);
}

#[test]
fn another_card_is_refused_and_the_file_stays() {
    let folder = tempfile::tempdir().unwrap();
    merge_and_save(folder.path(), "h200", bench_file(vec![bench_row("ours", "chunked", 8, 1.0)])).unwrap();
    let mut other = bench_file(vec![bench_row("ours", "chunked", 8, 2.0)]);
    other.header.gpu = "NVIDIA H200 NVL".into();
    let message = merge_and_save(folder.path(), "h200", other).unwrap_err().to_string();
    assert!(message.contains("`NVIDIA H200`") && message.contains("`NVIDIA H200 NVL`"), "{message}");
    let files: Vec<BenchFile> = load_all(folder.path()).unwrap();
    assert_eq!(files[0].rows[0].ms_median, 1.0);
}

#[test]
fn the_json_has_the_names_of_the_schema() {
    let bench = serde_json::to_value(bench_file(vec![bench_row("ours", "chunked", 8, 1.0)])).unwrap();
    for name in ["gpu", "driver", "cuda", "date", "source_hash", "ceilings", "rows"] {
        assert!(bench.get(name).is_some(), "bench lacks {name}");
    }
    let names = [
        "family",
        "op",
        "shape",
        "dtype",
        "route",
        "impl",
        "ms_median",
        "ms_min",
        "ms_max",
        "flop",
        "bytes",
        "peak_bytes",
    ];
    for name in names {
        assert!(bench["rows"][0].get(name).is_some(), "a bench row lacks {name}");
    }
    let parity = serde_json::to_value(parity_file(vec![parity_row("bf16", 1e-3)])).unwrap();
    let names = ["family", "op", "dtype", "route", "cases", "worst_max_rel", "worst_l2_rel", "tolerance", "passed"];
    for name in names {
        assert!(parity["rows"][0].get(name).is_some(), "a parity row lacks {name}");
    }
}

#[test]
fn a_broken_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("bench-h200.json"), "{\"gpu\": 3").unwrap();
    let message = load_all::<BenchFile>(folder.path()).unwrap_err().to_string();
    assert!(message.contains("bench-h200.json is not a results file"), "{message}");
}

#[test]
fn old_sources_are_told() {
    let mut file = bench_file(vec![bench_row("ours", "chunked", 8, 1.0), bench_row("ours", "chunked", 16, 1.0)]);
    assert!(stale(&file).is_empty());
    file.rows[0].source_hash = "0123456789abcdef".into();
    let lines = stale(&file);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("bench of siglip on NVIDIA H200") && lines[0].contains("0123456789abcdef"), "{lines:?}");
}

/// Says loudly when a committed result was measured on other sources than today's, which only a new run on that card can mend; a result that failed may not be
/// committed at all.
#[test]
fn committed_results_are_of_todays_sources() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../results");
    let parity: Vec<ParityFile> = load_all(&folder).unwrap();
    let bench: Vec<BenchFile> = load_all(&folder).unwrap();
    let lines: Vec<String> = parity.iter().flat_map(stale).chain(bench.iter().flat_map(stale)).collect();
    // To stderr itself: `eprintln` is kept by the test harness when a test passes.
    let say = |line: &str| writeln!(std::io::stderr(), "WARNING: {line}").unwrap();
    for line in &lines {
        say(&format!("STALE RESULTS: {line}"));
    }
    if parity.is_empty() && bench.is_empty() {
        say("no results files are committed");
    }
    let failed: Vec<_> = parity.iter().flat_map(|file| &file.rows).filter(|row| !row.passed).collect();
    assert!(failed.is_empty(), "committed results that failed: {failed:?}");
}
