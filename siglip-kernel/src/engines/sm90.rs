//! f16 and bf16 on Hopper: logits by the warpgroup mainloop; gradients by cuBLASLt where both are summed in f32, else, or where there is no cuBLASLt,
//! by the mainloop. The logits of quantised inputs when asked.

use kernel_core::sm90::{GemmShape, MatrixAt};
use kernel_core::{Error, Gpu, LastMaps, MapType, TensorMap};

use super::gemms::Gemms;
use super::logits::Logits;
use super::{At, Call, Engine, apart};
use crate::blocks::{Block, Blocks, NARROW, TILE, WIDE};
use crate::design::{Gradient, Pass, library_sums};
use crate::error::Result;
use crate::kernels::{
    FusedParams, FusedSm90, GradientParams, GradientSm90, LogitsParams, LogitsSm90, QuantizeFp8, ReduceParams,
};
use crate::problem::Problem;
use crate::workspace::padded_dim;

/// Tile rows that a band of the tile order spans.
pub(super) const LOGITS_BAND: u32 = 22;
/// The same with wide tiles: 1 to 2% of a whole step less than with 22.
pub(super) const WIDE_LOGITS_BAND: u32 = 88;
pub(super) const GRADIENT_BAND: u32 = 4;

/// Maps of sums that a product keeps.
const OUTS: usize = 16;

pub(crate) struct Sm90Engine {
    /// Of route fp8.
    quantize: Option<QuantizeFp8>,
    loss: Logits<LogitsSm90>,
    /// Not where fused launches make G.
    loss_and_gradient: Option<Logits<LogitsSm90>>,
    /// Where logit kernels store G. In low memory it moves within a call.
    store_g: LastMaps<MatrixAt, TensorMap>,
    img_side: Side,
    txt_side: Side,
    fused: Option<Fused>,
    problem: Problem,
    blocks: Blocks,
}

/// Logits and the rows' product in one launch, with the maps of images and texts, of G, and of the accumulators.
struct Fused {
    kernel: FusedSm90,
    inputs: LastMaps<[MatrixAt; 2], [TensorMap; 3]>,
    g: LastMaps<MatrixAt, [TensorMap; 2]>,
    out: LastMaps<MatrixAt, TensorMap>,
}

/// Who multiplies G by the rows of the other side, for one of the gradients.
enum Side {
    /// Each block holds the whole sum, and the product writes the gradient.
    Whole(Box<Product>),
    /// Products are added up in f32; where `last` is, it adds the last one as it writes the gradient.
    Summed { by: Adder, last: Option<Box<Product>> },
}

enum Adder {
    /// On a card that its power bounds 1 to 3% of a step less than by the kernels, which are the faster ones at the same clocks (H200). Not where blocks are
    /// so few that one of the gradients is finished at once: there it loses 2%. Without a workspace, so that no sum is split.
    Library(Gemms),
    Kernel(Box<Product>),
}

/// A product of one block, and where it may go.
struct Work {
    g: MatrixAt,
    other: MatrixAt,
    shape: GemmShape,
    /// From the block's first row on.
    sums: MatrixAt,
    gradient: MatrixAt,
    /// Where the block's rows begin there.
    row_of_gradient: usize,
    /// Which of the chunk's blocks has these sums, where each has its own.
    place: usize,
    /// Whether the block is the first of its sums, and the last.
    first: bool,
    last: bool,
    scalars: ReduceParams,
}

/// One of the gradient kernels, with the maps of G and of the other side's rows and the output.
struct Product {
    kernel: GradientSm90,
    /// Gᵀ · img, otherwise G · txt.
    transposed: bool,
    g: LastMaps<MatrixAt, TensorMap>,
    other: LastMaps<MatrixAt, TensorMap>,
    /// Of blocks of a chunk in turn, as each has its own sums of texts.
    out: [LastMaps<MatrixAt, TensorMap>; OUTS],
}

