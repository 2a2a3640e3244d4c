//! The order of launches of a forward and a backward, on addresses. Checks and views are the plans' business.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Workspace};

use crate::at::{At, WeightsAt, in_order};
use crate::error::Result;
use crate::gemms::{Gemms, Operand};
use crate::kernels::{
    ColumnSums, ColumnSumsCall, Decode, DecodeCall, DecodeSm90, ForwardCall, ForwardSm90, GateBackward,
    GateBackwardCall, GateForward, GateForwardCall, ThroughCall, ThroughSm90,
};
use crate::problem::{Mode, Problem};
use crate::route::Path;
use crate::workspace::{Regions, chunk_rows};

/// The inputs of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) x: At,
    pub(crate) weights: WeightsAt,
    /// Address of `[2N]`, or 0.
    pub(crate) bias: u64,
}

/// Where the pre-activations of a backward come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    InPlace(At),
    Saved(At),
    Recompute,
}

/// Where gradients go; a parameter's with its dtype.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Targets {
    pub(crate) dx: Option<At>,
    pub(crate) d_weights: Option<(WeightsAt, DType)>,
    pub(crate) d_bias: Option<(u64, DType)>,
    pub(crate) accumulate: bool,
}

/// Kernels that only a backward needs.
struct BackwardKernels {
    gate: GateBackward,
    sums: ColumnSums,
    sums_f32: ColumnSums,
}

/// The kernels of the path that was chosen.
enum Forward {
    Sm90(Box<ForwardSm90>),
    Decode(Decode),
    DecodeSm90(Box<DecodeSm90>),
    Portable(GateForward),
}

pub(crate) struct Engine {
    gpu: Gpu,
    problem: Problem,
    path: Path,
    gemms: Gemms,
    forward: Forward,
    backward: Option<BackwardKernels>,
    through: Option<Box<ThroughSm90>>,
    chunk: u64,
    scratch: At,
}

impl Engine {
    pub(crate) fn new(
        gpu: &Gpu,
        problem: &Problem,
        path: Path,
        mode: Mode,
        regions: &Regions,
        workspace: &Workspace,
    ) -> Result<Self> {
        let dtype = problem.dtype;
        let backward = || -> Result<BackwardKernels> {
            Ok(BackwardKernels {
                gate: GateBackward::new(gpu, dtype)?,
                sums: ColumnSums::new(gpu, dtype, dtype)?,
                sums_f32: ColumnSums::new(gpu, dtype, DType::F32)?,
            })
        };
        Ok(Self {
            gpu: gpu.clone(),
            problem: *problem,
            path,
            gemms: Gemms::new(gpu, workspace.ptr(regions.cublas)),
            forward: match path {
                Path::Sm90 => Forward::Sm90(Box::new(ForwardSm90::new(gpu, problem)?)),
                Path::Decode if gpu.info().arch().has_wgmma() => {
                    Forward::DecodeSm90(Box::new(DecodeSm90::new(gpu, problem)?))
                }
                Path::Decode => Forward::Decode(Decode::new(gpu, problem)?),
                Path::Portable => Forward::Portable(GateForward::new(gpu, dtype)?),
            },
            through: None,
            backward: (mode != Mode::Inference).then(backward).transpose()?,
            chunk: workspace.ptr(regions.chunk),
            scratch: At { address: workspace.ptr(regions.scratch), row_stride: 2 * problem.outputs },
        })
    }

