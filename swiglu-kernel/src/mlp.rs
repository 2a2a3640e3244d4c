//! The gated MLP: the gated layer and the down projection, y = z·W_down.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{Element, Gpu, MatrixView, MatrixViewMut, Workspace};

use crate::at::At;
use crate::engine::Engine;
use crate::error::Result;
use crate::gemms::Operand;
use crate::io::{Gradients, Inputs, Preactivations, Ranges, check_gradient_dtype, check_matrix, check_outputs};
use crate::kernels::ThroughSm90;
use crate::plan::{at, check_preactivations, design, from, source, targets};
use crate::problem::{Mode, Options, Problem, Route, shape};
use crate::workspace::Regions;

/// y = (act(x·W_gate + b_gate) ⊙ (x·W_up + b_up))·W_down, with y `[M, K_out]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MlpProblem {
    /// The gated layer.
    pub layer: Problem,
    /// Features K_out of y.
    pub down_outputs: usize,
    /// Whether the down projection is stored `[K_out, N]`, as `nn.Linear` keeps its weight, rather than `[N, K_out]`.
    pub down_linear: bool,
}

impl MlpProblem {
    /// A down projection `[N, K_out]` behind `layer`.
    pub fn new(layer: Problem, down_outputs: usize) -> Self {
        Self { layer, down_outputs, down_linear: false }
    }

    /// The shape of the stored down projection.
    pub fn down_shape(&self) -> [usize; 2] {
        let (n, k_out) = (self.layer.outputs, self.down_outputs);
        if self.down_linear { [k_out, n] } else { [n, k_out] }
    }

    /// Floating-point operations of the forward: 4·M·K·N + 2·M·N·K_out.
    pub fn forward_flop(&self) -> f64 {
        self.layer.forward_flop() + 2.0 * self.layer.rows as f64 * self.layer.outputs as f64 * self.down_outputs as f64
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self.down_outputs {
            0 => Err(kernel_core::Error::ZeroSize { what: "down_outputs" }.into()),
            size if size > i32::MAX as usize => Err(shape("down_outputs", size, format!("at most {}", i32::MAX))),
            _ => Ok(()),
        }
    }
}

/// Where the gradients of [`MlpPlan::backward`] go.
#[derive(Debug)]
pub struct MlpGradients<'a, T, G = T> {
    /// Of x and of the gated layer; its `accumulate` holds for `d_down` too.
    pub layer: Gradients<'a, T, G>,
    /// As the down projection is stored.
    pub d_down: Option<MatrixViewMut<'a, G>>,
}

impl<T, G> Default for MlpGradients<'_, T, G> {
    fn default() -> Self {
        Self { layer: Gradients::default(), d_down: None }
    }
}

/// A [`Plan`](crate::Plan) for the whole gated MLP. It holds one `[M, N]` buffer for z, which no call keeps for another: the backward makes z
/// again from the pre-activations, on the way.
pub struct MlpPlan {
    gpu: Gpu,
    problem: MlpProblem,
    options: Options,
    engine: Engine,
    workspace: Workspace,
    z: At,
}

impl std::fmt::Debug for MlpPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MlpPlan")
            .field("problem", &self.problem)
            .field("mode", &self.options.mode)
            .field("route", &self.route())
            .field("workspace_bytes", &self.workspace.bytes())
            .finish()
    }
}

/// Device memory in bytes that an [`MlpPlan`] will allocate, without making it.
///
/// # Errors
/// As [`MlpPlan::new`], for what can be told from the problem and the device.
pub fn mlp_workspace_bytes(gpu: &Gpu, problem: &MlpProblem, options: &Options) -> Result<usize> {
    problem.check()?;
    let path = design(gpu, &problem.layer, options)?;
    Ok(Regions::layout(path, &problem.layer, options.mode, true).0.total())
}

impl MlpPlan {
    /// Decides, compiles and allocates.
    ///
    /// # Errors
    /// As [`Plan::new`](crate::Plan::new).
    pub fn new(gpu: &Gpu, problem: MlpProblem, options: Options) -> Result<Self> {
        problem.check()?;
        let path = design(gpu, &problem.layer, &options)?;
        let (layout, regions) = Regions::layout(path, &problem.layer, options.mode, true);
        let mut variants = Engine::variants(gpu.info(), &problem.layer, path, options.mode);
        if options.mode != Mode::Inference && ThroughSm90::takes(gpu.info(), &problem.layer, problem.down_outputs) {
            variants.insert(0, ThroughSm90::variant(&problem.layer, problem.down_linear));
        }
        gpu.compile(&variants)?;
        let workspace = Workspace::new(gpu, &layout)?;
        let mut engine = Engine::new(gpu, &problem.layer, path, options.mode, &regions, &workspace)?;
        engine.prepare_through(problem.down_outputs, problem.down_linear)?;
        engine.prepare_weight_gradient(workspace.ptr(regions.arrived))?;
        let z = At { address: workspace.ptr(regions.z), row_stride: problem.layer.outputs };
        Ok(Self { gpu: gpu.clone(), problem, options, engine, workspace, z })
    }

    /// What is computed.
    pub fn problem(&self) -> &MlpProblem {
        &self.problem
    }

    /// The gated layer's route that was taken.
    pub fn route(&self) -> Route {
        self.engine.path().route()
    }

