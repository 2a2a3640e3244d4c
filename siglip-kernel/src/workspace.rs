//! The device memory of a plan, sized ahead.

use kernel_core::{DType, DeviceInfo, Layout, Region};

use crate::blocks::TILE;
use crate::design::{Design, Engine, Gradient};
use crate::engines::{block_scales, side_elements};
use crate::kernels::{EXPONENTS, FusedSm90, QuantizeFp8, SLICES, SUMS_PER_WARP};
use crate::problem::{Problem, Route};

/// What cuBLASLt may use for one product.
pub(crate) const CUBLAS_BYTES: usize = 8 << 20;

/// Features of a row as the tensor cores' loads address it: 16 bytes at a time.
pub(crate) fn padded_dim(problem: &Problem) -> usize {
    problem.dim.next_multiple_of(8)
}

/// Bytes between rows of copies in 8 bits, as TMA addresses them.
pub(crate) fn byte_stride(problem: &Problem) -> usize {
    problem.dim.next_multiple_of(16)
}

/// Rows of one side, or of a block, come in whole groups of this many where they lie along a row of bytes: their order within a group is the kernels'.
pub(crate) const BYTE_GROUP: usize = 16;

/// Whether 16-bit inputs are copied to padded rows first.
pub(crate) fn pads(problem: &Problem) -> bool {
    problem.dtype != DType::F32 && padded_dim(problem) != problem.dim
}

/// log2 of the factor that G carries (`GAIN` of `fragment.cuh`): 2^14 keeps values down to 4e-9 normal in f16, and |q| ≤ 1 below its largest number.
pub(crate) fn gain_log2(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 14.0,
        DType::F32 | DType::Bf16 => 0.0,
    }
}

/// What route fp8 computes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fp8Regions {
    /// e4m3 copies of the inputs, rows [`byte_stride`] apart.
    pub(crate) img: Region,
    pub(crate) txt: Region,
    pub(crate) peaks: Region,
    pub(crate) exponents: Region,
    /// The exact dot product of each image row's positive pair.
    pub(crate) positives: Region,
}

/// What route int8 computes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8Regions {
    pub(crate) img: Int8Side,
    pub(crate) txt: Int8Side,
    pub(crate) partial_sums: Region,
    pub(crate) mean: Region,
    pub(crate) terms: Region,
    /// The exact dot product of each image row's positive pair less the terms, and its q thereafter.
    pub(crate) positives: Region,
    /// Of a block of G, and of its transpose.
    pub(crate) g_scales: Region,
    pub(crate) transpose_scales: Region,
}

/// Of images or of texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8Side {
    /// A copy of the input, rows [`byte_stride`] apart.
    pub(crate) copy: Region,
    /// The same transposed, rows padded to whole groups.
    pub(crate) transposed: Region,
    pub(crate) row_scales: Region,
    pub(crate) col_scales: Region,
    pub(crate) partial_peaks: Region,
}

impl Int8Side {
    fn layout(layout: &mut Layout, rows: usize, problem: &Problem) -> Self {
        let dim = if rows == 0 { 0 } else { padded_dim(problem) };
        Self {
            copy: layout.take(rows.saturating_mul(byte_stride(problem))),
            transposed: layout.take(rows.next_multiple_of(BYTE_GROUP).saturating_mul(dim)),
            row_scales: layout.take_elements::<f32>(rows.next_multiple_of(2)),
            col_scales: layout.take_elements::<f32>(dim),
            partial_peaks: layout.take_elements::<u32>(SLICES as usize * dim),
        }
    }
}

/// The regions of a plan's workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions {
    /// One block of G (for f32: of dot products, or G's two planes; on route int8, in bytes, G and its transpose), whole tiles.
    pub(crate) g: Region,
    /// f32 accumulators of one row chunk `[chunk, dim padded]` and of all text rows `[cols, dim padded]`, where they are needed.
    /// `d_rows` is next to G: fused launches take both for G while the sums lie elsewhere. Where the texts' gradient lends its memory, neither the
    /// chunk's nor a block of texts' are here.
    pub(crate) d_rows: Region,
    pub(crate) d_txt: Region,
    pub(crate) sums: Region,
    /// What a second pass sums again, and nobody reads.
    pub(crate) unused_sums: Region,
    /// q of positive pairs by image row, for f32.
    pub(crate) positive: Region,
    /// Padded copies of the inputs, or their planes.
    pub(crate) img: Region,
    pub(crate) txt: Region,
    /// Scales of planes.
    pub(crate) img_inverse: Region,
    pub(crate) txt_inverse: Region,
    pub(crate) g_inverse: Region,
    pub(crate) fp8: Fp8Regions,
    pub(crate) int8: Int8Regions,
    pub(crate) cublas: Region,
    /// By which blocks of a fused launch wait for each other; zero between launches.
    pub(crate) counters: Region,
}

