//! Tensors and results on the host, and the layer by reference-cpu.

use crate::siglip::Number;
use reference_cpu::{HostMatrix, HostMatrixMut};
use swiglu_kernel::cpu::{Gradients, Inputs, Plan, Weights, WeightsMut};
use swiglu_kernel::{Problem, Result};

/// The inputs of one problem, dense.
#[derive(Clone, Debug)]
pub(crate) struct Tensors<T> {
    pub(crate) problem: Problem,
    /// `[M, K]`
    pub(crate) x: Vec<T>,
    /// One tensor or two, as the problem's layout says.
    pub(crate) weights: Vec<Vec<T>>,
    /// `[2N]`, if the problem has one.
    pub(crate) bias: Vec<T>,
    /// `[M, N]`
    pub(crate) dz: Vec<T>,
}

/// The forward and all gradients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step<T> {
    pub(crate) z: Vec<T>,
    pub(crate) dx: Vec<T>,
    pub(crate) d_weights: Vec<Vec<T>>,
    /// Empty without a bias.
    pub(crate) d_bias: Vec<T>,
}

/// All bits of a result (a narrow element widens exactly), to compare two runs.
pub(crate) fn bits<T: Number>(step: &Step<T>) -> impl Iterator<Item = u32> {
    let parts = [&step.z, &step.dx, &step.d_bias];
    let all = parts.into_iter().chain(&step.d_weights).flatten();
    all.map(|value| kernel_core::Element::to_f32(*value).to_bits())
}

/// By reference-cpu. `saved`: the backward reads saved pre-activations instead of computing them again.
pub(crate) fn on_host<T: Number>(tensors: &Tensors<T>, saved: bool) -> Result<Step<T>> {
    let problem = tensors.problem;
    let Problem { rows, inputs: k, outputs: n, layout, .. } = problem;
    let shape = layout.shape(k, n);
    let view = |values| HostMatrix::new("weights", values, shape[0], shape[1]);
    let weights = match &tensors.weights[..] {
        [gate, up] => Weights::Separate { gate: view(gate)?, up: view(up)? },
        joined => Weights::Joined(view(joined.first().map_or(&[], |weights| weights))?),
    };
    let inputs = Inputs {
        x: HostMatrix::new("x", &tensors.x, rows, k)?,
        weights,
        bias: problem.bias.then_some(tensors.bias.as_slice()),
    };
    // Poisoned: a result that is not written is found.
    let nan = T::rounded(f32::NAN);
    let mut step = Step {
        z: vec![nan; rows * n],
        dx: vec![nan; rows * k],
        d_weights: tensors.weights.iter().map(|weights| vec![nan; weights.len()]).collect(),
        d_bias: vec![nan; tensors.bias.len()],
    };
    let mut preactivations = vec![nan; 2 * rows * n];
    let plan = Plan::new(problem)?;
    plan.forward(
        &inputs,
        &mut HostMatrixMut::new("z", &mut step.z, rows, n)?,
        Some(&mut HostMatrixMut::new("saved", &mut preactivations, rows, 2 * n)?),
    )?;
    let d_weights = match &mut step.d_weights[..] {
        [gate, up] => WeightsMut::Separate {
            gate: HostMatrixMut::new("d_gate", gate, shape[0], shape[1])?,
            up: HostMatrixMut::new("d_up", up, shape[0], shape[1])?,
        },
        joined => {
            let joined = joined.first_mut().map_or(&mut [][..], |weights| weights);
            WeightsMut::Joined(HostMatrixMut::new("d_weights", joined, shape[0], shape[1])?)
        }
    };
    let mut gradients = Gradients {
        dx: Some(HostMatrixMut::new("dx", &mut step.dx, rows, k)?),
        d_weights: Some(d_weights),
        d_bias: problem.bias.then_some(step.d_bias.as_mut_slice()),
        accumulate: false,
    };
    let preactivations = HostMatrix::new("saved", &preactivations, rows, 2 * n)?;
    let dz = HostMatrix::new("dz", &tensors.dz, rows, n)?;
    plan.backward(&inputs, dz, saved.then_some(preactivations), &mut gradients)?;
    Ok(step)
}
