//! Route fp8-all on Hopper: logits of inputs quantised to e4m3, G in e5m2, gradients by the mainloop from both. Positive pairs are kept out of all products.

use kernel_core::sm90::{GemmShape, MatrixAt};
use kernel_core::{Error, Gpu, LastMaps, MapType, TensorMap};

use super::sm90::{GRADIENT_BAND, LOGITS_BAND, WIDE_LOGITS_BAND, matrix};
use super::{At, Call, Engine};
use crate::blocks::{Block, Blocks, NARROW, WIDE};
use crate::design::Pass;
use crate::error::Result;
use crate::kernels::{GradientFp8, GradientFp8Params, LogitsFp8, LogitsFp8Params, QuantizeFp8};
use crate::problem::Problem;
use crate::workspace::{FP8_GROUP, padded_dim};

/// Rows and columns of the boxes in which the logit kernel stores G, and of those of its transpose the columns: their rows are a tile's columns.
const STORE: [usize; 2] = [64, 16];

pub(crate) struct Fp8AllEngine {
    quantize: QuantizeFp8,
    loss: Logits,
    loss_and_gradient: Logits,
    /// Where G and its transpose are stored.
    store: LastMaps<[MatrixAt; 2], [TensorMap; 2]>,
    d_img: Product,
    d_txt: Product,
    problem: Problem,
    blocks: Blocks,
}

/// A logit kernel, and the maps of images and texts as it reads them.
struct Logits {
    kernel: LogitsFp8,
    maps: LastMaps<[MatrixAt; 2], [TensorMap; 2]>,
}

/// A gradient kernel, with the maps of G (or its transpose), of the other side's transposed rows and of the sums.
struct Product {
    kernel: GradientFp8,
    maps: LastMaps<[MatrixAt; 3], [TensorMap; 3]>,
}

impl Product {
    fn new(gpu: &Gpu, rows: usize, dim: usize) -> Result<Self> {
        Ok(Self { kernel: GradientFp8::new(gpu, [rows, dim])?, maps: LastMaps::new() })
    }

    /// # Safety
    /// The matrices must be live memory of the shapes that the block has.
    unsafe fn launch(
        &mut self,
        call: &Call<'_>,
        matrices: [MatrixAt; 3],
        shape: GemmShape,
        params: GradientFp8Params,
    ) -> Result<()> {
        let columns = self.kernel.columns();
        let [g, other, out] = self.maps.of(matrices, || {
            let [g, other, out] = matrices;
            Ok::<_, Error>([g.k_major(1)?, other.k_major_rows(columns)?, out.warp_store()?])
        })?;
        // SAFETY: the caller's promise.
        unsafe { self.kernel.launch(call.stream, call.info, [&g, &other, &out], shape, params) }
    }
}

impl Fp8AllEngine {
    pub(crate) fn new(gpu: &Gpu, pass: &Pass) -> Result<Self> {
        let Pass { ref problem, blocks, logit_columns, .. } = *pass;
        let logits = |gradient, columns| -> Result<Logits> {
            Ok(Logits { kernel: LogitsFp8::new(gpu, gradient, columns)?, maps: LastMaps::new() })
        };
        Ok(Self {
            quantize: QuantizeFp8::new(gpu, problem.dtype)?,
            loss: logits(false, NARROW)?,
            loss_and_gradient: logits(true, logit_columns)?,
            store: LastMaps::new(),
            d_img: Product::new(gpu, blocks.rows, problem.dim)?,
            d_txt: Product::new(gpu, blocks.cols, problem.dim)?,
            problem: *problem,
            blocks,
        })
    }

    /// One side's rows transposed, zeros behind the last one.
    fn transposed(&self, at: At, rows: usize) -> MatrixAt {
        matrix(at, MapType::U8, self.problem.dim, rows.next_multiple_of(FP8_GROUP))
    }

    /// Where G and its transpose lie.
    fn g(&self, call: &Call<'_>) -> [At; 2] {
        let Blocks { rows, cols } = self.blocks;
        let transpose = call.g.address + self.blocks.area() as u64;
        [At { row_stride: cols, ..call.g }, At { address: transpose, row_stride: rows }]
    }

