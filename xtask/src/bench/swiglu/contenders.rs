//! Ours, and the bare products.

use super::problems::{BenchProblem, Op};
use crate::bench::contender::Contender;
use crate::bench::timing::Stopwatch;
use crate::siglip::Number;
use crate::swiglu::DeviceCall;
use anyhow::Result;
use cudarc::driver::{CudaSlice, DevicePtr};
use kernel_core::{GemmPlan, GemmSpec, Gpu, MatrixSpec};
use std::cell::RefCell;
use swiglu_kernel::{Mode, Plan};

/// What a call of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Forward,
    /// The forward with the pre-activations kept.
    SavingForward,
    Step,
    /// The step that keeps nothing but x.
    RecomputingStep,
    /// Forwards in a row, each with another of several sets of weights: what reading them costs without the L2's other duties.
    Streak,
}

/// One of our routes, on buffers that the routes share.
pub(crate) struct Ours<'a, T> {
    pub(crate) plan: Plan,
    pub(crate) work: Work,
    pub(crate) auto: bool,
    pub(crate) route: String,
    pub(crate) call: &'a RefCell<DeviceCall<T>>,
    pub(crate) stopwatch: &'a RefCell<Stopwatch>,
}

impl<T: Number> Ours<'_, T> {
    fn queue(plan: &mut Plan, work: Work, call: &mut DeviceCall<T>) -> Result<()> {
        match work {
            Work::Forward => call.forward(plan)?,
            Work::SavingForward => call.saving_forward(plan)?,
            Work::Step => call.step(plan, Mode::InPlace)?,
            Work::RecomputingStep => call.step(plan, Mode::Recompute)?,
            Work::Streak => {
                call.next_weights();
                call.forward(plan)?;
            }
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
        let mut stopwatch = self.stopwatch.borrow_mut();
        let queue = || Self::queue(&mut self.plan, self.work, &mut call);
        if self.work == Work::Streak { stopwatch.streak(reps, STREAK, queue) } else { stopwatch.round(reps, 1, queue) }
    }

    fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)> {
        let mut call = self.call.borrow_mut();
        let held = match self.work {
            Work::Forward | Work::Streak => call.output_bytes(false),
            Work::SavingForward => call.output_bytes(false) + call.saved_bytes(),
            Work::Step => call.output_bytes(true) + call.saved_bytes(),
            Work::RecomputingStep => call.output_bytes(true),
        };
        let peak = self.plan.workspace_bytes() + held;
        let host = self.stopwatch.borrow().host_us(|| Self::queue(&mut self.plan, self.work, &mut call))?;
        Ok((Some(peak as u64), Some(host)))
    }
}

/// Calls of a streak.
const STREAK: usize = 16;

/// The products that the operation needs, through cuBLASLt, and nothing else: what a fused kernel competes with.
pub(crate) struct BareProducts<'a, T> {
    gpu: Gpu,
    op: Op,
    stopwatch: &'a RefCell<Stopwatch>,
    plans: [GemmPlan; 3],
    x: CudaSlice<T>,
    weights: CudaSlice<T>,
    both: CudaSlice<T>,
    dx: CudaSlice<T>,
    d_weights: CudaSlice<T>,
    workspace: CudaSlice<u8>,
}

/// What cuBLASLt may use, as NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;

impl<'a, T: Number> BareProducts<'a, T> {
    pub(crate) fn new(
        gpu: &Gpu,
        problem: &BenchProblem,
        (x, weights, both): (&[T], &[T], &[T]),
        stopwatch: &'a RefCell<Stopwatch>,
    ) -> Result<Self> {
        let BenchProblem { m, k, n, dtype, .. } = *problem;
        let (narrow, wide) = (MatrixSpec::new(dtype, k), MatrixSpec::new(dtype, 2 * n));
        let spec = |m, n, k, a, b, c| GemmSpec { m, n, k, a, b, c };
        let specs = [
            spec(m, 2 * n, k, narrow, wide, wide),
            spec(m, k, 2 * n, wide, MatrixSpec::transposed(dtype, 2 * n), narrow),
            spec(k, 2 * n, m, MatrixSpec::transposed(dtype, k), wide, wide),
        ];
        let [forward, dx, d_weights] = specs.map(|spec| GemmPlan::new(gpu, spec, WORKSPACE));
        Ok(Self {
            gpu: gpu.clone(),
            op: problem.op,
            stopwatch,
            plans: [forward?, dx?, d_weights?],
            x: gpu.upload(x)?,
            weights: gpu.upload(weights)?,
            both: gpu.upload(both)?,
            dx: gpu.alloc(m * k)?,
            d_weights: gpu.alloc(2 * k * n)?,
            workspace: gpu.alloc(WORKSPACE)?,
        })
    }
}

impl<T: Number> Contender for BareProducts<'_, T> {
    fn implementation(&self) -> &str {
        "cublas"
    }

    fn route(&self) -> &str {
        "products only"
    }

    fn round(&mut self, reps: usize) -> Result<Vec<f64>> {
        self.stopwatch.borrow_mut().round(reps, 1, || {
            let stream = self.gpu.stream();
            let slices = [&self.x, &self.weights, &self.both, &self.dx, &self.d_weights];
            let [x, weights, both, dx, d_weights] = slices.map(|slice| slice.device_ptr(stream).0);
            let workspace = self.workspace.device_ptr(stream).0;
            let [forward, to_x, to_weights] = &self.plans;
            // SAFETY: the buffers have the sizes of the plans and outlive the round, which waits for the stream. All work is on one stream.
            unsafe {
                forward.run(stream, 1.0, x, weights, 0.0, both, workspace)?;
                if self.op == Op::Step {
                    to_x.run(stream, 1.0, both, weights, 0.0, dx, workspace)?;
                    to_weights.run(stream, 1.0, x, both, 0.0, d_weights, workspace)?;
                }
            }
            Ok(())
        })
    }

    fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)> {
        Ok((None, None))
    }
}
