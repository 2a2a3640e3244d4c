//! The order of launches of a backward.

use kernel_core::DType;
use kernel_core::cudarc::driver::CudaStream;

use super::core::{Engine, From, Source, Targets};
use crate::at::{At, WeightsAt};
use crate::error::Result;
use crate::gemms::Operand;
use crate::kernels::{ColumnSumsCall, GateBackwardCall, InputGradientCall, ThroughCall, WeightGradientCall};
use crate::problem::Problem;

impl Engine {
    /// `[gate, up]` of a matrix `[M, 2N]`.
    fn halves(&self, at: At) -> [At; 2] {
        at.columns(self.problem.layout.order(), self.problem.outputs, self.bytes())
    }

    /// Where gate and up are, and where `[M, 2N]` of their gradients goes.
    fn places(&self, from: From) -> ([At; 2], At) {
        match from {
            From::InPlace(at) => (self.halves(at), at),
            From::Saved(halves) => (halves, self.scratch),
            From::Recompute => (self.halves(self.scratch), self.scratch),
        }
    }

    /// Queues the pre-activations, if they are not there yet: by the forward, so that they are the ones it would have saved.
    ///
    /// # Safety
    /// As [`Engine::forward`].
    unsafe fn provide(&mut self, stream: &CudaStream, source: &Source, from: From) -> Result<()> {
        match from {
            // SAFETY: the scratch holds `[M, 2N]` in this mode, which the plan has checked.
            From::Recompute => unsafe { self.forward(stream, source, At::default(), Some(self.scratch)) },
            From::InPlace(_) | From::Saved(_) => Ok(()),
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
            if let Some(gradients) = self.differentiate_with_dx(stream, source, dz, from, targets)? {
                return self.products(stream, source, gradients, &Targets { dx: None, ..*targets });
            }
            let gradients = self.differentiate(stream, source, dz, from, At::default())?;
            self.products(stream, source, gradients, targets)
        }
    }

    /// The gradients of the pre-activations `[M, 2N]` and dx in one launch; gives where they are. None, and nothing queued, where that cannot be.
    ///
    /// # Safety
    /// As [`Engine::forward`].
    unsafe fn differentiate_with_dx(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        dz: At,
        from: From,
        targets: &Targets,
    ) -> Result<Option<At>> {
        let Problem { outputs, dtype, layout, .. } = self.problem;
        let (Some(_), Some((dx, dx_dtype))) = (&self.input_gradient, targets.dx) else { return Ok(None) };
        let (preactivations, gradients) = self.places(from);
        let weights = source.weights.halves(layout.order(), layout.is_linear(), outputs, self.bytes());
        let call = InputGradientCall { weights, preactivations, dz, gradients: self.halves(gradients), dx };
        if dx_dtype != dtype || targets.add_to_dx || !call.is_aligned(self.bytes()) {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        unsafe { self.provide(stream, source, from) }?;
        if let Some(kernel) = &mut self.input_gradient {
            // SAFETY: as above.
            unsafe { kernel.launch(&self.gpu, stream, &call) }?;
        }
        Ok(Some(gradients))
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
        let Problem { rows, outputs, gate, .. } = self.problem;
        // SAFETY: the caller's promise.
        unsafe { self.provide(stream, source, from) }?;
        let (preactivations, gradients) = self.places(from);
        let call =
            GateBackwardCall { rows, cols: outputs, gate, preactivations, dz, gradients: self.halves(gradients), z };
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
        let Problem { rows, outputs, dtype, .. } = self.problem;
        let to = Operand::new(z, dtype);
        let (preactivations, gradients) = self.places(from);
        let call = ThroughCall { dy: dy.at, down: down.at, preactivations, gradients: self.halves(gradients), z };
        // Odd addresses take the other way.
        if self.through.is_some() && call.is_aligned(dtype.size_bytes()) {
            // SAFETY: the caller's promise.
            unsafe { self.provide(stream, source, from) }?;
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
            if let Some((dx, dtype)) = targets.dx {
                self.input_gradient(stream, source, gradients, Operand::new(dx, dtype), targets.add_to_dx)?;
            }
            if let Some((d_weights, dtype)) = targets.d_weights {
                self.weight_gradient(stream, source, gradients, d_weights, dtype, targets.accumulate)?;
            }
            if let Some((to, dtype)) = targets.d_bias
                && let Some(kernels) = &self.backward
            {
                let kernel = if dtype == self.problem.dtype { &kernels.sums } else { &kernels.sums_f32 };
                let Problem { rows, outputs, .. } = self.problem;
                for (from, to) in self.halves(gradients).into_iter().zip(to) {
                    let call = ColumnSumsCall { from, rows, cols: outputs, to, accumulate: targets.accumulate };
                    kernel.launch(stream, &call)?;
                }
            }
        }
        Ok(())
    }

    /// dx (+)= d_gate·W_gateᵀ + d_up·W_upᵀ. With two tensors the second product is added to the first as rounded to dx's dtype.
    unsafe fn input_gradient(
        &mut self,
        stream: &CudaStream,
        source: &Source,
        gradients: At,
        dx: Operand,
        accumulate: bool,
    ) -> Result<()> {
        let Problem { rows, inputs, outputs, dtype, layout, .. } = self.problem;
        let weights = |at| Operand { at, dtype, transposed: !layout.is_linear() };
        match source.weights {
            WeightsAt::Joined(at) => {
                let operands = [Operand::new(gradients, dtype), weights(at), dx];
                // SAFETY: the caller's promise.
                unsafe { self.gemms.run(stream, [rows, inputs, 2 * outputs], operands, accumulate) }
            }
            WeightsAt::Separate(halves) => {
                for (i, (at, gradient)) in halves.into_iter().zip(self.halves(gradients)).enumerate() {
                    let operands = [Operand::new(gradient, dtype), weights(at), dx];
                    // SAFETY: as above.
                    unsafe { self.gemms.run(stream, [rows, inputs, outputs], operands, accumulate || i > 0) }?;
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
        if let (WeightsAt::Joined(to), Some(kernel)) = (to, &mut self.weight_gradient)
            && to_dtype == dtype
            && !accumulate
        {
            let (left, right) = if layout.is_linear() { (gradients, source.x) } else { (source.x, gradients) };
            let call = WeightGradientCall { left, right, to };
            if call.is_aligned(dtype.size_bytes()) {
                // SAFETY: the caller's promise; calls on one stream share the products' workspace in turn.
                return unsafe { kernel.launch(&self.gpu, stream, &call) };
            }
        }
        let parts: Vec<(At, At, usize)> = match to {
            WeightsAt::Joined(at) => vec![(gradients, at, 2 * outputs)],
            WeightsAt::Separate(halves) => {
                self.halves(gradients).into_iter().zip(halves).map(|(gradient, at)| (gradient, at, outputs)).collect()
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
}
