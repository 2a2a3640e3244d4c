//! Every dtype and route against f64, over shapes, positives, blocks, strides and scalars.

use siglip_kernel::cpu::Element;
use siglip_kernel::kernel_core::half::{bf16, f16};
use siglip_kernel::{Chunk, Options, Plan, Positives, Route};

use crate::case::{Case, Host, WIDE_TILES, run};
use crate::compare::{Truth, check_unit};
use crate::support::{gpu, per_dtype, say};

/// 16-bit gradients of pairs without positives are small; a loss scale keeps them out of f16's subnormals, as it does in training.
const LOSS_SCALE: f32 = 4096.0;

fn shapes<T: Element>() {
    let sizes = [
        (1, 1, 8),
        (1, 1, 9),
        (1, 1, 1),
        (2, 3, 8),
        (1, 513, 24),
        (513, 1, 16),
        (127, 129, 33),
        (129, 127, 64),
        (128, 128, 128),
        (256, 384, 136),
        (300, 517, 72),
        (300, 517, 1200),
        (385, 641, 100),
        (130, 70, 1152),
        (65, 257, 511),
        (100, 90, 2049),
        (128, 130, 4096),
    ];
    check_unit::<T>(sizes.map(|(rows, cols, dim)| Case::new(rows, cols, dim)));
}

fn offsets<T: Element>() {
    let offsets = [0, 1, -1, 7, -130, 128, 255, -299, 516, 517, -300, 1 << 40, i64::MAX, i64::MIN];
    let diagonals = offsets.map(|offset| Positives::Diagonal { offset });
    let cases = diagonals.into_iter().chain([Positives::None, Positives::Matching]).map(|positives| Case {
        positives,
        upstream: LOSS_SCALE,
        // Several row blocks, so that the diagonal crosses them.
        options: Options { chunk: Chunk::Rows(128), ..Options::default() },
        ..Case::new(300, 517, 40)
    });
    check_unit::<T>(cases);
}

fn chunks<T: Element>() {
    let chunk = |rows| Options { chunk: Chunk::Rows(rows), ..Options::default() };
    let cases = [1, 100, 128, 129, 200, 256, 384, 400, 1000, usize::MAX].map(|rows| Case {
        options: chunk(rows),
        positives: Positives::Diagonal { offset: 33 },
        ..Case::new(700, 450, 48)
    });
    check_unit::<T>(cases);
}

/// Blocks small enough for the workspace that is allowed.
fn workspaces<T: Element>() {
    let Some(gpu) = gpu() else { return };
    let case = Case { positives: Positives::Diagonal { offset: -77 }, ..Case::new(3000, 2500, 40) };
    // Of the route that needs most beside its blocks: the half is enough for every route, and none can hold all pairs in it.
    let portable = Options { route: Route::Portable, ..case.options };
    let whole = siglip_kernel::workspace_bytes(&gpu, &case.problem::<T>(), &portable).unwrap();
    for most in [whole, whole / 5 * 4, whole / 2] {
        let options = Options { chunk: Chunk::Workspace(most), ..Options::default() };
        let taken = siglip_kernel::workspace_bytes(&gpu, &case.problem::<T>(), &options).unwrap();
        assert!(taken <= most, "{taken} of {most}");
        check_unit::<T>([Case { options, ..case }]);
    }
}

/// As many rows of gradients as an H200 takes in tiles of 192 columns, none of them whole: finished at once and, of texts, summed over two blocks.
fn wide_tiles<T: Element>() {
    let chunk = Chunk::Rows(128);
    let summed = Case { options: Options { chunk, ..Options::default() }, ..Case::new(140, 8600, 184) };
    check_unit::<T>([Case::new(8600, 40, 184), Case::new(40, 8600, 184), summed]);
}

/// Several column blocks of every route: a row chunk of 20 rows rounds up to 128, of which the largest budget holds 720,896 columns.
fn column_blocks<T: Element>() {
    let case = Case { positives: Positives::Diagonal { offset: 500_000 }, ..Case::new(20, 730_001, 8) };
    // A smaller loss scale: a gradient that sums 730,001 texts is large.
    check_unit::<T>([Case { batch: 1000, upstream: 100.0, ..case }]);
}

