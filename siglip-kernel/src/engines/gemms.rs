//! The plain products of a block by cuBLASLt.

use std::collections::HashMap;

use kernel_core::{DType, GemmPlan, GemmSpec, Gpu, Layout, MatrixSpec, Workspace};

use super::{At, Call};
use crate::blocks::{Block, TILE};
use crate::error::Result;

/// Plans by shape: full blocks and the edges make few shapes, all of them seen in the first call.
pub(crate) struct Gemms {
    gpu: Gpu,
    dtype: DType,
    dim: usize,
    /// Bytes at [`Call::cublas`].
    workspace: usize,
    plans: HashMap<GemmSpec, GemmPlan>,
}

impl Gemms {
    /// Multiplies one tile, so that a cuBLASLt that is not there or cannot multiply here (its handle and its code take memory too) is an error now rather
    /// than in the first call.
    pub(crate) fn new(gpu: &Gpu, dtype: DType, dim: usize, workspace: usize) -> Result<Self> {
        let (operand, result) = (MatrixSpec::new(dtype, TILE), MatrixSpec::new(DType::F32, TILE));
        let spec = GemmSpec { m: TILE, n: TILE, k: TILE, a: operand, b: operand, c: result };
        let plan = GemmPlan::new(gpu, spec, 0)?;
        let mut layout = Layout::new();
        let [a, b, c] = [spec.a, spec.b, spec.c].map(|matrix| layout.take(TILE * TILE * matrix.dtype.size_bytes()));
        let memory = Workspace::new(gpu, &layout)?;
        // SAFETY: three matrices of one tile each, freed in the stream's order.
        unsafe { plan.run(gpu.stream(), 1.0, memory.ptr(a), memory.ptr(b), 0.0, memory.ptr(c), 0) }?;
        Ok(Self { gpu: gpu.clone(), dtype, dim, workspace, plans: HashMap::new() })
    }

    fn run(&mut self, call: &Call<'_>, spec: GemmSpec, [a, b, c]: [u64; 3], accumulate: bool) -> Result<()> {
        let plan = match self.plans.entry(spec) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(GemmPlan::new(&self.gpu, spec, self.workspace)?)
            }
        };
        // SAFETY: the addresses hold the matrices of the spec, by the engine's contract; calls on one stream share the workspace in turn.
        Ok(unsafe { plan.run(call.stream, 1.0, a, b, if accumulate { 1.0 } else { 0.0 }, c, call.cublas) }?)
    }

    fn operand(&self, at: At, transposed: bool) -> MatrixSpec {
        MatrixSpec { dtype: self.dtype, transposed, row_stride: at.row_stride }
    }

    fn result(at: At) -> MatrixSpec {
        MatrixSpec { dtype: DType::F32, transposed: false, row_stride: at.row_stride }
    }

    /// g = img · txtᵀ, in f32.
    pub(crate) fn logits(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let spec = GemmSpec {
            m: block.rows,
            n: block.cols,
            k: self.dim,
            a: self.operand(call.img, false),
            b: self.operand(call.txt, true),
            c: Self::result(call.g),
        };
        let bytes = self.dtype.size_bytes();
        self.run(call, spec, [call.img.row(block.row, bytes), call.txt.row(block.col, bytes), call.g.address], false)
    }

    /// d_img (+)= g · txt.
    pub(crate) fn d_img(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let spec = GemmSpec {
            m: block.rows,
            n: self.dim,
            k: block.cols,
            a: self.operand(call.g, false),
            b: self.operand(call.txt, false),
            c: Self::result(call.d_img),
        };
        let txt = call.txt.row(block.col, self.dtype.size_bytes());
        self.run(call, spec, [call.g.address, txt, call.d_img.address], block.col > 0)
    }

    /// d_txt (+)= gᵀ · img.
    pub(crate) fn d_txt(&mut self, call: &Call<'_>, block: &Block) -> Result<()> {
        let spec = GemmSpec {
            m: block.cols,
            n: self.dim,
            k: block.rows,
            a: self.operand(call.g, true),
            b: self.operand(call.img, false),
            c: Self::result(call.d_txt),
        };
        let img = call.img.row(block.row, self.dtype.size_bytes());
        self.run(call, spec, [call.g.address, img, call.d_txt.row(block.col, size_of::<f32>())], block.row > 0)
    }
}
