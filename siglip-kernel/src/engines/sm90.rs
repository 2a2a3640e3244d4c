//! f16 and bf16 on Hopper: logits by the warpgroup mainloop; gradients by cuBLASLt where both are sums over several blocks, else, or where there is no
//! cuBLASLt that works, by the mainloop. The logits of quantised inputs when asked.

use kernel_core::sm90::{GemmShape, MatrixAt, TILE};
use kernel_core::{Gpu, LastMaps, MapType, TensorMap};

use super::gemms::Gemms;
use super::{At, Call, Engine};
use crate::blocks::{Block, Blocks};
use crate::design::{Engine as Kind, Gradient};
use crate::error::Result;
use crate::kernels::{
    GradientParams, GradientSm90, LogitsParams, LogitsSm90, QuantizeFp8, QuantizeParams, QuantizeSide,
};
use crate::problem::Problem;
use crate::programs::logits_cluster;
use crate::workspace::{gain_log2, padded_dim};

/// Tile rows that a band of the tile order spans.
const LOGITS_BAND: u32 = 22;
const GRADIENT_BAND: u32 = 4;

pub(crate) struct Sm90Engine {
    /// Of route fp8.
    quantize: Option<QuantizeFp8>,
    loss: LogitsSm90,
    loss_and_gradient: LogitsSm90,
    d_img: Product,
    d_txt: Product,
    gradients: (Gradient, Gradient),
    problem: Problem,
    blocks: Blocks,
    /// What maps are made of beside these addresses stays where the plan has it. In low memory G moves within a call.
    maps: LastMaps<[At; 4], Maps>,
    g_maps: LastMaps<At, GMaps>,
}

/// Who multiplies G by the rows of the other side.
enum Product {
    Kernel(GradientSm90),
    /// 4 to 5% of a whole step less than by the kernel on a card that its power bounds (H200): at the same clocks the kernel is the faster one, but the
    /// library's tiles of 128 × 256 move less through shared memory, and the clocks are higher. Not where blocks are so few that one of the gradients is
    /// finished at once: there it loses 2%. Without a workspace, so that no sum is split.
    Library(Gemms),
}

impl Product {
    /// Both products: of images, of texts.
    fn both(gpu: &Gpu, problem: &Problem, gradients: (Gradient, Gradient)) -> Result<(Self, Self)> {
        let Problem { dtype, dim, .. } = *problem;
        let gemms = || Gemms::new(gpu, dtype, dim, 0);
        let direct = |gradient| gradient == Gradient::Direct;
        if !direct(gradients.0)
            && !direct(gradients.1)
            && let (Ok(d_img), Ok(d_txt)) = (gemms(), gemms())
        {
            return Ok((Self::Library(d_img), Self::Library(d_txt)));
        }
        let kernel =
            |transposed, gradient| GradientSm90::new(gpu, dtype, transposed, direct(gradient)).map(Self::Kernel);
        Ok((kernel(false, gradients.0)?, kernel(true, gradients.1)?))
    }
}

/// Every matrix but G as its readers and writers see it.
#[derive(Clone, Copy)]
struct Maps {
    img_rows: TensorMap,
    txt_rows: TensorMap,
    txt_rows_shared: TensorMap,
    img_columns: TensorMap,
    txt_columns: TensorMap,
    d_img: TensorMap,
    d_txt: TensorMap,
}

/// The same of G.
#[derive(Clone, Copy)]
struct GMaps {
    store: TensorMap,
    rows: TensorMap,
    columns: TensorMap,
}

impl Sm90Engine {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, blocks: Blocks, fp8: bool) -> Result<Self> {
        let dtype = problem.dtype;
        let gradients = Kind::Sm90.gradients(problem, blocks);
        let (d_img, d_txt) = Product::both(gpu, problem, gradients)?;
        Ok(Self {
            quantize: fp8.then(|| QuantizeFp8::new(gpu, dtype)).transpose()?,
            loss: LogitsSm90::new(gpu, dtype, false, fp8)?,
            loss_and_gradient: LogitsSm90::new(gpu, dtype, true, fp8)?,
            d_img,
            d_txt,
            gradients,
            problem: *problem,
            blocks,
            maps: LastMaps::new(),
            g_maps: LastMaps::new(),
        })
    }

    fn maps(&mut self, call: &Call<'_>) -> Result<(Maps, GMaps)> {
        let Self { quantize, gradients, problem, blocks, .. } = self;
        let fp8 = quantize.is_some();
        let maps = self
            .maps
            .of([call.img, call.txt, call.d_img, call.d_txt], || encode(call, problem, *blocks, *gradients, fp8))?;
        // Without gradients there is no G; the kernel does not follow its map.
        let g = if call.gradient { call.g } else { call.img };
        Ok((maps, self.g_maps.of(g, || encode_g(g, problem, *blocks))?))
    }
}

fn matrix(at: At, dtype: MapType, rows: usize, cols: usize) -> MatrixAt {
    MatrixAt { address: at.address, dtype, rows, cols, row_stride: at.row_stride }
}

fn encode_g(at: At, problem: &Problem, blocks: Blocks) -> Result<GMaps> {
    let g = matrix(at, problem.dtype.into(), blocks.rows, at.row_stride);
    Ok(GMaps { store: g.warp_store()?, rows: g.k_major(1)?, columns: g.mn_major()? })
}

