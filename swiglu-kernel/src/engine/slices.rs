//! A backward over slices of the N features, so that only one slice's pre-activations are held at a time: those computed again, or the gradients of
//! saved ones.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, Gpu, Workspace};

use super::core::{Engine, From, Source, Targets};
use crate::at::{At, WeightsAt};
use crate::error::Result;
use crate::kernels::{Rounding, RoundingCall};
use crate::problem::{Layout, Mode, Problem};
use crate::route::Path;
use crate::workspace::{Regions, slice_outputs};

/// dW and db of a slice are final; dx is a sum over slices, in f32.
pub(crate) struct Slices {
    problem: Problem,
    /// First feature of each, and the layer of its features alone, with gate and up apart.
    parts: Vec<(usize, Engine)>,
    /// Where dx is narrower than f32: its sum, and what rounds it.
    dx: Option<(At, Rounding)>,
}

impl Slices {
    /// None where one slice holds everything.
    pub(crate) fn new(
        gpu: &Gpu,
        problem: &Problem,
        path: Path,
        mode: Mode,
        regions: &Regions,
        workspace: &Workspace,
    ) -> Result<Option<Self>> {
        let width = slice_outputs(path, problem, false);
        if mode != Mode::Recompute || width == problem.outputs {
            return Ok(None);
        }
        let layout = if problem.layout.is_linear() { Layout::SeparateLinear } else { Layout::Separate };
        let part = |first: usize| {
            let outputs = width.min(problem.outputs - first);
            let part = Problem { outputs, layout, ..*problem };
            Ok((first, Engine::new(gpu, &part, path, mode, regions, workspace)?))
        };
        let parts = (0..problem.outputs).step_by(width).map(part).collect::<Result<_>>()?;
        let sum = At { address: workspace.ptr(regions.dx), row_stride: problem.inputs };
        let dx = if problem.dtype == DType::F32 { None } else { Some((sum, Rounding::new(gpu, problem.dtype)?)) };
        Ok(Some(Self { problem: *problem, parts, dx }))
    }

    /// All gradients for `dz`, from saved pre-activations `[gate, up]` that stay as they are, or from x.
    ///
    /// # Safety
    /// As [`Engine::forward`].
    pub(crate) unsafe fn backward(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        dz: At,
        saved: Option<[At; 2]>,
        targets: &Targets,
    ) -> Result<()> {
        let Problem { rows, inputs, outputs, dtype, layout, .. } = self.problem;
        let (bytes, linear, order) = (dtype.size_bytes(), layout.is_linear(), layout.order());
        let slice = |at: At, first, bytes| if linear { at.offset(first, 0, bytes) } else { at.offset(0, first, bytes) };
        let elements = |address: u64, first: usize, bytes: usize| match address {
            0 => 0,
            address => address + (first * bytes) as u64,
        };
        let weights = source.weights.halves(order, linear, outputs, bytes);
        for (first, engine) in &mut self.parts {
            let first = *first;
            let source = Source {
                x: source.x,
                weights: WeightsAt::Separate(weights.map(|half| slice(half, first, bytes))),
                bias: source.bias.map(|half| elements(half, first, bytes)),
            };
            let from = match saved {
                Some(halves) => From::Saved(halves.map(|half| half.offset(0, first, bytes))),
                None => From::Recompute,
            };
            let targets = Targets {
                dx: targets.dx.map(|dx| self.dx.as_ref().map_or(dx, |(sum, _)| (*sum, DType::F32))),
                add_to_dx: first > 0,
                d_weights: targets.d_weights.map(|(to, dtype)| {
                    let bytes = dtype.size_bytes();
                    let halves = to.halves(order, linear, outputs, bytes);
                    (WeightsAt::Separate(halves.map(|half| slice(half, first, bytes))), dtype)
                }),
                d_bias: targets
                    .d_bias
                    .map(|(to, dtype)| (to.map(|half| elements(half, first, dtype.size_bytes())), dtype)),
                accumulate: targets.accumulate,
            };
            // SAFETY: the caller's promise, for a part of every matrix.
            unsafe { engine.backward(stream, &source, dz.offset(0, first, bytes), from, &targets) }?;
        }
        if let (Some((to, _)), Some((sum, kernel))) = (targets.dx, &self.dx)
            && let Some((_, engine)) = self.parts.first()
        {
            let call = RoundingCall { rows, cols: inputs, from: *sum, to };
            // SAFETY: the sum is the plan's own memory; dx is the caller's promise.
            unsafe { kernel.launch(stream, engine.info(), &call) }?;
        }
        Ok(())
    }
}
