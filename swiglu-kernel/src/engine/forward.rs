//! The order of launches of a forward.

use kernel_core::DType;
use kernel_core::cudarc::driver::CudaStream;

use super::core::{Engine, Forward, Source};
use crate::at::{At, WeightsAt};
use crate::error::Result;
use crate::gemms::Operand;
use crate::kernels::{DecodeCall, ForwardCall, GateForwardCall};
use crate::problem::Problem;
use crate::workspace::chunk_rows;

impl Engine {
    /// z, unless it is null, and the pre-activations if `saved` says where.
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
        let weights = source.weights.halves(layout.order(), layout.is_linear(), outputs, bytes);
        let Source { x, bias, .. } = *source;
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
                bias: source.bias,
                z: if z.address == 0 { z } else { z.offset(first, 0, bytes) },
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
}