impl Side {
    /// `transposed`: of texts. `rows`: of a block's product. `library`: unless it is missing, it adds to the sums.
    fn new(
        gpu: &Gpu,
        problem: &Problem,
        transposed: bool,
        gradient: Gradient,
        rows: usize,
        library: bool,
    ) -> Result<Self> {
        let product = |direct| -> Result<Box<Product>> {
            let kernel = GradientSm90::new(gpu, problem.dtype, transposed, direct, [rows, problem.dim])?;
            Ok(Box::new(Product {
                kernel,
                transposed,
                g: LastMaps::new(),
                other: LastMaps::new(),
                out: [LastMaps::new(); OUTS],
            }))
        };
        if gradient == Gradient::Direct {
            return Ok(Self::Whole(product(true)?));
        }
        let last = (gradient == Gradient::Finished).then(|| product(true)).transpose()?;
        if library {
            match Gemms::new(gpu, problem.dtype, problem.dim, 0) {
                // Any other failure might pass, and another plan for the same problem would then give other bits.
                Err(crate::Error::Gpu(Error::MissingLibrary { .. })) => {}
                gemms => return Ok(Self::Summed { by: Adder::Library(gemms?), last }),
            }
        }
        Ok(Self::Summed { by: Adder::Kernel(product(false)?), last })
    }

    /// # Safety
    /// The matrices must be live memory of the shapes that the block has.
    unsafe fn run(&mut self, call: &Call<'_>, block: &Block, transposed: bool, work: &Work) -> Result<()> {
        let params = |row: usize| GradientParams {
            first: u32::from(work.first),
            row: row as u32,
            factor: call.factor,
            before: 0,
            before_stride: work.sums.row_stride as u64,
            scalars: work.scalars,
        };
        let (product, out, place, params) = match self {
            Self::Whole(product) => (product, work.gradient, 0, params(work.row_of_gradient)),
            Self::Summed { last: Some(product), .. } if work.last => {
                let before = if work.first { 0 } else { work.sums.address };
                (product, work.gradient, 0, GradientParams { before, ..params(work.row_of_gradient) })
            }
            Self::Summed { by: Adder::Kernel(product), .. } => (product, work.sums, work.place, params(0)),
            Self::Summed { by: Adder::Library(gemms), .. } if transposed => return gemms.d_txt(call, block),
            Self::Summed { by: Adder::Library(gemms), .. } => return gemms.d_img(call, block),
        };
        // SAFETY: the caller's promise.
        unsafe { product.launch(call, [work.g, work.other, out], place, work.shape, params) }
    }
}

impl Product {
    /// `place`: which block of its chunk this is, if `out` depends on that.
    ///
    /// # Safety
    /// The matrices must be live memory of the shapes that the block has.
    unsafe fn launch(
        &mut self,
        call: &Call<'_>,
        [g, other, out]: [MatrixAt; 3],
        place: usize,
        shape: GemmShape,
        params: GradientParams,
    ) -> Result<()> {
        let g = self.g.of(g, || if self.transposed { g.mn_major() } else { g.k_major(1) })?;
        let other = self.other.of(other, || other.mn_major())?;
        let out = self.out[place % OUTS].of(out, || out.warp_store())?;
        // SAFETY: the caller's promise.
        unsafe { self.kernel.launch(call.stream, call.info, [&g, &other, &out], shape, params) }
    }
}

