//! The same calls on host memory, through `reference-cpu`: f32 arithmetic, all cores, the same bits on every run.

use reference_cpu::swiglu as reference;
pub use reference_cpu::{Element, HostMatrix, HostMatrixMut};

use crate::error::Result;
use crate::mlp::MlpProblem;
use crate::problem::{Layout, Problem, shape};

/// The gate and up projections, in the problem's [`Layout`].
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a, T> {
    /// One tensor: `[K, 2N]` or `[2N, K]`.
    Joined(HostMatrix<'a, T>),
    /// Two tensors: `[K, N]` or `[N, K]` each.
    Separate {
        /// The gate's.
        gate: HostMatrix<'a, T>,
        /// The other one.
        up: HostMatrix<'a, T>,
    },
}

/// Where gradients of the weights go, in the problem's [`Layout`].
#[derive(Debug)]
pub enum WeightsMut<'a, G> {
    /// One tensor: `[K, 2N]` or `[2N, K]`.
    Joined(HostMatrixMut<'a, G>),
    /// Two tensors: `[K, N]` or `[N, K]` each.
    Separate {
        /// The gate's.
        gate: HostMatrixMut<'a, G>,
        /// The other one.
        up: HostMatrixMut<'a, G>,
    },
}

/// The inputs of a call.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, T> {
    /// `[M, K]`.
    pub x: HostMatrix<'a, T>,
    /// Both projections.
    pub weights: Weights<'a, T>,
    /// `[2N]`, its halves in the order of the weights; present if the problem has a bias.
    pub bias: Option<&'a [T]>,
}

/// Where the gradients go; each is made only when asked for.
#[derive(Debug)]
pub struct Gradients<'a, T, G = T> {
    /// `[M, K]`, overwritten.
    pub dx: Option<HostMatrixMut<'a, T>>,
    /// Gradients of the weights.
    pub d_weights: Option<WeightsMut<'a, G>>,
    /// `[2N]`, its halves in the order of the weights.
    pub d_bias: Option<&'a mut [G]>,
    /// Adds to what the parameters' gradients hold instead of overwriting it.
    pub accumulate: bool,
}

impl<T, G> Default for Gradients<'_, T, G> {
    fn default() -> Self {
        Self { dx: None, d_weights: None, d_bias: None, accumulate: false }
    }
}

/// Where the gradients of [`MlpPlan::backward`] go.
#[derive(Debug)]
pub struct MlpGradients<'a, T, G = T> {
    /// Of x and of the gated layer; its `accumulate` holds for `d_down` too.
    pub layer: Gradients<'a, T, G>,
    /// As the down projection is stored.
    pub d_down: Option<HostMatrixMut<'a, G>>,
}

impl<T, G> Default for MlpGradients<'_, T, G> {
    fn default() -> Self {
        Self { layer: Gradients::default(), d_down: None }
    }
}

fn check<T: Element>(
    problem: &Problem,
    x: HostMatrix<'_, T>,
    weights: &reference::Weights<'_, T>,
    bias: bool,
) -> Result<()> {
    let Problem { rows, inputs, outputs, dtype, .. } = *problem;
    if T::NAME != dtype.to_string() {
        return Err(shape("x and weights", T::NAME, format!("the problem's dtype {dtype}")));
    }
    if (x.rows(), x.cols()) != (rows, inputs) {
        return Err(shape("x", format!("[{}, {}]", x.rows(), x.cols()), format!("[{rows}, {inputs}]")));
    }
    if (weights.inputs(), weights.outputs()) != (inputs, outputs) {
        let found = format!("K = {}, N = {}", weights.inputs(), weights.outputs());
        return Err(shape("weights", found, format!("K = {inputs}, N = {outputs}")));
    }
    if bias != problem.bias {
        let found = if bias { "a bias" } else { "no bias" };
        return Err(shape("bias", found, format!("a problem with bias = {bias}")));
    }
    Ok(())
}

impl<'a, T: Element> Inputs<'a, T> {
    fn layer(&self, problem: &Problem) -> Result<reference::Layer<'a, T>> {
        let weights = match (self.weights, problem.layout) {
            (Weights::Joined(weights), Layout::Packed(order)) => reference::Weights::packed(weights, order)?,
            (Weights::Joined(weights), Layout::Linear(order)) => reference::Weights::linear(weights, order)?,
            (Weights::Separate { gate, up }, Layout::Separate) => {
                reference::Weights::separate(reference::Operand::new(gate), reference::Operand::new(up))?
            }
            (Weights::Separate { gate, up }, Layout::SeparateLinear) => {
                reference::Weights::separate(reference::Operand::transposed(gate), reference::Operand::transposed(up))?
            }
            (found, layout) => {
                let found = if matches!(found, Weights::Joined(_)) { "one tensor" } else { "two tensors" };
                return Err(shape("weights", found, format!("the layout {layout}")));
            }
        };
        check(problem, self.x, &weights, self.bias.is_some())?;
        Ok(reference::Layer { weights, bias: self.bias, gate: problem.gate })
    }
}

