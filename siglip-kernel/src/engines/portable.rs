//! f16 and bf16 on any GPU from sm_80: the fused logit kernel by `mma.sync`, the gradient products by cuBLASLt.

use kernel_core::Gpu;

use super::gemms::Gemms;
use super::{Call, Engine};
use crate::blocks::Block;
use crate::error::Result;
use crate::kernels::{LogitsPortable, LogitsPortableParams, Operand};
use crate::problem::Problem;
use crate::workspace::{CUBLAS_BYTES, padded_dim};

pub(crate) struct PortableEngine {
    gemms: Gemms,
    loss: LogitsPortable,
    loss_and_gradient: LogitsPortable,
    problem: Problem,
}

impl PortableEngine {
    pub(crate) fn new(gpu: &Gpu, problem: &Problem) -> Result<Self> {
        Ok(Self {
            gemms: Gemms::new(gpu, problem.dtype, problem.dim, CUBLAS_BYTES)?,
            loss: LogitsPortable::new(gpu, problem.dtype, false)?,
            loss_and_gradient: LogitsPortable::new(gpu, problem.dtype, true)?,
            problem: *problem,
        })
    }
}

impl Engine for PortableEngine {
    unsafe fn logits(&mut self, call: &Call<'_>, block: &Block) -> Result<usize> {
        let kernel = if call.gradient { &self.loss_and_gradient } else { &self.loss };
        let bytes = self.problem.dtype.size_bytes();
        let params = LogitsPortableParams {
            log_temp: call.log_temp,
            bias: call.bias,
            img: Operand {
                data: call.img.row(block.row, bytes),
                row_stride: call.img.row_stride as u64,
                rows: block.rows as u32,
            },
            txt: Operand {
                data: call.txt.row(block.col, bytes),
                row_stride: call.txt.row_stride as u64,
                rows: block.cols as u32,
            },
            k: padded_dim(&self.problem) as u32,
            first: u32::from(call.opens(block)),
            diagonal: call.diagonal(block),
            g: call.g.address,
            g_stride: call.g.row_stride as u64,
            sums: call.sums,
        };
        // SAFETY: rows of padded inputs hold `k` elements, `g` holds whole tiles, `sums` a slot for every warp.
        unsafe { kernel.launch(call.stream, call.info, params) }
    }

    unsafe fn d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        self.gemms.d_img(call, block)
    }

    unsafe fn d_txt(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        self.gemms.d_txt(call, block)
    }
}
