//! Ours, and the bare products.

use super::problems::{BenchProblem, Op};
use crate::bench::contender::Contender;
use crate::bench::timing::Stopwatch;
use crate::siglip::{DeviceCall, Number};
use anyhow::Result;
use cudarc::driver::{CudaSlice, DevicePtr};
use kernel_core::{GemmPlan, GemmSpec, Gpu, MatrixSpec};
use siglip_kernel::Plan;
use std::cell::RefCell;

/// One of our routes, on buffers that the routes share.
pub(crate) struct Ours<'a, T> {
    pub(crate) plan: Plan,
    pub(crate) op: Op,
    pub(crate) auto: bool,
    pub(crate) route: String,
    pub(crate) call: &'a RefCell<DeviceCall<T>>,
    pub(crate) stopwatch: &'a RefCell<Stopwatch>,
}

impl<T: Number> Ours<'_, T> {
    fn queue(plan: &mut Plan, op: Op, call: &mut DeviceCall<T>) -> Result<()> {
        match op {
            Op::Forward => call.forward(plan)?,
            Op::Step => call.step(plan)?,
        }
        Ok(())
    }
}

impl<T: Number> Contender for Ours<'_, T> {
    fn implementation(&self) -> &str {
        "ours"
    }

    fn route(&self) -> &str {
        &self.route
    }

    fn is_auto(&self) -> bool {
        self.auto
    }

    fn round(&mut self, reps: usize) -> Result<Vec<f64>> {
        let mut call = self.call.borrow_mut();
        self.stopwatch.borrow_mut().round(reps, 1, || Self::queue(&mut self.plan, self.op, &mut call))
    }

    fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)> {
        let mut call = self.call.borrow_mut();
        let outputs = if self.op == Op::Step { call.output_bytes() } else { size_of::<f32>() };
        let peak = self.plan.workspace_bytes() + outputs;
        let host = self.stopwatch.borrow().host_us(|| Self::queue(&mut self.plan, self.op, &mut call))?;
        Ok((Some(peak as u64), Some(host)))
    }
}

/// The products that the operation needs, through cuBLASLt in blocks of the same size, and nothing else: what a fused kernel competes with.
/// d_img and d_txt are accumulated in the inputs' dtype, which is the least work.
pub(crate) struct BareProducts<'a, T> {
    gpu: Gpu,
    route: String,
    op: Op,
    stopwatch: &'a RefCell<Stopwatch>,
    blocks: Vec<Block>,
    img: CudaSlice<T>,
    txt: CudaSlice<T>,
    pairs: CudaSlice<T>,
    d_img: CudaSlice<T>,
    d_txt: CudaSlice<T>,
    workspace: CudaSlice<u8>,
}

struct Block {
    row: usize,
    col: usize,
    logits: GemmPlan,
    d_img: GemmPlan,
    d_txt: GemmPlan,
}

impl<'a, T: Number> BareProducts<'a, T> {
    /// `block`: rows and columns of a block of pairs.
    pub(crate) fn new(
        gpu: &Gpu,
        problem: &BenchProblem,
        block: (usize, usize),
        route: String,
        (img, txt): (&[T], &[T]),
        stopwatch: &'a RefCell<Stopwatch>,
    ) -> Result<Self> {
        const WORKSPACE: usize = 64 << 20;
        let BenchProblem { b, d, dtype, .. } = *problem;
        let (rows, cols) = (block.0.min(b), block.1.min(b));
        let mut blocks = Vec::new();
        for row in (0..b).step_by(rows) {
            for col in (0..b).step_by(cols) {
                let (m, n) = (rows.min(b - row), cols.min(b - col));
                let (narrow, wide) = (MatrixSpec::new(dtype, d), MatrixSpec::new(dtype, cols));
                let spec = |m, n, k, a, b, c| GemmSpec { m, n, k, a, b, c };
                let logits = spec(m, n, d, narrow, MatrixSpec::transposed(dtype, d), wide);
                let d_img = spec(m, d, n, wide, narrow, narrow);
                let d_txt = spec(n, d, m, MatrixSpec::transposed(dtype, cols), narrow, narrow);
                let plan = |spec| GemmPlan::new(gpu, spec, WORKSPACE);
                blocks.push(Block { row, col, logits: plan(logits)?, d_img: plan(d_img)?, d_txt: plan(d_txt)? });
            }
        }
        Ok(Self {
            gpu: gpu.clone(),
            route,
            op: problem.op,
            stopwatch,
            blocks,
            img: gpu.upload(img)?,
            txt: gpu.upload(txt)?,
            pairs: gpu.alloc(rows * cols)?,
            d_img: gpu.alloc(b * d)?,
            d_txt: gpu.alloc(b * d)?,
            workspace: gpu.alloc(WORKSPACE)?,
        })
    }
}

impl<T: Number> Contender for BareProducts<'_, T> {
    fn implementation(&self) -> &str {
        "cublas"
    }

    fn route(&self) -> &str {
        &self.route
    }

    fn round(&mut self, reps: usize) -> Result<Vec<f64>> {
        self.stopwatch.borrow_mut().round(reps, 1, || {
            let stream = self.gpu.stream();
            let addresses =
                [&self.img, &self.txt, &self.pairs, &self.d_img, &self.d_txt].map(|slice| slice.device_ptr(stream).0);
            let [img, txt, pairs, d_img, d_txt] = addresses;
            let workspace = self.workspace.device_ptr(stream).0;
            for block in &self.blocks {
                let at = |address: u64, row: usize| address + (row * block.logits.spec().k * size_of::<T>()) as u64;
                let first = |index: usize| if index == 0 { 0.0 } else { 1.0 };
                // SAFETY: blocks lie within the matrices that the plans were made for, the workspace is as large as the plans may use, and
                // the buffers outlive the round, which waits for the stream. All work is on one stream.
                unsafe {
                    block.logits.run(stream, 1.0, at(img, block.row), at(txt, block.col), 0.0, pairs, workspace)?;
                    if self.op == Op::Step {
                        let (d_img, d_txt) = (at(d_img, block.row), at(d_txt, block.col));
                        block.d_img.run(stream, 1.0, pairs, at(txt, block.col), first(block.col), d_img, workspace)?;
                        block.d_txt.run(stream, 1.0, pairs, at(img, block.row), first(block.row), d_txt, workspace)?;
                    }
                }
            }
            Ok(())
        })
    }

    fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)> {
        Ok((None, None))
    }
}
