//! Device buffers of one problem, and the calls on them.

use super::host::{Step, Tensors};
use crate::siglip::{Number, normal};
use cudarc::driver::CudaSlice;
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use std::collections::VecDeque;
use swiglu_kernel::{
    Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, Mode, Plan, Preactivations, Problem, Result, VectorView,
    VectorViewMut, Weights as WeightViews, WeightsMut,
};

/// One tensor, or gate and up.
type Weights<T> = Vec<CudaSlice<T>>;

/// Inputs and outputs of one problem on the device.
pub(crate) struct DeviceCall<T> {
    gpu: Gpu,
    problem: Problem,
    mode: Mode,
    x: CudaSlice<T>,
    weights: Weights<T>,
    /// Further sets of weights, for streaks.
    other_weights: VecDeque<Weights<T>>,
    bias: Option<CudaSlice<T>>,
    dz: CudaSlice<T>,
    z: CudaSlice<T>,
    /// Only where the backward does not compute them again.
    saved: Option<CudaSlice<T>>,
    dx: CudaSlice<T>,
    d_weights: Weights<T>,
    d_bias: Option<CudaSlice<T>>,
}

/// `len` normal values times `scale`.
pub(crate) fn random<T: Number>(len: usize, scale: f32, seed: u64) -> Vec<T> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..len).map(|_| T::rounded(normal(&mut rng) * scale)).collect()
}

impl<T: Number> DeviceCall<T> {
    /// Uploads the inputs.
    pub(crate) fn new(gpu: &Gpu, tensors: &Tensors<T>, mode: Mode) -> Result<Self> {
        let problem = tensors.problem;
        let upload = |values: &Vec<T>| gpu.upload(values);
        let Problem { rows, inputs, outputs, .. } = problem;
        let alloc = |values: &Vec<T>| gpu.alloc(values.len());
        Ok(Self {
            gpu: gpu.clone(),
            problem,
            mode,
            x: upload(&tensors.x)?,
            weights: tensors.weights.iter().map(upload).collect::<Result<_, _>>()?,
            other_weights: VecDeque::new(),
            bias: problem.bias.then(|| upload(&tensors.bias)).transpose()?,
            dz: upload(&tensors.dz)?,
            z: gpu.alloc(rows * outputs)?,
            saved: (mode == Mode::InPlace).then(|| gpu.alloc(2 * rows * outputs)).transpose()?,
            dx: gpu.alloc(rows * inputs)?,
            d_weights: tensors.weights.iter().map(alloc).collect::<Result<_, _>>()?,
            d_bias: problem.bias.then(|| gpu.alloc(2 * outputs)).transpose()?,
        })
    }

    /// Device memory that the step holds above inputs, weights, z and gradients: the saved pre-activations.
    pub(crate) fn saved_bytes(&self) -> usize {
        self.saved.as_ref().map_or(0, |saved| saved.len() * size_of::<T>())
    }

    /// Device memory of z, and of the gradients in a step.
    pub(crate) fn output_bytes(&self, step: bool) -> usize {
        let gradients = [&self.dx].into_iter().chain(&self.d_weights).chain(&self.d_bias);
        let gradients: usize = if step { gradients.map(|values| values.len()).sum() } else { 0 };
        (self.z.len() + gradients) * size_of::<T>()
    }

    /// Copies the weights until there are `sets` of them.
    pub(crate) fn add_weights(&mut self, sets: usize) -> Result<()> {
        while self.other_weights.len() + 1 < sets {
            let copies = self.weights.iter().map(|weights| {
                let mut copy = self.gpu.alloc::<T>(weights.len())?;
                self.gpu
                    .stream()
                    .memcpy_dtod(weights, &mut copy)
                    .map_err(kernel_core::Error::driver("cuMemcpyDtoD"))?;
                Ok(copy)
            });
            let copies = copies.collect::<Result<_, kernel_core::Error>>()?;
            self.other_weights.push_back(copies);
        }
        Ok(())
    }

    /// Goes on to the next set of weights.
    pub(crate) fn next_weights(&mut self) {
        if let Some(next) = self.other_weights.pop_front() {
            self.other_weights.push_back(std::mem::replace(&mut self.weights, next));
        }
    }

    /// Fills the outputs with NaN, so that one that is not written is found.
    pub(crate) fn poison(&mut self) -> Result<()> {
        let (nan, gpu) = (T::rounded(f32::NAN), &self.gpu);
        let optional = [self.saved.as_mut(), self.d_bias.as_mut()].into_iter().flatten();
        for values in [&mut self.z, &mut self.dx].into_iter().chain(&mut self.d_weights).chain(optional) {
            *values = gpu.upload(&vec![nan; values.len()])?;
        }
        Ok(())
    }

