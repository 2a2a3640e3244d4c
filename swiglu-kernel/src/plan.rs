//! The plan of a gated layer: checks, memory, calls.

use kernel_core::cudarc::driver::{CudaStream, SyncOnDrop};
use kernel_core::{DType, Element, Gpu, MatrixView, MatrixViewMut, Workspace};

use crate::at::{At, WeightsAt};
use crate::engine::{Engine, From, Slices, Source, Targets};
use crate::error::Result;
use crate::io::{Gradients, Inputs, Preactivations, Ranges, Weights, WeightsMut, check_outputs};
use crate::kernels::InputGradientSm90;
use crate::problem::{Mode, Options, Problem, Route};
use crate::route::{Path, check_device, resolve};
use crate::workspace::Regions;

/// Everything decided ahead for one problem on one device: kernels and workspace.
///
/// A plan is made once and called many times. A call queues its work on the plan's stream and returns; it neither waits for the device nor
/// allocates on it, so it can be captured into a graph (after one call outside of the capture, see [`Gpu`]). The same inputs give the same
/// bits on every call.
///
/// Making a plan compiles its kernels if no earlier process did (seconds, once) and allocates the workspace.
pub struct Plan {
    gpu: Gpu,
    problem: Problem,
    options: Options,
    engine: Engine,
    /// For a backward that would otherwise hold too much.
    slices: Option<Slices>,
    workspace: Workspace,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("problem", &self.problem)
            .field("mode", &self.options.mode)
            .field("route", &self.route())
            .field("workspace_bytes", &self.workspace.bytes())
            .finish()
    }
}

pub(crate) fn design(gpu: &Gpu, problem: &Problem, options: &Options) -> Result<Path> {
    problem.check()?;
    check_device(gpu.info())?;
    resolve(gpu.info().arch(), problem, options.route)
}

/// Device memory in bytes that a plan will allocate, without making it. What the caller passes to calls is not counted.
///
/// # Errors
/// As [`Plan::new`], for what can be told from the problem and the device.
pub fn workspace_bytes(gpu: &Gpu, problem: &Problem, options: &Options) -> Result<usize> {
    let path = design(gpu, problem, options)?;
    Ok(Regions::layout(path, problem, options.mode, false).0.total())
}

/// Address and stride of a view, and the guard to hold until the launch.
macro_rules! at {
    ($view:expr, $stream:expr) => {{
        let row_stride = $view.row_stride();
        let (address, guard) = $view.device_ptr($stream);
        ($crate::at::At { address, row_stride }, guard)
    }};
}
pub(crate) use at;

/// Addresses of inputs, with the guards that order streams.
pub(crate) fn source<'a, T: Element>(
    inputs: &'a Inputs<'_, T>,
    problem: &Problem,
    stream: &'a CudaStream,
) -> (Source, Vec<SyncOnDrop<'a>>) {
    let (x, guard) = at!(inputs.x, stream);
    let mut guards = vec![guard];
    let weights = match &inputs.weights {
        Weights::Joined(weights) => {
            let (at, guard) = at!(weights, stream);
            guards.push(guard);
            WeightsAt::Joined(at)
        }
        Weights::Separate { gate, up } => {
            let ((gate, gate_guard), (up, up_guard)) = (at!(gate, stream), at!(up, stream));
            guards.extend([gate_guard, up_guard]);
            WeightsAt::Separate([gate, up])
        }
    };
    let bias = inputs.bias.as_ref().map_or([0; 2], |bias| {
        let (address, guard) = bias.device_ptr(stream);
        guards.push(guard);
        bias_halves(address, problem, T::DTYPE)
    });
    (Source { x, weights, bias }, guards)
}

/// Addresses of the gate's and the up half of `[2N]`.
fn bias_halves(address: u64, problem: &Problem, dtype: DType) -> [u64; 2] {
    let whole = At { address, row_stride: 0 };
    whole.columns(problem.layout.order(), problem.outputs, dtype.size_bytes()).map(|half| half.address)
}