impl Regions {
    /// Pure arithmetic.
    pub(crate) fn layout(design: &Design, info: &DeviceInfo) -> (Layout, Self) {
        let mut layout = Layout::new();
        let problem = &design.images.problem;
        let dim = padded_dim(problem);
        let when = |needed: bool, bytes: usize| if needed { bytes } else { 0 };
        let accumulator = |gradient: Option<Gradient>, rows: usize| {
            when(
                matches!(gradient, Some(Gradient::Accumulated | Gradient::Finished)),
                rows.saturating_mul(dim * size_of::<f32>()),
            )
        };
        let most = |of: &dyn Fn(&crate::design::Pass) -> usize| design.passes().map(of).max().unwrap_or(0);
        let split = design.engine == Engine::Split;
        let copy = |rows: usize| match split {
            true => side_elements(rows, problem.dim).0.saturating_mul(DType::F16.size_bytes()),
            false => when(pads(problem), rows.saturating_mul(dim * problem.dtype.size_bytes())),
        };
        let scales = |elements: usize| if split { elements } else { 0 };
        let (fp8, int8) = (design.route == Route::Fp8, design.engine == Engine::Int8);
        let quantised = |rows: usize| when(fp8, rows.saturating_mul(byte_stride(problem)));
        let when_int8 = |elements: usize| if int8 { elements } else { 0 };
        // One for each row, or column, of every tile.
        let tile_scales = when_int8(most(&|pass| pass.blocks.area() / TILE));
        let sums = design.engine.slots(info) * SUMS_PER_WARP;
        let lends = design.lends();
        let regions = Self {
            g: layout.take(most(&|pass| pass.blocks.area().saturating_mul(problem.dtype.size_bytes()))),
            d_rows: layout.take(most(&|pass| {
                accumulator(Some(design.rows_gradient(pass)), if lends { 0 } else { pass.blocks.rows })
            })),
            d_txt: layout.take(accumulator(
                design.cols_gradient(),
                problem.cols - if lends { design.images.blocks.cols } else { 0 },
            )),
            sums: layout.take_elements::<f64>(sums),
            unused_sums: layout.take_elements::<f64>(if design.texts.is_some() { sums } else { 0 }),
            positive: layout.take_elements::<f32>(if matches!(design.engine, Engine::F32 | Engine::Split) {
                problem.rows
            } else {
                0
            }),
            img: layout.take(copy(problem.rows)),
            txt: layout.take(copy(problem.cols)),
            img_inverse: layout.take_elements::<f32>(scales(side_elements(problem.rows, problem.dim).1)),
            txt_inverse: layout.take_elements::<f32>(scales(side_elements(problem.cols, problem.dim).1)),
            g_inverse: layout.take_elements::<f32>(scales(block_scales(design.images.blocks))),
            fp8: Fp8Regions {
                img: layout.take(quantised(problem.rows)),
                txt: layout.take(quantised(problem.cols)),
                peaks: layout.take_elements::<f32>(if fp8 { QuantizeFp8::peaks(info) } else { 0 }),
                exponents: layout.take_elements::<i32>(if fp8 { EXPONENTS } else { 0 }),
                positives: layout.take_elements::<f32>(if fp8 { problem.rows } else { 0 }),
            },
            int8: Int8Regions {
                img: Int8Side::layout(&mut layout, when_int8(problem.rows), problem),
                txt: Int8Side::layout(&mut layout, when_int8(problem.cols), problem),
                partial_sums: layout.take_elements::<f32>(when_int8(SLICES as usize * dim)),
                mean: layout.take_elements::<f32>(when_int8(dim)),
                terms: layout.take_elements::<f32>(when_int8(problem.rows)),
                positives: layout.take_elements::<f32>(when_int8(problem.rows)),
                g_scales: layout.take_elements::<f32>(tile_scales),
                transpose_scales: layout.take_elements::<f32>(tile_scales),
            },
            cublas: layout.take(when(matches!(design.engine, Engine::Portable | Engine::F32), CUBLAS_BYTES)),
            counters: layout.take_elements::<u32>(most(&|pass| {
                if pass.fused { pass.blocks.rows / TILE * FusedSm90::COUNTERS } else { 0 }
            })),
        };
        (layout, regions)
    }
}
