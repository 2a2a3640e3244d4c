//! f32 inputs at f32 accuracy on Hopper's tensor cores: every operand as two f16 planes, three products for one.

use kernel_core::sm90::{GemmShape, MatrixAt, SplitPlanes};
use kernel_core::{Gpu, MapType, TensorMap};

use super::{Call, Engine};
use crate::blocks::{Block, Blocks, TILE};
use crate::error::Result;
use crate::kernels::{
    GradientSplit, GradientSplitParams, LogitsSplit, LogitsSplitParams, SCALE_ROWS, SplitInputs, SplitInputsParams,
    SplitSide,
};
use crate::problem::Problem;

/// Tile rows that a band of the tile order spans.
const LOGITS_BAND: u32 = 12;
const GRADIENT_BAND: u32 = 4;

/// Columns of an operand's planes: whole stretches of the products.
const PLANE_COLS: usize = 64;

/// Where the planes and their scales lie. A matrix's high plane comes first, the low one after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Planes {
    pub(crate) img: u64,
    pub(crate) txt: u64,
    /// 1 / scale of every 64 rows.
    pub(crate) img_inverse: u64,
    pub(crate) txt_inverse: u64,
    /// Of every 64 × 64 pairs of a block.
    pub(crate) g_inverse: u64,
}

/// Rows and columns of one plane of a side.
fn plane([rows, dim]: [usize; 2]) -> [usize; 2] {
    [rows.next_multiple_of(TILE), dim.next_multiple_of(PLANE_COLS)]
}

/// Elements of both planes of a side, f16, and of its scales, f32.
pub(crate) fn side_elements(rows: usize, dim: usize) -> (usize, usize) {
    let [plane_rows, plane_cols] = plane([rows, dim]);
    ((2 * plane_rows).saturating_mul(plane_cols), plane_rows / SCALE_ROWS)
}

/// Scales of a block of pairs, f32.
pub(crate) fn block_scales(blocks: Blocks) -> usize {
    blocks.area() / (SCALE_ROWS * SCALE_ROWS)
}

pub(crate) struct SplitEngine {
    inputs: SplitInputs,
    loss: LogitsSplit,
    loss_and_gradient: LogitsSplit,
    d_img: GradientSplit,
    d_txt: GradientSplit,
    problem: Problem,
    blocks: Blocks,
    /// Of the plan's own memory, which never moves.
    maps: Option<Maps>,
}

/// Every matrix as its readers see it.
#[derive(Clone, Copy)]
struct Maps {
    img: TensorMap,
    txt: TensorMap,
    g: TensorMap,
}

impl SplitEngine {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, blocks: Blocks) -> Result<Self> {
        Ok(Self {
            inputs: SplitInputs::new(gpu)?,
            loss: LogitsSplit::new(gpu, false)?,
            loss_and_gradient: LogitsSplit::new(gpu, true)?,
            d_img: GradientSplit::new(gpu, problem.dim, false)?,
            d_txt: GradientSplit::new(gpu, problem.dim, true)?,
            problem: *problem,
            blocks,
            maps: None,
        })
    }

    fn maps(&mut self, call: &Call<'_>) -> Result<Maps> {
        if let Some(maps) = self.maps {
            return Ok(maps);
        }
        let matrix = |address, [rows, cols]: [usize; 2]| MatrixAt {
            address,
            dtype: MapType::F16,
            rows: 2 * rows,
            cols,
            row_stride: cols,
        };
        let maps = Maps {
            img: matrix(call.planes.img, plane([self.problem.rows, self.problem.dim])).planes()?,
            txt: matrix(call.planes.txt, plane([self.problem.cols, self.problem.dim])).planes()?,
            g: matrix(call.g.address, [self.blocks.rows, self.blocks.cols]).planes()?,
        };
        self.maps = Some(maps);
        Ok(maps)
    }

    /// Rows from the high to the low plane of both sides and of G.
    fn displacements(&self) -> [i32; 3] {
        let Problem { rows, cols, dim, .. } = self.problem;
        [plane([rows, dim])[0], plane([cols, dim])[0], self.blocks.rows].map(|rows| rows as i32)
    }

    /// Of `inverses` from `row` on.
    fn scales(inverses: u64, row: usize) -> u64 {
        inverses + (row / SCALE_ROWS * size_of::<f32>()) as u64
    }
}