fn gradients<'a, T: Element, G: Element>(
    problem: &Problem,
    gradients: &'a mut Gradients<'_, T, G>,
) -> Result<reference::Gradients<'a, T, G>> {
    let d_weights = match (gradients.d_weights.as_mut(), problem.layout) {
        (None, _) => None,
        (Some(WeightsMut::Joined(weights)), Layout::Packed(order)) => {
            Some(reference::WeightsMut::packed(weights.reborrow(), order))
        }
        (Some(WeightsMut::Joined(weights)), Layout::Linear(order)) => {
            Some(reference::WeightsMut::linear(weights.reborrow(), order))
        }
        (Some(WeightsMut::Separate { gate, up }), Layout::Separate) => {
            Some(reference::WeightsMut::separate(gate.reborrow(), up.reborrow()))
        }
        (Some(WeightsMut::Separate { gate, up }), Layout::SeparateLinear) => {
            Some(reference::WeightsMut::separate_linear(gate.reborrow(), up.reborrow()))
        }
        (Some(found), layout) => {
            let found = if matches!(found, WeightsMut::Joined(_)) { "one tensor" } else { "two tensors" };
            return Err(shape("gradients of the weights", found, format!("the layout {layout}")));
        }
    };
    Ok(reference::Gradients {
        dx: gradients.dx.as_mut().map(HostMatrixMut::reborrow),
        d_weights,
        d_bias: gradients.d_bias.as_deref_mut(),
        accumulate: gradients.accumulate,
    })
}

/// A [`Plan`](crate::Plan) without a device.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    problem: Problem,
}

impl Plan {
    /// Checks the problem.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with `ZeroSize` or `Shape`.
    pub fn new(problem: Problem) -> Result<Self> {
        problem.check()?;
        Ok(Self { problem })
    }

    /// As [`Plan::forward`](crate::Plan::forward).
    ///
    /// # Errors
    /// `Shape` naming the argument.
    pub fn forward<T: Element>(
        &self,
        inputs: &Inputs<'_, T>,
        z: &mut HostMatrixMut<'_, T>,
        saved: Option<&mut HostMatrixMut<'_, T>>,
    ) -> Result<()> {
        Ok(reference::forward(inputs.x, &inputs.layer(&self.problem)?, z, saved)?)
    }

    /// As [`Plan::backward`](crate::Plan::backward); without `saved` the pre-activations are computed again.
    ///
    /// # Errors
    /// `Shape` naming the argument.
    pub fn backward<T: Element, G: Element>(
        &self,
        inputs: &Inputs<'_, T>,
        dz: HostMatrix<'_, T>,
        saved: Option<HostMatrix<'_, T>>,
        targets: &mut Gradients<'_, T, G>,
    ) -> Result<()> {
        let layer = inputs.layer(&self.problem)?;
        Ok(reference::backward(inputs.x, &layer, dz, saved, &mut gradients(&self.problem, targets)?)?)
    }
}

/// An [`MlpPlan`](crate::MlpPlan) without a device.
#[derive(Clone, Copy, Debug)]
pub struct MlpPlan {
    problem: MlpProblem,
}

impl MlpPlan {
    /// Checks the problem.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn new(problem: MlpProblem) -> Result<Self> {
        problem.check()?;
        problem.layer.check()?;
        Ok(Self { problem })
    }

    fn mlp<'a, T: Element>(&self, inputs: &Inputs<'a, T>, down: HostMatrix<'a, T>) -> Result<reference::Mlp<'a, T>> {
        let [rows, cols] = self.problem.down_shape();
        if (down.rows(), down.cols()) != (rows, cols) {
            return Err(shape("down", format!("[{}, {}]", down.rows(), down.cols()), format!("[{rows}, {cols}]")));
        }
        let stored = if self.problem.down_linear { reference::Operand::transposed } else { reference::Operand::new };
        Ok(reference::Mlp { layer: inputs.layer(&self.problem.layer)?, down: stored(down) })
    }

    /// As [`MlpPlan::forward`](crate::MlpPlan::forward), without rounding z.
    ///
    /// # Errors
    /// `Shape` naming the argument.
    pub fn forward<T: Element>(
        &self,
        inputs: &Inputs<'_, T>,
        down: HostMatrix<'_, T>,
        y: &mut HostMatrixMut<'_, T>,
        saved: Option<&mut HostMatrixMut<'_, T>>,
    ) -> Result<()> {
        Ok(reference::mlp_forward(inputs.x, &self.mlp(inputs, down)?, y, saved)?)
    }

    /// As [`MlpPlan::backward`](crate::MlpPlan::backward), without rounding z and its gradient.
    ///
    /// # Errors
    /// `Shape` naming the argument.
    pub fn backward<T: Element, G: Element>(
        &self,
        inputs: &Inputs<'_, T>,
        down: HostMatrix<'_, T>,
        dy: HostMatrix<'_, T>,
        saved: Option<HostMatrix<'_, T>>,
        targets: &mut MlpGradients<'_, T, G>,
    ) -> Result<()> {
        let mlp = self.mlp(inputs, down)?;
        let stored =
            if self.problem.down_linear { reference::OperandMut::transposed } else { reference::OperandMut::new };
        let d_down = targets.d_down.as_mut().map(|d_down| stored(d_down.reborrow()));
        let layer = gradients(&self.problem.layer, &mut targets.layer)?;
        let mut all = reference::MlpGradients { layer, d_down };
        Ok(reference::mlp_backward(inputs.x, &mlp, dy, saved, &mut all)?)
    }
}
