//! Route int8 on Hopper: logits of inputs in signed 8-bit integers, G in unsigned ones, gradients by the mainloop from both. Positive pairs are kept out of all products.

use kernel_core::sm90::{GemmShape, MatrixAt};
use kernel_core::{Error, Gpu, LastMaps, MapType, TensorMap};

use super::logits::Logits;
use super::sm90::{GRADIENT_BAND, LOGITS_BAND, matrix};
use super::{At, Call, Engine, Int8At};
use crate::blocks::{Block, Blocks, TILE};
use crate::design::Pass;
use crate::error::Result;
use crate::kernels::{GradientInt8, GradientInt8Params, LogitsInt8, LogitsInt8Params, QuantizeInt8};
use crate::problem::Problem;
use crate::workspace::{BYTE_GROUP, padded_dim};

/// Rows and columns of the boxes in which the logit kernel stores G, and of those of its transpose the columns: their rows are a tile's columns.
const STORE: [usize; 2] = [64, 16];

pub(crate) struct Int8Engine {
    quantize: QuantizeInt8,
    loss: Logits<LogitsInt8>,
    loss_and_gradient: Logits<LogitsInt8>,
    /// Where G and its transpose are stored.
    store: LastMaps<[MatrixAt; 2], [TensorMap; 2]>,
    d_img: Product,
    d_txt: Product,
    problem: Problem,
    blocks: Blocks,
}

/// A gradient kernel, with the maps of G (or its transpose), of the other side's transposed rows and of the sums.
struct Product {
    kernel: GradientInt8,
    maps: LastMaps<[MatrixAt; 3], [TensorMap; 3]>,
}

impl Product {
    fn new(gpu: &Gpu, rows: usize, dim: usize) -> Result<Self> {
        Ok(Self { kernel: GradientInt8::new(gpu, [rows, dim])?, maps: LastMaps::new() })
    }

    /// # Safety
    /// The matrices must be live memory of the shapes that the block has.
    unsafe fn launch(
        &mut self,
        call: &Call<'_>,
        matrices: [MatrixAt; 3],
        shape: GemmShape,
        params: GradientInt8Params,
    ) -> Result<()> {
        let other_rows = self.kernel.other_rows();
        let [g, other, out] = self.maps.of(matrices, || {
            let [g, other, out] = matrices;
            Ok::<_, Error>([g.k_major(1)?, other.k_major_rows(other_rows)?, out.warp_store()?])
        })?;
        // SAFETY: the caller's promise.
        unsafe { self.kernel.launch(call.stream, call.info, [&g, &other, &out], shape, params) }
    }
}

impl Int8Engine {
    pub(crate) fn new(gpu: &Gpu, pass: &Pass) -> Result<Self> {
        let Pass { ref problem, blocks, .. } = *pass;
        let logits = |gradient| -> Result<_> { Ok(Logits::new(LogitsInt8::new(gpu, gradient)?)) };
        Ok(Self {
            quantize: QuantizeInt8::new(gpu, problem.dtype)?,
            loss: logits(false)?,
            loss_and_gradient: logits(true)?,
            store: LastMaps::new(),
            d_img: Product::new(gpu, blocks.rows, problem.dim)?,
            d_txt: Product::new(gpu, blocks.cols, problem.dim)?,
            problem: *problem,
            blocks,
        })
    }

    /// One side's rows transposed, zeros behind the last one.
    fn transposed(&self, at: At, rows: usize) -> MatrixAt {
        matrix(at, MapType::U8, self.problem.dim, rows.next_multiple_of(BYTE_GROUP))
    }

    /// Where G and its transpose lie.
    fn g(&self, call: &Call<'_>) -> [At; 2] {
        let Blocks { rows, cols } = self.blocks;
        let transpose = call.g.address + self.blocks.area() as u64;
        [At { row_stride: cols, ..call.g }, At { address: transpose, row_stride: rows }]
    }

    /// G or its transpose as a product reads it: no row and no group of columns that the block has not, as what lies there may be anything.
    fn block_of_g(at: At, rows: usize, cols: usize) -> MatrixAt {
        matrix(at, MapType::U8, rows, cols.next_multiple_of(BYTE_GROUP))
    }
}