fn encode(
    call: &Call<'_>,
    problem: &Problem,
    blocks: Blocks,
    gradients: (Gradient, Gradient),
    fp8: bool,
) -> Result<Maps> {
    let Problem { rows, cols, dim, .. } = *problem;
    let dtype = problem.dtype.into();
    let img = matrix(call.img, dtype, rows, dim);
    let txt = matrix(call.txt, dtype, cols, dim);
    // Without gradients the accumulators do not exist, and the texts' may have a pass of their own; maps of what does not exist are never followed, so
    // any valid matrix will do.
    let or_img = |matrix: MatrixAt| if call.gradient && matrix.address != 0 { matrix } else { img };
    let d_img = or_img(match gradients.0 {
        Gradient::Direct => matrix(call.d_img, dtype, rows, dim),
        Gradient::Accumulated | Gradient::InPlace => matrix(call.d_img, MapType::F32, blocks.rows, dim),
    });
    let d_txt = or_img(match gradients.1 {
        Gradient::Direct => matrix(call.d_txt, dtype, cols, dim),
        Gradient::Accumulated | Gradient::InPlace => matrix(call.d_txt, MapType::F32, cols, dim),
    });
    let quantised = |at: At, rows| matrix(at, MapType::U8, rows, padded_dim(problem));
    let (img_rows, txt_rows) =
        if fp8 { (quantised(call.fp8.img, rows), quantised(call.fp8.txt, cols)) } else { (img, txt) };
    Ok(Maps {
        img_rows: img_rows.k_major(1)?,
        txt_rows: txt_rows.k_major(logits_cluster(true) as usize)?,
        txt_rows_shared: txt_rows.k_major(logits_cluster(false) as usize)?,
        img_columns: img.mn_major()?,
        txt_columns: txt.mn_major()?,
        d_img: d_img.warp_store()?,
        d_txt: d_txt.warp_store()?,
    })
}

impl Engine for Sm90Engine {
    unsafe fn begin(&mut self, call: &Call<'_>) -> Result<()> {
        let Some(quantize) = &self.quantize else { return Ok(()) };
        let side = |from: At, to: At, rows: usize| QuantizeSide {
            from: from.address,
            to: to.address,
            from_stride: from.row_stride as u64,
            to_stride: to.row_stride as u64,
            rows: rows as u32,
        };
        let Problem { rows, cols, .. } = self.problem;
        let params = QuantizeParams {
            sides: [side(call.img, call.fp8.img, rows), side(call.txt, call.fp8.txt, cols)],
            cols: padded_dim(&self.problem) as u32,
            peaks: call.fp8.peaks,
            exponents: call.fp8.exponents,
            positives: call.fp8.positives,
            offset: call.offset,
        };
        // SAFETY: inputs are padded to whole vectors, and the workspace was laid out for the copies.
        unsafe { quantize.launch(call.stream, call.info, params) }
    }

    unsafe fn logits(&mut self, call: &Call<'_>, block: &Block) -> Result<usize> {
        let params = LogitsParams {
            log_temp: call.log_temp,
            bias: call.bias,
            gain_log2: gain_log2(self.problem.dtype),
            first: u32::from(call.opens(block)),
            diagonal: call.diagonal(block),
            sums: call.sums,
            exponents: call.fp8.exponents,
            positives: call.fp8.positives + (block.row * size_of::<f32>()) as u64,
        };
        let band = LOGITS_BAND.min(block.rows.div_ceil(TILE) as u32);
        let shape = GemmShape::new(block.rows, block.cols, self.problem.dim, band)
            .with_a_origin(block.row, 0)
            .with_b_origin(block.col, 0);
        let (maps, g) = self.maps(call)?;
        let (kernel, txt) =
            if call.gradient { (&self.loss_and_gradient, &maps.txt_rows) } else { (&self.loss, &maps.txt_rows_shared) };
        // SAFETY: the maps are of the call's live memory; `sums` has a slot for every warp.
        unsafe { kernel.launch(call.stream, call.info, [&maps.img_rows, txt, &g.store], shape, params) }
    }

    unsafe fn d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let shape = GemmShape::new(block.rows, self.problem.dim, block.cols, GRADIENT_BAND).with_b_origin(0, block.col);
        let row = if self.gradients.0 == Gradient::Direct { block.row as u32 } else { 0 };
        let params = GradientParams { factor: call.factor, first: u32::from(block.col == 0), row };
        let (maps, g) = self.maps(call)?;
        match &mut self.d_img {
            Product::Library(gemms) => gemms.d_img(call, block),
            // SAFETY: the maps are of the call's live memory.
            Product::Kernel(kernel) => unsafe {
                kernel.launch(call.stream, call.info, [&g.rows, &maps.txt_columns, &maps.d_img], shape, params)
            },
        }
    }

    unsafe fn d_txt(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let shape = GemmShape::new(block.cols, self.problem.dim, block.rows, GRADIENT_BAND).with_b_origin(0, block.row);
        let params = GradientParams { factor: call.factor, first: u32::from(block.row == 0), row: block.col as u32 };
        let (maps, g) = self.maps(call)?;
        match &mut self.d_txt {
            Product::Library(gemms) => gemms.d_txt(call, block),
            // SAFETY: the maps are of the call's live memory.
            Product::Kernel(kernel) => unsafe {
                kernel.launch(call.stream, call.info, [&g.columns, &maps.img_columns, &maps.d_txt], shape, params)
            },
        }
    }
}
