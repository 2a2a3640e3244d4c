//! The bundle's `run` script.

/// A POSIX script beside `bin/` and `tests/`: `./run test [FILTER]`, everything else goes to xtask.
///
/// Results go to `./results` of the current folder unless `RESULTS_DIR` or `--results` says otherwise.
pub(crate) const RUN: &str = r#"#!/bin/sh
# Runs what was built with `cargo xtask bundle`. Needs an NVIDIA driver, and NVRTC for anything on the GPU (`./run toolchain` fetches it).
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)

usage() {
    cat <<'TEXT'
usage: ./run parity [--cases N] [--seed S] [--family F] [--require-gpu]
       ./run bench --gpu h100|h200|a100|auto [--family F] [--peers] [--quick]
       ./run eval siglip|swiglu|maxsim --input IN.safetensors --output OUT.safetensors [--device cpu|cuda:0]
       ./run test [ARGUMENTS OF A RUST TEST BINARY]     the GPU tests of every crate; they fail without a GPU
       ./run bench-host [ARGUMENTS OF CRITERION]        the criterion benches, if any were bundled
       ./run doctor | toolchain | compile               see ./run COMMAND --help
Results are written to ./results, or to $RESULTS_DIR, or to the folder after --results.
TEXT
}

# run_all FOLDER ARGUMENTS...: every executable in it, each in turn; fails when one does, or when there is none
run_all() {
    folder=$1
    shift
    failed=0
    found=0
    for program in "$here/$folder"/*; do
        [ -x "$program" ] || continue
        found=1
        echo "== $folder/$(basename -- "$program")"
        "$program" "$@" || failed=1
    done
    if [ "$found" = 0 ]; then
        echo "nothing in $here/$folder: none was there when the bundle was built" >&2
        return 1
    fi
    return "$failed"
}

case "${1:-}" in
"" | -h | --help | help)
    usage
    ;;
test)
    shift
    # one test at a time: they share one card's memory; a test that finds no GPU fails here instead of being skipped
    KERNELS_REQUIRE_GPU=${KERNELS_REQUIRE_GPU:-1}
    export KERNELS_REQUIRE_GPU
    run_all tests --test-threads=1 "$@"
    ;;
bench-host)
    shift
    run_all benches --bench "$@"
    ;;
*)
    XTASK_PEERS_DIR=${XTASK_PEERS_DIR:-$here/peers} exec "$here/bin/xtask" "$@"
    ;;
esac
"#;