    /// Device memory in bytes that the plan holds.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    /// y into `[M, K_out]`: 4·M·K·N + 2·M·N·K_out flop. `saved` as in [`Plan::forward`](crate::Plan::forward). z is rounded to the dtype
    /// on the way.
    ///
    /// # Errors
    /// As [`Plan::forward`](crate::Plan::forward).
    pub fn forward<T: Element>(
        &mut self,
        inputs: &Inputs<'_, T>,
        down: &MatrixView<'_, T>,
        y: &mut MatrixViewMut<'_, T>,
        saved: Option<&mut MatrixViewMut<'_, T>>,
    ) -> Result<()> {
        let Problem { rows, outputs, dtype, .. } = self.problem.layer;
        let (gpu, k_out) = (self.gpu.clone(), self.problem.down_outputs);
        let aligned = self.engine.path().needs_alignment();
        let mut read = inputs.check(&gpu, &self.problem.layer, aligned)?;
        let mut written = Ranges::new();
        check_matrix!(down, &gpu, self.problem.down_shape(), false, read);
        check_matrix!(y, &gpu, [rows, k_out], false, written);
        if let Some(saved) = &saved {
            check_matrix!(saved, &gpu, [rows, 2 * outputs], aligned, written);
        }
        check_outputs(&read, &written)?;
        let stream: &CudaStream = gpu.stream();
        let (source, _inputs) = source(inputs, &self.problem.layer, stream);
        let (down, _down) = at!(down, stream);
        let (y, _y) = at!(y, stream);
        let (saved, _saved) = saved.map(|saved| at!(saved, stream)).unzip();
        let down = Operand { at: down, dtype, transposed: self.problem.down_linear };
        let operands = [Operand::new(self.z, dtype), down, Operand::new(y, dtype)];
        // SAFETY: the addresses are of checked views whose guards live to the end of this function, and of the workspace.
        unsafe {
            self.engine.forward(stream, &source, self.z, saved)?;
            self.engine.product(stream, [rows, k_out, outputs], operands, false)
        }
    }

    /// Gradients for `dy` `[M, K_out]`. The gate's derivative is taken where dz = dy·W_downᵀ is made, and z for d_down = zᵀ·dy along with it;
    /// both are rounded to the dtype.
    ///
    /// # Errors
    /// As [`Plan::backward`](crate::Plan::backward).
    pub fn backward<T: Element, G: Element>(
        &mut self,
        inputs: &Inputs<'_, T>,
        down: &MatrixView<'_, T>,
        dy: &MatrixView<'_, T>,
        mut preactivations: Preactivations<'_, '_, T>,
        gradients: &mut MlpGradients<'_, T, G>,
    ) -> Result<()> {
        let Problem { rows, outputs, dtype, .. } = self.problem.layer;
        let (gpu, k_out, linear) = (self.gpu.clone(), self.problem.down_outputs, self.problem.down_linear);
        // Computing the pre-activations again is a forward, with a forward's demands.
        let again = matches!(preactivations, Preactivations::Recompute);
        let aligned = again && self.engine.path().needs_alignment();
        let mut read = inputs.check(&gpu, &self.problem.layer, aligned)?;
        check_matrix!(down, &gpu, self.problem.down_shape(), false, read);
        check_matrix!(dy, &gpu, [rows, k_out], false, read);
        let mut written = gradients.layer.check(&gpu, &self.problem.layer)?;
        if let Some(d_down) = &gradients.d_down {
            check_gradient_dtype::<G>("gradient of the down projection", dtype)?;
            check_matrix!(d_down, &gpu, self.problem.down_shape(), false, written);
        }
        let memory = [&mut read, &mut written];
        check_preactivations(&preactivations, &gpu, &self.problem.layer, self.options.mode, false, memory)?;
        check_outputs(&read, &written)?;

        let stream: &CudaStream = gpu.stream();
        let (source, _inputs) = source(inputs, &self.problem.layer, stream);
        let (down, _down) = at!(down, stream);
        let (dy, _dy) = at!(dy, stream);
        let (from, _from) = from(&mut preactivations, &self.problem.layer, stream);
        let accumulate = gradients.layer.accumulate;
        let (d_down, _d_down) = gradients.d_down.as_mut().map(|d_down| at!(d_down, stream)).unzip();
        let (targets, _targets) = targets(&mut gradients.layer, &self.problem.layer, stream);
        let down = Operand { at: down, dtype, transposed: !linear };
        let dy = Operand::new(dy, dtype);
        // SAFETY: the addresses are of checked views whose guards live to the end of this function, and of the workspace.
        unsafe {
            let d_preactivations =
                self.engine.differentiate_through(stream, &source, [dy, down], k_out, from, self.z)?;
            if let Some(d_down) = d_down {
                let to = Operand::new(d_down, G::DTYPE);
                let (z, z_transposed) = (Operand::new(self.z, dtype), Operand::transposed(self.z, dtype));
                let dy_transposed = Operand::transposed(dy.at, dtype);
                let (shape, operands) = if linear {
                    ([k_out, outputs, rows], [dy_transposed, z, to])
                } else {
                    ([outputs, k_out, rows], [z_transposed, dy, to])
                };
                self.engine.product(stream, shape, operands, accumulate)?;
            }
            self.engine.products(stream, &source, d_preactivations, &targets)
        }
    }
}
