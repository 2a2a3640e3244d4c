//! The device memory of a plan, sized ahead.

use kernel_core::{DType, DeviceInfo, Layout, Region};

use crate::blocks::Blocks;
use crate::io::Alignment;
use crate::kernels::{LogitsPortable, LogitsSm90, PairsF32, SUMS_PER_WARP};
use crate::problem::Problem;

/// What cuBLASLt may use for one product.
pub(crate) const CUBLAS_BYTES: usize = 8 << 20;

/// The kernels behind a plan: a [`Route`](crate::Route) resolved for a device and a dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Sm90,
    Portable,
    F32,
}

impl Engine {
    /// Elements of one block, at most. For `Sm90` the block of 5,632 × 16,384 pairs (185 MB) that keeps the step of B = 65,536 in 0.61 GB above
    /// its inputs; twice as large gains under 1%, and blocks small enough for L2 lose 15% in the ends of their launches (H200). The others
    /// spend more time per block and take less.
    pub(crate) fn budget(self) -> usize {
        match self {
            Engine::Sm90 => 5632 * 16384,
            Engine::Portable => 4096 * 8192,
            Engine::F32 => 8192 * 8192,
        }
    }

    /// Columns of one block, at most. A true f32 product adds up all of a block's columns one after another; blocks are added to each other,
    /// which keeps the error of d_img near 1e-6 for any number of texts.
    pub(crate) fn most_cols(self) -> usize {
        match self {
            Engine::F32 => 16384,
            Engine::Sm90 | Engine::Portable => usize::MAX,
        }
    }

    fn slots(self, info: &DeviceInfo) -> usize {
        match self {
            Engine::Sm90 => LogitsSm90::slots(info),
            Engine::Portable => LogitsPortable::slots(info),
            Engine::F32 => PairsF32::slots(info),
        }
    }

    /// How the gradients of images and of texts come about.
    pub(crate) fn gradients(self, problem: &Problem, blocks: Blocks) -> (Gradient, Gradient) {
        let whole = |one_block: bool| match self {
            Engine::F32 => Gradient::InPlace,
            Engine::Sm90 if one_block && !pads(problem) => Gradient::Direct,
            Engine::Sm90 | Engine::Portable => Gradient::Accumulated,
        };
        (whole(blocks.cols >= problem.cols), whole(blocks.rows >= problem.rows))
    }

    /// What inputs and outputs must satisfy.
    pub(crate) fn alignment(self, problem: &Problem) -> Alignment {
        match self {
            Engine::F32 => Alignment::Start,
            Engine::Sm90 | Engine::Portable if pads(problem) => Alignment::Element,
            Engine::Sm90 | Engine::Portable => Alignment::Rows,
        }
    }
}

/// How a gradient comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gradient {
    /// f32 accumulators in the workspace, scaled and rounded into the output at the end.
    Accumulated,
    /// The output is f32 and holds its own accumulators, scaled at the end.
    InPlace,
    /// One block holds the whole sum: the product writes the output.
    Direct,
}

/// Features of a row as the tensor cores' loads address it: 16 bytes at a time.
pub(crate) fn padded_dim(problem: &Problem) -> usize {
    problem.dim.next_multiple_of(8)
}

/// Whether 16-bit inputs are copied to padded rows first.
pub(crate) fn pads(problem: &Problem) -> bool {
    problem.dtype != DType::F32 && padded_dim(problem) != problem.dim
}

/// log2 of the factor that G carries: 2^14 keeps values down to 4e-9 normal in f16, and |q| ≤ 1 below its largest number.
pub(crate) fn gain_log2(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 14.0,
        DType::F32 | DType::Bf16 => 0.0,
    }
}

/// The regions of a plan's workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions {
    /// One block of G (for f32: of dot products), whole tiles.
    pub(crate) g: Region,
    /// f32 accumulators of one row chunk `[chunk, dim padded]` and of all text rows `[cols, dim padded]`, where they are needed.
    pub(crate) d_img: Region,
    pub(crate) d_txt: Region,
    pub(crate) sums: Region,
    /// Padded copies of the inputs.
    pub(crate) img: Region,
    pub(crate) txt: Region,
    pub(crate) cublas: Region,
}

impl Regions {
    /// Pure arithmetic.
    pub(crate) fn layout(engine: Engine, problem: &Problem, blocks: Blocks, info: &DeviceInfo) -> (Layout, Self) {
        let mut layout = Layout::new();
        let dim = padded_dim(problem);
        let when = |needed: bool, bytes: usize| if needed { bytes } else { 0 };
        let accumulator =
            |to, rows: usize| when(to == Gradient::Accumulated, rows.saturating_mul(dim * size_of::<f32>()));
        let (d_img, d_txt) = engine.gradients(problem, blocks);
        let padded = |rows: usize| when(pads(problem), rows.saturating_mul(dim * problem.dtype.size_bytes()));
        let regions = Self {
            g: layout.take(blocks.area().saturating_mul(problem.dtype.size_bytes())),
            d_img: layout.take(accumulator(d_img, blocks.rows)),
            d_txt: layout.take(accumulator(d_txt, problem.cols)),
            sums: layout.take_elements::<f64>(engine.slots(info) * SUMS_PER_WARP),
            img: layout.take(padded(problem.rows)),
            txt: layout.take(padded(problem.cols)),
            cublas: layout.take(when(engine != Engine::Sm90, CUBLAS_BYTES)),
        };
        (layout, regions)
    }
}
