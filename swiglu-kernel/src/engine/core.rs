//! The kernels and buffers of a plan.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Variant, Workspace};

use crate::at::{At, WeightsAt};
use crate::error::Result;
use crate::gemms::{Gemms, Operand};
use crate::kernels::{
    ColumnSums, Decode, DecodeSm90, ForwardSm90, GateBackward, GateForward, InputGradientSm90, ThroughSm90,
    WeightGradientSm90,
};
use crate::problem::{Mode, Problem};
use crate::programs;
use crate::route::Path;
use crate::workspace::Regions;

/// The inputs of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) x: At,
    pub(crate) weights: WeightsAt,
    /// Addresses of the gate's and the up half, or zeros.
    pub(crate) bias: [u64; 2],
}

/// Where the pre-activations of a backward come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    /// `[M, 2N]`, overwritten by the gradients.
    InPlace(At),
    /// Gate and up `[M, N]`; the gradients go to the scratch.
    Saved([At; 2]),
    /// Into the scratch, where the gradients overwrite them.
    Recompute,
}

/// Where gradients go; a parameter's with its dtype.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Targets {
    pub(crate) dx: Option<(At, DType)>,
    /// Adds to what dx holds.
    pub(crate) add_to_dx: bool,
    pub(crate) d_weights: Option<(WeightsAt, DType)>,
    /// Addresses of the gate's and the up half.
    pub(crate) d_bias: Option<([u64; 2], DType)>,
    /// Adds to what the parameters' gradients hold.
    pub(crate) accumulate: bool,
}

/// Kernels that only a backward needs.
pub(super) struct BackwardKernels {
    pub(super) gate: GateBackward,
    pub(super) sums: ColumnSums,
    pub(super) sums_f32: ColumnSums,
}

/// The kernels of the path that was chosen.
pub(super) enum Forward {
    Sm90(Box<ForwardSm90>),
    Decode(Decode),
    DecodeSm90(Box<DecodeSm90>),
    Portable(GateForward),
}

pub(crate) struct Engine {
    pub(super) gpu: Gpu,
    pub(super) problem: Problem,
    pub(super) path: Path,
    pub(super) gemms: Gemms,
    pub(super) forward: Forward,
    pub(super) backward: Option<BackwardKernels>,
    pub(super) through: Option<Box<ThroughSm90>>,
    pub(super) input_gradient: Option<Box<InputGradientSm90>>,
    pub(super) weight_gradient: Option<Box<WeightGradientSm90>>,
    pub(super) chunk: u64,
    pub(super) scratch: At,
}

impl Engine {
    /// What [`Engine::new`] and [`Engine::prepare_weight_gradient`] load, those that take the longest to compile first.
    pub(crate) fn variants(info: &DeviceInfo, problem: &Problem, path: Path, mode: Mode) -> Vec<Variant> {
        let dtype = problem.dtype;
        let mut all = match path {
            Path::Sm90 => ForwardSm90::variants(info, problem).to_vec(),
            Path::Portable => GateForward::variants(dtype).to_vec(),
            Path::DecodeSm90 => vec![DecodeSm90::variant(problem)],
            Path::Decode => vec![Decode::variant(problem)],
        };
        if mode != Mode::Inference {
            let weight_gradient = || WeightGradientSm90::variant(info, problem);
            all.extend((path == Path::Sm90).then(weight_gradient).flatten());
            all.extend(GateBackward::variants(dtype));
            all.extend([dtype, DType::F32].map(|result| programs::column_sums(dtype, result)));
        }
        all
    }

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
                Path::DecodeSm90 => Forward::DecodeSm90(Box::new(DecodeSm90::new(gpu, problem)?)),
                Path::Decode => Forward::Decode(Decode::new(gpu, problem)?),
                Path::Portable => Forward::Portable(GateForward::new(gpu, dtype)?),
            },
            through: None,
            input_gradient: None,
            weight_gradient: None,
            backward: (mode != Mode::Inference).then(backward).transpose()?,
            chunk: workspace.ptr(regions.chunk),
            scratch: At { address: workspace.ptr(regions.scratch), row_stride: 2 * problem.outputs },
        })
    }

    /// Prepares [`Engine::differentiate_through`] for a down projection that the fused kernel can take; others go through cuBLASLt.
    pub(crate) fn prepare_through(&mut self, down_outputs: usize, down_linear: bool) -> Result<()> {
        if ThroughSm90::takes(self.gpu.info(), &self.problem, down_outputs) && self.backward.is_some() {
            let kernel = ThroughSm90::new(&self.gpu, &self.problem, down_outputs, down_linear)?;
            self.through = Some(Box::new(kernel));
        }
        Ok(())
    }

    /// Prepares dx and the gate's derivative in one launch, where that is faster than apart. `progress`: the address of its counters.
    pub(crate) fn prepare_input_gradient(&mut self, progress: u64) -> Result<()> {
        if matches!(self.forward, Forward::Sm90(_)) && self.backward.is_some() {
            self.input_gradient = InputGradientSm90::new(&self.gpu, &self.problem, progress)?.map(Box::new);
        }
        Ok(())
    }

    /// Prepares dW in parts, where whole tiles divide badly. `arrived`: the address of its counters.
    pub(crate) fn prepare_weight_gradient(&mut self, arrived: u64) -> Result<()> {
        if matches!(self.forward, Forward::Sm90(_)) && self.backward.is_some() {
            let kernel = WeightGradientSm90::new(&self.gpu, &self.problem, self.gemms.workspace(), arrived)?;
            self.weight_gradient = kernel.map(Box::new);
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> Path {
        self.path
    }

    pub(super) fn bytes(&self) -> usize {
        self.problem.dtype.size_bytes()
    }

    pub(super) fn info(&self) -> &DeviceInfo {
        self.gpu.info()
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
