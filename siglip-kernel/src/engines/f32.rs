//! f32 inputs in true f32: products by cuBLASLt, the pair loss in one pass over the block.

use kernel_core::DType;
use kernel_core::Gpu;

use super::gemms::Gemms;
use super::{Call, Engine};
use crate::blocks::Block;
use crate::error::Result;
use crate::kernels::{PairsF32, PairsF32Params};
use crate::workspace::CUBLAS_BYTES;

pub(crate) struct F32Engine {
    gemms: Gemms,
    loss: PairsF32,
    loss_and_gradient: PairsF32,
}

impl F32Engine {
    pub(crate) fn new(gpu: &Gpu, dim: usize) -> Result<Self> {
        Ok(Self {
            gemms: Gemms::new(gpu, DType::F32, dim, CUBLAS_BYTES)?,
            loss: PairsF32::new(gpu, false)?,
            loss_and_gradient: PairsF32::new(gpu, true)?,
        })
    }
}

impl Engine for F32Engine {
    unsafe fn logits(&mut self, call: &Call<'_>, block: &Block) -> Result<usize> {
        self.gemms.logits(call, block)?;
        let kernel = if call.gradient { &self.loss_and_gradient } else { &self.loss };
        let params = PairsF32Params {
            log_temp: call.log_temp,
            bias: call.bias,
            x: call.g.address,
            x_stride: call.g.row_stride as u64,
            rows: block.rows as u32,
            cols: block.cols as u32,
            first: u32::from(call.opens(block)),
            diagonal: call.diagonal(block),
            positive: call.positive + (block.row * size_of::<f32>()) as u64,
            sums: call.sums,
        };
        // SAFETY: `g` holds the block, `sums` a slot for every warp.
        unsafe { kernel.launch(call.stream, call.info, params) }
    }

    unsafe fn d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        self.gemms.d_img(call, block)
    }

    unsafe fn d_txt(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        self.gemms.d_txt(call, block)
    }
}