    /// Prepares [`Engine::differentiate_through`] for a down projection that the fused kernel can take; others go through cuBLASLt.
    pub(crate) fn prepare_through(&mut self, down_outputs: usize, down_linear: bool) -> Result<()> {
        let tiles = self.problem.outputs.is_multiple_of(8) && down_outputs.is_multiple_of(8);
        if self.gpu.info().arch().has_wgmma() && self.problem.dtype != DType::F32 && tiles && self.backward.is_some() {
            let kernel = ThroughSm90::new(&self.gpu, &self.problem, down_outputs, down_linear)?;
            self.through = Some(Box::new(kernel));
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> Path {
        self.path
    }

    fn bytes(&self) -> usize {
        self.problem.dtype.size_bytes()
    }

    /// `[gate, up]` halves of the bias; nulls without one.
    fn bias(&self, source: &Source) -> [u64; 2] {
        if source.bias == 0 {
            return [0, 0];
        }
        let whole = At { address: source.bias, row_stride: 0 };
        whole.columns(self.problem.layout.order(), self.problem.outputs, self.bytes()).map(|half| half.address)
    }

    /// z, and the pre-activations if `saved` says where.
    ///
    /// # Safety
    /// The addresses must be live memory of the problem's shapes.
    pub(crate) unsafe fn forward(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        z: At,
        saved: Option<At>,
    ) -> Result<()> {
        let Problem { layout, outputs, .. } = self.problem;
        let bytes = self.bytes();
        let weights = match source.weights {
            WeightsAt::Separate(halves) => halves,
            WeightsAt::Joined(at) => {
                let second =
                    if layout.is_linear() { at.offset(outputs, 0, bytes) } else { at.offset(0, outputs, bytes) };
                in_order(layout.order(), at, second)
            }
        };
        let (x, bias) = (source.x, self.bias(source));
        let saved_halves = saved.map(|at| at.columns(layout.order(), outputs, bytes));
        match &mut self.forward {
            Forward::Sm90(kernel) => {
                let call = ForwardCall { x, weights, bias, z, saved: saved_halves };
                // SAFETY: the caller's promise.
                unsafe { kernel.launch(&self.gpu, stream, &call) }
            }
            Forward::Decode(kernel) => {
                let call = DecodeCall { x, weights, bias, z, saved: saved_halves.unwrap_or_default() };
                // SAFETY: the caller's promise.
                unsafe { kernel.launch(stream, &call) }
            }
            Forward::DecodeSm90(kernel) => {
                let call = DecodeCall { x, weights, bias, z, saved: saved_halves.unwrap_or_default() };
                // SAFETY: the caller's promise.
                unsafe { kernel.launch(stream, &call) }
            }
            // SAFETY: the caller's promise.
            Forward::Portable(_) => unsafe { self.forward_portable(stream, source, z, saved) },
        }
    }

    /// # Safety
    /// As [`Engine::forward`].
    unsafe fn forward_portable(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        z: At,
        saved: Option<At>,
    ) -> Result<()> {
        let Problem { rows, outputs, gate, layout, .. } = self.problem;
        let bytes = self.bytes();
        let step = chunk_rows(&self.problem);
        let chunk = At { address: self.chunk, row_stride: 2 * outputs };
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            // SAFETY: the chunk holds `step` rows; the rest is the caller's promise.
            unsafe { self.preactivations(stream, source, (first, count), Operand::new(chunk, DType::F32)) }?;
            let saved = saved.map(|at| at.offset(first, 0, bytes).columns(layout.order(), outputs, bytes));
            let call = GateForwardCall {
                rows: count,
                cols: outputs,
                gate,
                preactivations: chunk.columns(layout.order(), outputs, size_of::<f32>()),
                bias: self.bias(source),
                z: z.offset(first, 0, bytes),
                saved: saved.unwrap_or_default(),
            };
            if let Forward::Portable(kernel) = &self.forward {
                // SAFETY: as above.
                unsafe { kernel.launch(stream, self.info(), &call) }?;
            }
        }
        Ok(())
    }

    /// x · W of rows `first..first + count` into `to` `[count, 2N]`, without bias.
    ///
    /// # Safety
    /// As [`Engine::forward`].
    unsafe fn preactivations(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        (first, count): (usize, usize),
        to: Operand,
    ) -> Result<()> {
        let Problem { inputs, outputs, dtype, layout, .. } = self.problem;
        let x = Operand::new(source.x.offset(first, 0, self.bytes()), dtype);
        let weights = |at| Operand { at, dtype, transposed: layout.is_linear() };
        match source.weights {
            WeightsAt::Joined(at) => {
                // SAFETY: the caller's promise.
                unsafe { self.gemms.run(stream, [count, 2 * outputs, inputs], [x, weights(at), to], false) }
            }
            WeightsAt::Separate(halves) => {
                let targets = to.at.columns(layout.order(), outputs, to.dtype.size_bytes());
                for (at, target) in halves.into_iter().zip(targets) {
                    let target = Operand { at: target, ..to };
                    // SAFETY: as above.
                    unsafe { self.gemms.run(stream, [count, outputs, inputs], [x, weights(at), target], false) }?;
                }
                Ok(())
            }
        }
    }

    /// Where the pre-activations are, whether they lack the bias, and where their gradients go.
    ///
    /// # Safety
    /// As [`Engine::forward`].
    unsafe fn locate(&mut self, stream: &CudaStream, source: &Source, from: From) -> Result<(At, [u64; 2], At)> {
        match from {
            From::InPlace(at) => Ok((at, [0, 0], at)),
            From::Saved(at) => Ok((at, [0, 0], self.scratch)),
            From::Recompute => {
                let to = Operand::new(self.scratch, self.problem.dtype);
                // SAFETY: the scratch holds `[M, 2N]` in this mode, which the plan has checked.
                unsafe { self.preactivations(stream, source, (0, self.problem.rows), to) }?;
                Ok((self.scratch, self.bias(source), self.scratch))
            }
        }
    }

    /// All gradients for `dz`.
    ///
    /// # Safety
    /// As [`Engine::forward`].
    pub(crate) unsafe fn backward(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        dz: At,
        from: From,
        targets: &Targets,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            let gradients = self.differentiate(stream, source, dz, from, At::default())?;
            self.products(stream, source, gradients, targets)
        }
    }

