use super::*;
use crate::results::testing::{bench_file, bench_row, parity_file, parity_row};

#[test]
fn a_line_a_shape_and_a_column_an_implementation() {
    let file = bench_file(vec![
        bench_row("siglip-kernel 0.1.2", "auto", 16384, 2.5),
        bench_row("ours", "chunked", 16384, 2.0),
        bench_row("ours", "portable", 16384, 4.0),
        bench_row("cublas", "chunked", 8192, 0.5),
        bench_row("ours", "chunked", 8192, 0.6),
    ]);
    let table = bench(&[file], "siglip");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "**loss and all gradients**: NVIDIA H200, driver 580.1, CUDA 13.0, 2026-01-02");
    assert_eq!(
        lines[2],
        "| shape | dtype | ours, chunked | ours, portable | bare cuBLAS GEMMs | siglip-kernel 0.1.2 | host time of a call | ours against the best peer | the same by fastest samples |"
    );
    assert_eq!(
        lines[4],
        "| B=8,192 D=768 | bf16 | 0.600 ms (515 TF/s, 8.19 MB) | - | 0.500 ms (618 TF/s, 8.19 MB) | - | - | - | - |"
    );
    assert!(lines[5].starts_with("| B=16,384 D=768 | bf16 | 2.00 ms (618 TF/s, 16.4 MB) | 4.00 ms"), "{}", lines[5]);
    assert!(lines[5].ends_with("| - | 1.25× | 1.25× |"), "{}", lines[5]);
}

#[test]
fn rows_of_two_runs_are_told_apart() {
    let earlier = crate::results::BenchRow {
        date: "2026-01-01T00:00:00Z".to_owned(),
        ..bench_row("siglip-kernel 0.1.2", "auto", 8192, 2.4)
    };
    let table = bench(&[bench_file(vec![bench_row("ours", "chunked", 8192, 0.6), earlier])], "siglip");
    assert!(table.contains("| 4.00× (two runs) |"), "{table}");
    assert!(table.contains("CUDA 13.0, 2026-01-01 to 2026-01-02"), "{table}");
}

#[test]
fn a_host_bound_peer_shows_in_its_fastest_samples() {
    let ours = crate::results::BenchRow { host_us: Some(14.46), ..bench_row("ours", "chunked", 8192, 0.5) };
    let peer = crate::results::BenchRow { ms_min: 0.9, ..bench_row("siglip-kernel 0.1.2", "auto", 8192, 2.0) };
    let table = bench(&[bench_file(vec![ours, peer])], "siglip");
    assert!(table.contains("| 14.5 µs | 4.00× | 2.00× |"), "{table}");
}

#[test]
fn figures_of_earlier_sources_are_marked() {
    let earlier = crate::results::BenchRow {
        date: "2026-01-01T00:00:00Z".to_owned(),
        source_hash: "feed".to_owned(),
        ..bench_row("ours", "chunked", 8192, 0.6)
    };
    let table = bench(&[bench_file(vec![earlier, bench_row("ours", "chunked", 16384, 2.0)])], "siglip");
    assert!(table.contains("| 0.600 ms† (515 TF/s") && table.contains("| 2.00 ms (618 TF/s"), "{table}");
    assert!(table.ends_with("\n† of earlier sources than the rest.\n"), "{table}");
}

#[test]
fn nothing_measured_is_said() {
    assert_eq!(bench(&[], "siglip"), NOTHING);
    assert_eq!(bench(&[bench_file(vec![bench_row("ours", "chunked", 8, 1.0)])], "maxsim"), NOTHING);
    assert_eq!(parity(&[]), NOTHING);
    assert_eq!(ceilings(&[]), NOTHING);
}

#[test]
fn parity_tells_a_failure() {
    let table = parity(&[parity_file(vec![parity_row("bf16", 1e-3), parity_row("f16", 1e-1)])]);
    assert!(
        table.contains("| siglip | step | bf16 | chunked | 64 | 1.0e-3 | 5.0e-4 | 3.0e-3 | pass, same bits twice |")
    );
    assert!(table.contains("| siglip | step | f16 | chunked | 64 | 1.0e-1 | 5.0e-2 | 3.0e-3 | **fail** |"));
}

#[test]
fn ceilings_have_a_line_each() {
    let table = ceilings(&[bench_file(Vec::new())]);
    assert_eq!(
        table,
        "| figure | NVIDIA H200 |\n| --- | ---: |\n| copying on the device, read and written, GB/s | 4100 |\n"
    );
}

#[test]
fn a_plot_needs_two_sizes_and_is_the_same_twice() {
    let one = bench_file(vec![bench_row("ours", "chunked", 8192, 0.6)]);
    assert!(crate::report::plot::siglip_step(&one).unwrap().is_none());
    let two = bench_file(vec![bench_row("ours", "chunked", 8192, 0.6), bench_row("ours", "chunked", 16384, 2.0)]);
    let svg = crate::report::plot::siglip_step(&two).unwrap().unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("ours, chunked"), "{svg}");
    assert_eq!(svg, crate::report::plot::siglip_step(&two).unwrap().unwrap());
}