    /// Queues z alone.
    pub(crate) fn forward(&mut self, plan: &mut Plan) -> Result<()> {
        let Problem { rows, outputs, .. } = self.problem;
        let inputs = inputs(&self.problem, &self.x, &self.weights, self.bias.as_ref())?;
        plan.forward(&inputs, &mut MatrixViewMut::new("z", &mut self.z, [rows, outputs])?, None)
    }

    /// Queues z and the pre-activations, if they are kept.
    pub(crate) fn saving_forward(&mut self, plan: &mut Plan) -> Result<()> {
        let Problem { rows, outputs, .. } = self.problem;
        let inputs = inputs(&self.problem, &self.x, &self.weights, self.bias.as_ref())?;
        let mut z = MatrixViewMut::new("z", &mut self.z, [rows, outputs])?;
        let saved = self.saved.as_mut().map(|saved| MatrixViewMut::new("saved", saved, [rows, 2 * outputs]));
        plan.forward(&inputs, &mut z, saved.transpose()?.as_mut())
    }

    /// Queues forward and backward, in place or from x alone.
    pub(crate) fn step(&mut self, plan: &mut Plan, mode: Mode) -> Result<()> {
        match mode {
            Mode::InPlace => self.saving_forward(plan)?,
            _ => self.forward(plan)?,
        }
        let Problem { rows, inputs: k, outputs, layout, .. } = self.problem;
        let shape = layout.shape(k, outputs);
        let inputs = inputs(&self.problem, &self.x, &self.weights, self.bias.as_ref())?;
        let dz = MatrixView::new("dz", &self.dz, [rows, outputs])?;
        let d_weights = match &mut self.d_weights[..] {
            [gate, up] => WeightsMut::Separate {
                gate: MatrixViewMut::new("d_gate", gate, shape)?,
                up: MatrixViewMut::new("d_up", up, shape)?,
            },
            joined => WeightsMut::Joined(MatrixViewMut::new("d_weights", &mut joined[0], shape)?),
        };
        let d_bias = self.d_bias.as_mut().map(|d_bias| VectorViewMut::new("d_bias", d_bias, [2 * outputs]));
        let mut gradients = Gradients {
            dx: Some(MatrixViewMut::new("dx", &mut self.dx, [rows, k])?),
            d_weights: Some(d_weights),
            d_bias: d_bias.transpose()?,
            accumulate: false,
        };
        match self.saved.as_mut().filter(|_| mode == Mode::InPlace) {
            None => plan.backward(&inputs, &dz, Preactivations::Recompute, &mut gradients),
            Some(saved) => {
                let mut saved = MatrixViewMut::new("saved", saved, [rows, 2 * outputs])?;
                plan.backward(&inputs, &dz, Preactivations::InPlace(&mut saved), &mut gradients)
            }
        }
    }

    /// All outputs, once the device is done.
    pub(crate) fn results(&self) -> Result<Step<T>> {
        let download = |values: &CudaSlice<T>| self.gpu.download(values);
        Ok(Step {
            z: download(&self.z)?,
            dx: download(&self.dx)?,
            d_weights: self.d_weights.iter().map(download).collect::<Result<_, _>>()?,
            d_bias: self.d_bias.as_ref().map(download).transpose()?.unwrap_or_default(),
        })
    }

    /// A plan in the call's mode.
    pub(crate) fn plan(&self, route: swiglu_kernel::Route) -> Result<Plan> {
        Plan::new(&self.gpu, self.problem, swiglu_kernel::Options { route, mode: self.mode })
    }
}

fn inputs<'a, T: Number>(
    problem: &Problem,
    x: &'a CudaSlice<T>,
    weights: &'a [CudaSlice<T>],
    bias: Option<&'a CudaSlice<T>>,
) -> Result<Inputs<'a, T>> {
    let Problem { rows, inputs, outputs, layout, .. } = *problem;
    let shape = layout.shape(inputs, outputs);
    let weights = match weights {
        [gate, up] => WeightViews::Separate {
            gate: MatrixView::new("gate weights", gate, shape)?,
            up: MatrixView::new("up weights", up, shape)?,
        },
        joined => WeightViews::Joined(MatrixView::new("weights", &joined[0], shape)?),
    };
    let bias = bias.map(|bias| VectorView::new("bias", bias, [2 * outputs])).transpose()?;
    Ok(Inputs { x: MatrixView::new("x", x, [rows, inputs])?, weights, bias })
}