    /// The gradients of the pre-activations `[M, 2N]`, and z if it says where; gives where they are.
    ///
    /// # Safety
    /// As [`Engine::forward`].
    pub(crate) unsafe fn differentiate(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        dz: At,
        from: From,
        z: At,
    ) -> Result<At> {
        let Problem { rows, outputs, gate, layout, .. } = self.problem;
        let bytes = self.bytes();
        // SAFETY: the caller's promise.
        let (preactivations, bias, gradients) = unsafe { self.locate(stream, source, from) }?;
        let call = GateBackwardCall {
            rows,
            cols: outputs,
            gate,
            preactivations: preactivations.columns(layout.order(), outputs, bytes),
            bias,
            dz,
            gradients: gradients.columns(layout.order(), outputs, bytes),
            z,
        };
        if let Some(kernels) = &self.backward {
            // SAFETY: the caller's promise.
            unsafe { kernels.gate.launch(stream, self.info(), &call) }?;
        }
        Ok(gradients)
    }

    /// The same for dz = dy · W_downᵀ, given as `[dy, down]` of a product over `k_out`; `z` must be a buffer, which holds z afterwards.
    ///
    /// # Safety
    /// As [`Engine::forward`].
    pub(crate) unsafe fn differentiate_through(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        [dy, down]: [Operand; 2],
        k_out: usize,
        from: From,
        z: At,
    ) -> Result<At> {
        let Problem { rows, outputs, dtype, layout, .. } = self.problem;
        let to = Operand::new(z, dtype);
        // Pre-activations that will lack their bias (only just computed again) and odd addresses take the other way.
        let lacks_bias = matches!(from, From::Recompute) && source.bias != 0;
        let (preactivations, gradients) = match from {
            From::InPlace(at) => (at, at),
            From::Saved(at) => (at, self.scratch),
            From::Recompute => (self.scratch, self.scratch),
        };
        let halves = |at: At| at.columns(layout.order(), outputs, dtype.size_bytes());
        let (preactivations, gradients) = (halves(preactivations), halves(gradients));
        let call = ThroughCall { dy: dy.at, down: down.at, preactivations, gradients, z };
        if self.through.is_some() && !lacks_bias && call.is_aligned(dtype.size_bytes()) {
            // SAFETY: the caller's promise.
            let (_, _, gradients) = unsafe { self.locate(stream, source, from) }?;
            if let Some(kernel) = &mut self.through {
                // SAFETY: as above.
                unsafe { kernel.launch(&self.gpu, stream, &call) }?;
            }
            return Ok(gradients);
        }
        // SAFETY: the caller's promise; the gate pass reads a piece of dz before it writes z there.
        unsafe {
            self.gemms.run(stream, [rows, outputs, k_out], [dy, down, to], false)?;
            self.differentiate(stream, source, z, from, z)
        }
    }