    /// G or its transpose as a product reads it: no row and no group of columns that the block has not, as what lies there may be anything.
    fn block_of_g(at: At, rows: usize, cols: usize) -> MatrixAt {
        matrix(at, MapType::U8, rows, cols.next_multiple_of(FP8_GROUP))
    }
}

impl Engine for Fp8AllEngine {
    unsafe fn begin(&mut self, call: &Call<'_>) -> Result<()> {
        // SAFETY: inputs are padded to whole vectors, and the workspace was laid out for the copies.
        unsafe { self.quantize.launch(call.stream, call.info, call.quantize(&self.problem), call.gradient) }
    }

    unsafe fn logits(&mut self, call: &Call<'_>, block: &Block) -> Result<usize> {
        let all = call.fp8.all.unwrap_or_default();
        let of_row = |address: u64| address + (block.row * size_of::<f32>()) as u64;
        let params = LogitsFp8Params {
            log_temp: call.log_temp,
            bias: call.bias,
            first: u32::from(call.opens(block)),
            diagonal: call.diagonal(block),
            sums: call.sums,
            exponents: call.fp8.exponents,
            terms: of_row(all.terms),
            positives: of_row(call.fp8.positives),
        };
        let Problem { rows, cols, .. } = self.problem;
        let quantised = |at: At, rows| matrix(at, MapType::U8, rows, padded_dim(&self.problem));
        let inputs = [quantised(call.fp8.img, rows), quantised(call.fp8.txt, cols)];
        let [g, transpose] = self.g(call);
        let [g, transpose] = [
            matrix(g, MapType::U8, self.blocks.rows, self.blocks.cols),
            matrix(transpose, MapType::U8, self.blocks.cols, self.blocks.rows),
        ];
        let logits = if call.gradient { &mut self.loss_and_gradient } else { &mut self.loss };
        let columns = logits.kernel.columns();
        let band = if columns == WIDE { WIDE_LOGITS_BAND } else { LOGITS_BAND };
        let shape = GemmShape::new(block.rows, block.cols, self.problem.dim, band)
            .with_a_origin(block.row, 0)
            .with_b_origin(block.col, 0);
        let of_txt = logits.kernel.text_rows();
        let [img, txt] =
            logits.maps.of(inputs, || Ok::<_, Error>([inputs[0].k_major(1)?, inputs[1].k_major_rows(of_txt)?]))?;
        // Without gradients there is no G, and the kernel follows no map of it: any will do.
        let [g, transpose] = match call.gradient {
            true => self
                .store
                .of([g, transpose], || Ok::<_, Error>([g.boxes(STORE)?, transpose.boxes([STORE[0], columns])?]))?,
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
            self.transposed(call.fp8.all.unwrap_or_default().txt_transposed, self.problem.cols),
            matrix(call.d_img, MapType::F32, self.blocks.rows, dim),
        ];
        let shape = GemmShape::new(block.rows, dim, block.cols, GRADIENT_BAND).with_b_origin(0, block.col);
        let params = GradientFp8Params { first: u32::from(block.col == 0), row: 0 };
        // SAFETY: the matrices are the call's live memory.
        unsafe { self.d_img.launch(call, matrices, shape, params) }
    }

    unsafe fn d_txt(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let [_, transpose] = self.g(call);
        let dim = self.problem.dim;
        let matrices = [
            Self::block_of_g(transpose, block.cols, block.rows),
            self.transposed(call.fp8.all.unwrap_or_default().img_transposed, self.problem.rows),
            matrix(call.d_txt, MapType::F32, self.problem.cols, dim),
        ];
        let shape = GemmShape::new(block.cols, dim, block.rows, GRADIENT_BAND).with_b_origin(0, block.row);
        let params = GradientFp8Params { first: u32::from(block.row == 0), row: block.col as u32 };
        // SAFETY: the matrices are the call's live memory.
        unsafe { self.d_txt.launch(call, matrices, shape, params) }
    }
}