impl Engine for Int8Engine {
    unsafe fn begin(&mut self, call: &Call<'_>) -> Result<()> {
        // SAFETY: inputs are padded to whole vectors, and the workspace was laid out for the copies.
        unsafe { self.quantize.launch(call.stream, call.info, call.quantize_int8(&self.problem), call.gradient) }
    }

    unsafe fn logits(&mut self, call: &Call<'_>, block: &Block) -> Result<usize> {
        let Int8At { img, txt, terms, positives, g_scales, transpose_scales, .. } = &call.int8;
        let from = |address: u64, at: usize| address + (at * size_of::<f32>()) as u64;
        let params = LogitsInt8Params {
            log_temp: call.log_temp,
            bias: call.bias,
            first: u32::from(call.opens(block)),
            diagonal: call.diagonal(block),
            sums: call.sums,
            scales: [from(img.row_scales, block.row), from(txt.row_scales, block.col)],
            terms: from(*terms, block.row),
            positives: from(*positives, block.row),
            g_scales: [*g_scales, *transpose_scales],
            g_strides: [self.blocks.rows as u32, self.blocks.cols as u32],
        };
        let Problem { rows, cols, .. } = self.problem;
        let quantised = |at: At, rows| matrix(at, MapType::U8, rows, padded_dim(&self.problem));
        let inputs = [quantised(img.copy, rows), quantised(txt.copy, cols)];
        let [g, transpose] = self.g(call);
        let [g, transpose] = [
            matrix(g, MapType::U8, self.blocks.rows, self.blocks.cols),
            matrix(transpose, MapType::U8, self.blocks.cols, self.blocks.rows),
        ];
        let logits = if call.gradient { &mut self.loss_and_gradient } else { &mut self.loss };
        let shape = GemmShape::new(block.rows, block.cols, self.problem.dim, LOGITS_BAND)
            .with_a_origin(block.row, 0)
            .with_b_origin(block.col, 0);
        let of_txt = logits.kernel.text_rows();
        let [img, txt] = logits.maps(inputs, of_txt)?;
        // Without gradients there is no G, and the kernel follows no map of it: any will do.
        let [g, transpose] = match call.gradient {
            true => self
                .store
                .of([g, transpose], || Ok::<_, Error>([g.boxes(STORE)?, transpose.boxes([STORE[0], TILE])?]))?,
            false => [img, img],
        };
        // SAFETY: the maps are of the call's live memory; `sums` has a slot for every warp.
        unsafe { logits.kernel.launch(call.stream, call.info, [&img, &txt, &g, &transpose], shape, params) }
    }

    unsafe fn d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let [g, _] = self.g(call);
        let dim = self.problem.dim;
        let matrices = [
            Self::block_of_g(g, block.rows, block.cols),
            self.transposed(call.int8.txt.transposed, self.problem.cols),
            matrix(call.d_img, MapType::F32, self.blocks.rows, dim),
        ];
        let shape = GemmShape::new(block.rows, dim, block.cols, GRADIENT_BAND).with_b_origin(0, block.col);
        let params = GradientInt8Params {
            scales: call.int8.g_scales,
            stride: self.blocks.rows as u32,
            first: u32::from(block.col == 0),
            row: 0,
        };
        // SAFETY: the matrices are the call's live memory.
        unsafe { self.d_img.launch(call, matrices, shape, params) }
    }

    unsafe fn d_txt(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let [_, transpose] = self.g(call);
        let dim = self.problem.dim;
        let matrices = [
            Self::block_of_g(transpose, block.cols, block.rows),
            self.transposed(call.int8.img.transposed, self.problem.rows),
            matrix(call.d_txt, MapType::F32, self.problem.cols, dim),
        ];
        let shape = GemmShape::new(block.cols, dim, block.rows, GRADIENT_BAND).with_b_origin(0, block.row);
        let params = GradientInt8Params {
            scales: call.int8.transpose_scales,
            stride: self.blocks.cols as u32,
            first: u32::from(block.row == 0),
            row: block.col as u32,
        };
        // SAFETY: the matrices are the call's live memory.
        unsafe { self.d_txt.launch(call, matrices, shape, params) }
    }
}