    fn info(&self) -> &DeviceInfo {
        self.gpu.info()
    }

    /// dx, dW and the bias' gradient from the gradients of the pre-activations.
    ///
    /// # Safety
    /// As [`Engine::forward`].
    pub(crate) unsafe fn products(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        gradients: At,
        targets: &Targets,
    ) -> Result<()> {
        // SAFETY: the caller's promise, for all three.
        unsafe {
            if let Some(dx) = targets.dx {
                self.input_gradient(stream, source, gradients, dx)?;
            }
            if let Some((d_weights, dtype)) = targets.d_weights {
                self.weight_gradient(stream, source, gradients, d_weights, dtype, targets.accumulate)?;
            }
            if let Some((to, dtype)) = targets.d_bias
                && let Some(kernels) = &self.backward
            {
                let kernel = if dtype == self.problem.dtype { &kernels.sums } else { &kernels.sums_f32 };
                let (rows, cols) = (self.problem.rows, 2 * self.problem.outputs);
                let call = ColumnSumsCall { from: gradients, rows, cols, to, accumulate: targets.accumulate };
                kernel.launch(stream, &call)?;
            }
        }
        Ok(())
    }

    /// dx = d_gate·W_gateᵀ + d_up·W_upᵀ. With two tensors the second product is added to the first as rounded.
    unsafe fn input_gradient(&mut self, stream: &CudaStream, source: &Source, gradients: At, dx: At) -> Result<()> {
        let Problem { rows, inputs, outputs, dtype, layout, .. } = self.problem;
        let weights = |at| Operand { at, dtype, transposed: !layout.is_linear() };
        let dx = Operand::new(dx, dtype);
        match source.weights {
            WeightsAt::Joined(at) => {
                let operands = [Operand::new(gradients, dtype), weights(at), dx];
                // SAFETY: the caller's promise.
                unsafe { self.gemms.run(stream, [rows, inputs, 2 * outputs], operands, false) }
            }
            WeightsAt::Separate(halves) => {
                let columns = gradients.columns(layout.order(), outputs, self.bytes());
                for (i, (at, gradient)) in halves.into_iter().zip(columns).enumerate() {
                    let operands = [Operand::new(gradient, dtype), weights(at), dx];
                    // SAFETY: as above.
                    unsafe { self.gemms.run(stream, [rows, inputs, outputs], operands, i > 0) }?;
                }
                Ok(())
            }
        }
    }

    /// dW (+)= xᵀ·d, or its transpose for linear layouts.
    unsafe fn weight_gradient(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        gradients: At,
        to: WeightsAt,
        to_dtype: DType,
        accumulate: bool,
    ) -> Result<()> {
        let Problem { rows, inputs, outputs, dtype, layout, .. } = self.problem;
        let parts: Vec<(At, At, usize)> = match to {
            WeightsAt::Joined(at) => vec![(gradients, at, 2 * outputs)],
            WeightsAt::Separate(halves) => {
                let columns = gradients.columns(layout.order(), outputs, self.bytes());
                columns.into_iter().zip(halves).map(|(gradient, at)| (gradient, at, outputs)).collect()
            }
        };
        for (gradient, at, across) in parts {
            let to = Operand::new(at, to_dtype);
            let (shape, a, b) = if layout.is_linear() {
                ([across, inputs, rows], Operand::transposed(gradient, dtype), Operand::new(source.x, dtype))
            } else {
                ([inputs, across, rows], Operand::transposed(source.x, dtype), Operand::new(gradient, dtype))
            };
            // SAFETY: the caller's promise.
            unsafe { self.gemms.run(stream, shape, [a, b, to], accumulate) }?;
        }
        Ok(())
    }

    /// Any plain product of an MLP around the layer.
    ///
    /// # Safety
    /// As [`Gemms::run`].
    pub(crate) unsafe fn product(
        &mut self,
        stream: &CudaStream,
        shape: [usize; 3],
        operands: [Operand; 3],
        accumulate: bool,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.gemms.run(stream, shape, operands, accumulate) }
    }
}