/// Addresses of gradients, with the guards that order streams.
pub(crate) fn targets<'a, T: Element, G: Element>(
    gradients: &'a mut Gradients<'_, T, G>,
    problem: &Problem,
    stream: &'a CudaStream,
) -> (Targets, Vec<SyncOnDrop<'a>>) {
    let mut guards = Vec::new();
    let mut keep = |(at, guard): (At, SyncOnDrop<'a>)| {
        guards.push(guard);
        at
    };
    let dx = gradients.dx.as_mut().map(|dx| keep(at!(dx, stream)));
    let d_weights = gradients.d_weights.as_mut().map(|d_weights| match d_weights {
        WeightsMut::Joined(weights) => WeightsAt::Joined(keep(at!(weights, stream))),
        WeightsMut::Separate { gate, up } => WeightsAt::Separate([keep(at!(gate, stream)), keep(at!(up, stream))]),
    });
    let d_bias = gradients.d_bias.as_mut().map(|d_bias| keep(at!(d_bias, stream)).address);
    let targets = Targets {
        dx: dx.map(|at| (at, T::DTYPE)),
        add_to_dx: false,
        d_weights: d_weights.map(|at| (at, G::DTYPE)),
        d_bias: d_bias.map(|address| (bias_halves(address, problem, G::DTYPE), G::DTYPE)),
        accumulate: gradients.accumulate,
    };
    (targets, guards)
}

/// Checks where pre-activations come from: shape, context, and what the plan's mode can do. Notes the memory that is read or written.
pub(crate) fn check_preactivations<T: Element>(
    from: &Preactivations<'_, '_, T>,
    gpu: &Gpu,
    problem: &Problem,
    mode: Mode,
    aligned: bool,
    [read, written]: [&mut Ranges; 2],
) -> Result<()> {
    let shape = [problem.rows, 2 * problem.outputs];
    match from {
        _ if mode == Mode::Inference => Err(unsupported_mode("a backward", mode, Mode::InPlace)),
        Preactivations::InPlace(saved) => {
            crate::io::check_matrix!(saved, gpu, shape, aligned, written);
            Ok(())
        }
        _ if mode != Mode::Recompute => {
            Err(unsupported_mode("a backward that keeps or recomputes the pre-activations", mode, Mode::Recompute))
        }
        Preactivations::Saved(saved) => {
            crate::io::check_matrix!(saved, gpu, shape, aligned, read);
            Ok(())
        }
        Preactivations::Recompute => Ok(()),
    }
}

fn unsupported_mode(what: &str, found: Mode, expected: Mode) -> crate::Error {
    kernel_core::Error::Unsupported {
        what: format!("{what} with a plan made in mode {found}; expected a plan in mode {expected}"),
    }
    .into()
}

/// The engine's view of it, and the guard.
pub(crate) fn from<'a, T: Element>(
    preactivations: &'a mut Preactivations<'_, '_, T>,
    problem: &Problem,
    stream: &'a CudaStream,
) -> (From, Option<SyncOnDrop<'a>>) {
    match preactivations {
        Preactivations::InPlace(saved) => {
            let (at, guard) = at!(saved, stream);
            (From::InPlace(at), Some(guard))
        }
        Preactivations::Saved(saved) => {
            let (at, guard) = at!(saved, stream);
            (From::Saved(at.columns(problem.layout.order(), problem.outputs, T::DTYPE.size_bytes())), Some(guard))
        }
        Preactivations::Recompute => (From::Recompute, None),
    }
}