impl Sm90Engine {
    /// `gradients`: how they come about.
    pub(crate) fn new(gpu: &Gpu, pass: &Pass, fp8: bool, gradients: (Gradient, Gradient)) -> Result<Self> {
        let Pass { ref problem, blocks, logit_columns, fused } = *pass;
        let dtype = problem.dtype;
        let library = library_sums(problem, gradients);
        let logits =
            |gradient, columns| -> Result<_> { Ok(Logits::new(LogitsSm90::new(gpu, dtype, gradient, fp8, columns)?)) };
        Ok(Self {
            quantize: fp8.then(|| QuantizeFp8::new(gpu, dtype)).transpose()?,
            loss: logits(false, NARROW)?,
            loss_and_gradient: (!fused).then(|| logits(true, logit_columns)).transpose()?,
            store_g: LastMaps::new(),
            img_side: Side::new(gpu, problem, false, gradients.0, blocks.rows, library[0])?,
            txt_side: Side::new(gpu, problem, true, gradients.1, blocks.cols, library[1])?,
            fused: fused
                .then(|| {
                    let kernel = FusedSm90::new(gpu, dtype)?;
                    Ok::<_, crate::Error>(Fused {
                        kernel,
                        inputs: LastMaps::new(),
                        g: LastMaps::new(),
                        out: LastMaps::new(),
                    })
                })
                .transpose()?,
            problem: *problem,
            blocks,
        })
    }

    fn rows(&self, at: At, rows: usize) -> MatrixAt {
        matrix(at, self.problem.dtype.into(), rows, self.problem.dim)
    }

    /// G of a block, whole tiles of rows.
    fn g(&self, call: &Call<'_>, block: &Block) -> MatrixAt {
        matrix(call.g, self.problem.dtype.into(), block.rows.next_multiple_of(TILE), call.g.row_stride)
    }

    /// `rows` rows of f32 sums.
    fn sums(&self, at: At, rows: usize) -> MatrixAt {
        matrix(at, MapType::F32, rows, self.problem.dim)
    }
}

pub(super) fn matrix(at: At, dtype: MapType, rows: usize, cols: usize) -> MatrixAt {
    MatrixAt { address: at.address, dtype, rows, cols, row_stride: at.row_stride }
}

impl Engine for Sm90Engine {
    unsafe fn begin(&mut self, call: &Call<'_>) -> Result<()> {
        let Some(quantize) = &self.quantize else { return Ok(()) };
        // SAFETY: inputs are padded to whole vectors, and the workspace was laid out for the copies.
        unsafe { quantize.launch(call.stream, call.info, call.quantize_fp8(&self.problem)) }
    }

    unsafe fn logits(&mut self, call: &Call<'_>, block: &Block) -> Result<usize> {
        let params = LogitsParams {
            log_temp: call.log_temp,
            bias: call.bias,
            first: u32::from(call.opens(block)),
            diagonal: call.diagonal(block),
            sums: call.sums,
            exponents: call.fp8.exponents,
            positives: call.fp8.positives + (block.row * size_of::<f32>()) as u64,
        };
        let Problem { rows, cols, .. } = self.problem;
        let quantised = |at: At, rows| matrix(at, MapType::U8, rows, padded_dim(&self.problem));
        let (img, txt) = match &self.quantize {
            Some(_) => (quantised(call.fp8.img, rows), quantised(call.fp8.txt, cols)),
            None => (self.rows(call.img, rows), self.rows(call.txt, cols)),
        };
        let g = self.g(call, block);
        let logits = if call.gradient { self.loss_and_gradient.as_mut() } else { Some(&mut self.loss) };
        let Some(logits) = logits else {
            return Err(
                Error::Unsupported { what: "G without a gradient of the rows, in a fused pass".to_owned() }.into()
            );
        };
        let band = if logits.kernel.columns() == WIDE { WIDE_LOGITS_BAND } else { LOGITS_BAND };
        let shape = GemmShape::new(block.rows, block.cols, self.problem.dim, band)
            .with_a_origin(block.row, 0)
            .with_b_origin(block.col, 0);
        let of_txt = logits.kernel.text_rows();
        let [img, txt] = logits.maps([img, txt], of_txt)?;
        // Without gradients there is no G, and the kernel follows no map of it: any will do.
        let g = if call.gradient { self.store_g.of(g, || g.warp_store())? } else { img };
        // SAFETY: the maps are of the call's live memory; `sums` has a slot for every warp.
        unsafe { logits.kernel.launch(call.stream, call.info, [&img, &txt, &g], shape, params) }
    }