impl Engine for SplitEngine {
    unsafe fn begin(&mut self, call: &Call<'_>) -> Result<()> {
        let Problem { rows, cols, dim, .. } = self.problem;
        let side = |from: super::At, rows: usize, high, inverse| SplitSide {
            from: from.address,
            from_stride: from.row_stride as u64,
            rows: rows as u64,
            high,
            plane_rows: plane([rows, dim])[0] as u64,
            inverse,
        };
        let params = SplitInputsParams {
            img: side(call.img, rows, call.planes.img, call.planes.img_inverse),
            txt: side(call.txt, cols, call.planes.txt, call.planes.txt_inverse),
            cols: dim as u32,
            plane_cols: plane([rows, dim])[1] as u32,
        };
        // SAFETY: the inputs are the call's live memory, planes and scales are as large as `side_elements` says.
        unsafe { self.inputs.launch(call.stream, params) }
    }

    unsafe fn logits(&mut self, call: &Call<'_>, block: &Block) -> Result<usize> {
        let [img, txt, g] = self.displacements();
        let params = LogitsSplitParams {
            log_temp: call.log_temp,
            bias: call.bias,
            img_inverse: Self::scales(call.planes.img_inverse, block.row),
            txt_inverse: Self::scales(call.planes.txt_inverse, block.col),
            g: call.g.address,
            g_stride: call.g.row_stride as u64,
            g_plane: g as u64,
            g_inverse: call.planes.g_inverse,
            g_inverse_stride: (self.blocks.cols / SCALE_ROWS) as u64,
            positive: call.positive + (block.row * size_of::<f32>()) as u64,
            first: u32::from(call.opens(block)),
            diagonal: call.diagonal(block),
            sums: call.sums,
        };
        let shape = GemmShape::new(block.rows, block.cols, self.problem.dim, LOGITS_BAND)
            .with_a_origin(block.row, 0)
            .with_b_origin(block.col, 0);
        let maps = self.maps(call)?;
        let kernel = if call.gradient { &self.loss_and_gradient } else { &self.loss };
        let planes = SplitPlanes { a: img, b: txt };
        // SAFETY: the maps are of the plan's memory, and so are the scales; `sums` has a slot for every warp.
        unsafe { kernel.launch(call.stream, call.info, [&maps.img, &maps.txt], shape, planes, params) }
    }

    unsafe fn d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let [_, txt, g] = self.displacements();
        let params = GradientSplitParams {
            factor: call.factor,
            g_inverse: call.planes.g_inverse,
            other_inverse: Self::scales(call.planes.txt_inverse, block.col),
            g_inverse_m: (self.blocks.cols / SCALE_ROWS) as u32,
            g_inverse_k: 1,
            out: call.d_img.row(block.row, size_of::<f32>()),
            out_stride: call.d_img.row_stride as u64,
            first: u32::from(block.col == 0),
            last: u32::from(block.col + block.cols == self.problem.cols),
            positives: call.positives_of_images(block.row, self.problem.cols),
        };
        let shape = GemmShape::new(block.rows, self.problem.dim, block.cols, GRADIENT_BAND).with_b_origin(0, block.col);
        let maps = self.maps(call)?;
        let planes = SplitPlanes { a: g, b: txt };
        // SAFETY: the maps and scales are of the plan's memory, the output is the call's, which holds the block's rows.
        unsafe { self.d_img.launch(call.stream, call.info, [&maps.g, &maps.txt], shape, planes, params) }
    }

    unsafe fn d_txt(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let [img, _, g] = self.displacements();
        let params = GradientSplitParams {
            factor: call.factor,
            g_inverse: call.planes.g_inverse,
            other_inverse: Self::scales(call.planes.img_inverse, block.row),
            g_inverse_m: 1,
            g_inverse_k: (self.blocks.cols / SCALE_ROWS) as u32,
            out: call.d_txt.row(block.col, size_of::<f32>()),
            out_stride: call.d_txt.row_stride as u64,
            first: u32::from(block.row == 0),
            last: u32::from(block.row + block.rows == self.problem.rows),
            positives: call.positives_of_texts(block.col, self.problem.rows),
        };
        let shape = GemmShape::new(block.cols, self.problem.dim, block.rows, GRADIENT_BAND).with_b_origin(0, block.row);
        let maps = self.maps(call)?;
        let planes = SplitPlanes { a: g, b: img };
        // SAFETY: as for d_img.
        unsafe { self.d_txt.launch(call.stream, call.info, [&maps.g, &maps.img], shape, planes, params) }
    }
}