/// Logits of every size on tiles of 192 columns, with the diagonal in several places.
fn wide_logit_tiles<T: Element>() {
    let [rows, cols] = WIDE_TILES;
    // Strong pairs of 40,000 texts add up: no loss scale, or f16 has no room for the sums.
    let cases = [(-10.0, 0, LOSS_SCALE), (-4.5, 20_000, LOSS_SCALE), (-2.0, -299, 16.0), (2.0, 1 << 40, 16.0)];
    check_unit::<T>(cases.map(|(bias, offset, upstream)| {
        let positives = Positives::Diagonal { offset };
        Case { bias, positives, upstream, ..Case::new(rows, cols, 24) }
    }));
}

fn strides<T: Element>() {
    let gaps = [(8, 0), (0, 8), (16, 24), (8, 16)];
    let aligned = gaps.map(|(input_gap, output_gap)| Case { input_gap, output_gap, ..Case::new(200, 150, 40) });
    // Several row chunks, so that gradients are written chunk by chunk.
    let options = Options { chunk: Chunk::Rows(128), ..Options::default() };
    let chunked = aligned.map(|case| Case { options, rows: 400, ..case });
    // Rows that no vector load can address are copied for 16-bit, and cuBLASLt takes them for f32: any gap, even odd ones.
    let odd = [(3, 5), (1, 0), (0, 1)].map(|(input_gap, output_gap)| Case {
        input_gap,
        output_gap,
        ..Case::new(140, 260, 37)
    });
    let single = Case { input_gap: 8, output_gap: 8, ..Case::new(1, 1, 8) };
    // f32 wants the first row of inputs and gradients at a multiple of 16 bytes.
    let start = |gap: usize| if T::NAME == "f32" { gap.next_multiple_of(4) } else { gap };
    check_unit::<T>(aligned.into_iter().chain(chunked).chain(odd).chain([single]).map(|case| Case {
        input_gap: start(case.input_gap),
        output_gap: start(case.output_gap),
        ..case
    }));
}

/// Both gradients by blocks of which the last one finishes them, in rows with gaps.
fn finished_with_gaps<T: Element>() {
    let Some(gpu) = gpu() else { return };
    if !gpu.info().arch().has_wgmma() {
        return say("skipped: only Hopper's products finish gradients");
    }
    // Beside the texts' sums it holds a twentieth of the pairs.
    let options = Options { route: Route::Chunked, chunk: Chunk::Workspace(1_200_000) };
    for (offset, input_gap, output_gap) in [(0, 0, 8), (-77, 8, 24), (1500, 16, 8)] {
        let positives = Positives::Diagonal { offset };
        let case =
            Case { positives, input_gap, output_gap, options, upstream: LOSS_SCALE, ..Case::new(3000, 2500, 40) };
        let (rows, cols) = Plan::new(&gpu, case.problem::<T>(), case.options).unwrap().block();
        assert!(rows < case.rows && cols < case.cols, "one block has {rows} x {cols}");
        let host = Host::<T>::unit(&case, 47);
        let faults = Truth::new(&case, &host, case.options.route).faults(&case, &run(&gpu, &case, &host).unwrap());
        assert!(faults.is_empty(), "{case:?}: {}", faults.join("; "));
    }
}

#[test]
fn finished_with_gaps_f16() {
    finished_with_gaps::<f16>();
}

#[test]
fn finished_with_gaps_bf16() {
    finished_with_gaps::<bf16>();
}

fn scalars<T: Element>() {
    let base = Case::new(200, 150, 64);
    let mut cases = Vec::new();
    for device_scalars in [false, true] {
        for upstream in [1.0, -3.5, 1024.0] {
            cases.push(Case { upstream, device_scalars, ..base });
        }
        for batch in [1, 150, 5000] {
            cases.push(Case { batch, upstream: 100.0, device_scalars, ..base });
        }
        for log_temp in [-3.0, 0.0, 4.605] {
            cases.push(Case { log_temp, device_scalars, upstream: 100.0, ..base });
        }
    }
    check_unit::<T>(cases);
}

/// An upstream gradient of zero gives gradients of zero, and the loss all the same.
fn zero_upstream<T: Element>() {
    check_unit::<T>([Case { upstream: 0.0, ..Case::new(130, 200, 24) }]);
}

per_dtype!(
    shapes,
    offsets,
    chunks,
    workspaces,
    wide_tiles,
    wide_logit_tiles,
    column_blocks,
    strides,
    scalars,
    zero_upstream
);