    unsafe fn logits_and_d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<usize> {
        let Problem { rows, cols, dim, .. } = self.problem;
        let (img, txt, g) = (self.rows(call.img, rows), self.rows(call.txt, cols), self.g(call, block));
        let out = self.sums(call.d_img, self.blocks.rows);
        let Some(fused) = &mut self.fused else {
            // SAFETY: the caller's promise.
            return unsafe { apart(self, call, block) };
        };
        let round = FusedSm90::round(dim);
        let rounds = block.cols.div_ceil(round).div_ceil(call.groups);
        // Groups lie side by side in G: where it holds all columns, each has its place among them.
        let ring = if block.cols <= call.g.row_stride { rounds } else { call.g.row_stride / round / call.groups };
        debug_assert!(ring >= rounds.min(2), "{ring} rounds of G");
        let params = FusedParams {
            log_temp: call.log_temp,
            bias: call.bias,
            rows: block.rows as u32,
            cols: block.cols as u32,
            dim: dim as u32,
            row: block.row as i32,
            col: block.col as i32,
            slices: FusedSm90::slices(dim) as u32,
            rounds: rounds as u32,
            ring: ring as u32,
            opens_sums: u32::from(call.opens(block)),
            opens: u32::from(block.col == 0),
            diagonal: call.diagonal(block),
            sums: call.sums,
            counters: call.counters,
        };
        let inputs = || Ok::<_, Error>([img.k_major(1)?, txt.k_major(1)?, txt.mn_major()?]);
        let [img, txt, txt_rows] = fused.inputs.of([img, txt], inputs)?;
        // A whole tile of 64 × 64 is stored at once.
        let [g_store, g_load] = fused.g.of(g, || Ok::<_, Error>([g.mn_major()?, g.k_major(1)?]))?;
        let out = fused.out.of(out, || out.warp_store())?;
        // SAFETY: the caller's promise; the design sees to it that a block has no more panels than fit.
        unsafe { fused.kernel.launch(call.stream, call.info, [&img, &txt, &txt_rows, &g_store, &g_load, &out], params) }
    }

    unsafe fn d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let Problem { rows, cols, dim, .. } = self.problem;
        let work = Work {
            g: self.g(call, block),
            other: self.rows(call.txt, cols),
            shape: GemmShape::new(block.rows, dim, block.cols, GRADIENT_BAND).with_b_origin(0, block.col),
            sums: self.sums(call.d_img, self.blocks.rows),
            gradient: self.rows(call.to_img, rows),
            row_of_gradient: block.row,
            place: 0,
            first: block.col == 0,
            last: block.col + block.cols == cols,
            scalars: ReduceParams { sums: 0, ..call.scalars },
        };
        // SAFETY: the matrices are the call's live memory.
        unsafe { self.img_side.run(call, block, false, &work) }
    }

    unsafe fn d_txt(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let Problem { rows, cols, dim, .. } = self.problem;
        let (first, last) = (block.row == 0, block.row + block.rows == rows);
        let ends = last && block.col + block.cols == cols;
        let work = Work {
            g: self.g(call, block),
            other: self.rows(call.img, rows),
            shape: GemmShape::new(block.cols, dim, block.rows, GRADIENT_BAND).with_b_origin(0, block.row),
            // Of this block alone: another's may lie elsewhere.
            sums: self.sums(At { address: call.d_txt.row(block.col, size_of::<f32>()), ..call.d_txt }, block.cols),
            gradient: self.rows(call.to_txt, cols),
            row_of_gradient: block.col,
            place: block.col / self.blocks.cols,
            first,
            last,
            scalars: if ends { call.scalars } else { ReduceParams { sums: 0, ..call.scalars } },
        };
        // SAFETY: the matrices are the call's live memory, and the logit launches wrote the slots of the scalars' sums.
        unsafe { self.txt_side.run(call, block, true, &work) }
    }

    fn reduces(&self) -> bool {
        matches!(self.txt_side, Side::Whole(_) | Side::Summed { last: Some(_), .. })
    }
}