impl Plan {
    /// Decides, compiles and allocates.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with: `ZeroSize` or `Shape` for an impossible problem, `DType`, `Unsupported` or
    /// `UnsupportedDevice` for a route that the problem or the device does not have, `MissingLibrary` without NVRTC or cuBLASLt, `OutOfMemory`,
    /// `Driver`.
    pub fn new(gpu: &Gpu, problem: Problem, options: Options) -> Result<Self> {
        let path = design(gpu, &problem, &options)?;
        let (layout, regions) = Regions::layout(path, &problem, options.mode, false);
        let mut variants = Engine::variants(gpu.info(), &problem, path, options.mode);
        if options.mode != Mode::Inference && path == Path::Sm90 {
            variants.extend(InputGradientSm90::variant(gpu.info(), &problem));
        }
        gpu.compile(&variants)?;
        let workspace = Workspace::new(gpu, &layout)?;
        let mut engine = Engine::new(gpu, &problem, path, options.mode, &regions, &workspace)?;
        engine.prepare_input_gradient(workspace.ptr(regions.progress))?;
        engine.prepare_weight_gradient(workspace.ptr(regions.arrived))?;
        let slices = Slices::new(gpu, &problem, path, options.mode, &regions, &workspace)?;
        Ok(Self { gpu: gpu.clone(), problem, options, engine, slices, workspace })
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The forward's route that was taken.
    pub fn route(&self) -> Route {
        self.engine.path().route()
    }

    /// Device memory in bytes that the plan holds.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    /// z = act(x·W_gate + b_gate) ⊙ (x·W_up + b_up) into `[M, N]`: 4·M·K·N flop (arXiv 2002.05202).
    ///
    /// `saved` `[M, 2N]` receives the pre-activations for [`Plan::backward`], rounded to the dtype, halves in the order of the weights. z is
    /// made from the unrounded ones.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with: `DType`, `Shape`, `Misaligned`, `WrongDevice` or `Overlap` naming the argument, `Driver`,
    /// `Cublas`.
    pub fn forward<T: Element>(
        &mut self,
        inputs: &Inputs<'_, T>,
        z: &mut MatrixViewMut<'_, T>,
        saved: Option<&mut MatrixViewMut<'_, T>>,
    ) -> Result<()> {
        let (problem, aligned) = (self.problem, self.engine.path().needs_alignment());
        let read = inputs.check(&self.gpu, &problem, aligned)?;
        let mut written = Ranges::new();
        crate::io::check_matrix!(z, &self.gpu, [problem.rows, problem.outputs], aligned, written);
        if let Some(saved) = &saved {
            crate::io::check_matrix!(saved, &self.gpu, [problem.rows, 2 * problem.outputs], aligned, written);
        }
        check_outputs(&read, &written)?;
        let gpu = self.gpu.clone();
        let stream: &CudaStream = gpu.stream();
        let (source, _inputs) = source(inputs, &problem, stream);
        let (z, _z) = at!(z, stream);
        let (saved, _saved) = saved.map(|saved| at!(saved, stream)).unzip();
        // SAFETY: the addresses are of checked views whose guards live to the end of this function.
        unsafe { self.engine.forward(stream, &source, z, saved) }
    }

    /// Gradients for `dz` `[M, N]`: 8·M·K·N flop for dx and dW, and 4·M·K·N again when the pre-activations are computed again.
    ///
    /// With g and u the pre-activations of gate and up: dg = dz ⊙ u ⊙ act'(g), du = dz ⊙ act(g), dx = dg·W_gateᵀ + du·W_upᵀ, dW = xᵀ·[dg, du],
    /// db = column sums of [dg, du]. dg and du are rounded to the dtype.
    ///
    /// Where dx's tiles fill a Hopper GPU, one launch makes dg, du and dx; where those of dW, in one tensor of the dtype, divide badly among its SMs, some are
    /// summed in parts, in f32 and a fixed order. Elsewhere dg and du are a pass over memory, and with weights in two tensors
    /// dx is the sum of two products, the first of which is rounded to the dtype before the second is added. A gradient
    /// that accumulates in 16 bits is rounded at every call; one in f32 is not. Computing the pre-activations again takes the forward's route and
    /// gives the bits that it would have saved. In [`Mode::Recompute`] large problems are taken in slices of the N features, over which dx is summed in
    /// f32 and rounded once; on the portable route, cuBLASLt may then choose another order of the sums.
    ///
    /// # Errors
    /// As [`Plan::forward`], and `Unsupported` for pre-activations that the plan's [`Mode`] cannot take.
    pub fn backward<T: Element, G: Element>(
        &mut self,
        inputs: &Inputs<'_, T>,
        dz: &MatrixView<'_, T>,
        mut preactivations: Preactivations<'_, '_, T>,
        gradients: &mut Gradients<'_, T, G>,
    ) -> Result<()> {
        let problem = self.problem;
        // Computing the pre-activations again is a forward, with a forward's demands.
        let again = matches!(preactivations, Preactivations::Recompute);
        let aligned = again && self.engine.path().needs_alignment();
        let mut read = inputs.check(&self.gpu, &problem, aligned)?;
        crate::io::check_matrix!(dz, &self.gpu, [problem.rows, problem.outputs], false, read);
        let mut written = gradients.check(&self.gpu, &problem)?;
        let memory = [&mut read, &mut written];
        check_preactivations(&preactivations, &self.gpu, &problem, self.options.mode, false, memory)?;
        check_outputs(&read, &written)?;
        let gpu = self.gpu.clone();
        let stream: &CudaStream = gpu.stream();
        let (source, _inputs) = source(inputs, &problem, stream);
        let (dz, _dz) = at!(dz, stream);
        let (from, _from) = from(&mut preactivations, &problem, stream);
        let (targets, _targets) = targets(gradients, &problem, stream);
        // SAFETY: the addresses are of checked views whose guards live to the end of this function, and of the workspace.
        unsafe {
            match (&mut self.slices, from) {
                (Some(slices), From::Saved(saved)) => slices.backward(stream, &source, dz, Some(saved), &targets),
                (Some(slices), From::Recompute) => slices.backward(stream, &source, dz, None, &targets),
                (_, from) => self.engine.backward(stream, &source, dz, from, &targets),
            }
        }
    }
}
