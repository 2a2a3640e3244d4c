//! The gated MLP 64 → 96 → 10 on the GPU or on the CPU: the same shape of code twice.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use swiglu_kernel::kernel_core::cudarc::driver::CudaSlice;
use swiglu_kernel::{
    DType, Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, MlpGradients, MlpPlan, MlpProblem, Mode, Options,
    Preactivations, Problem, VectorView, VectorViewMut, Weights, WeightsMut, cpu,
};

use crate::data::{CLASSES, PIXELS};
use crate::random::Random;

const HIDDEN: usize = 96;

/// Where the MLP is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| format!("{text:?}: expected auto, cpu or cuda:0")),
        }
    }
}

/// Parameters, or their gradients.
pub(crate) struct Parameters {
    /// `[PIXELS, 2 HIDDEN]`, gate first.
    weights: Vec<f32>,
    /// `[2 HIDDEN]`
    bias: Vec<f32>,
    /// `[HIDDEN, CLASSES]`
    down: Vec<f32>,
}

impl Parameters {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut matrix = |inputs: usize, outputs: usize| -> Vec<f32> {
            // Uniform with variance 1 / inputs.
            let scale = (3.0 / inputs as f32).sqrt();
            (0..inputs * outputs).map(|_| random.uniform() * scale).collect()
        };
        Self { weights: matrix(PIXELS, 2 * HIDDEN), bias: vec![0.0; 2 * HIDDEN], down: matrix(HIDDEN, CLASSES) }
    }

    fn zeros() -> Self {
        let (weights, down) = (vec![0.0; PIXELS * 2 * HIDDEN], vec![0.0; HIDDEN * CLASSES]);
        Self { weights, bias: vec![0.0; 2 * HIDDEN], down }
    }

    pub(crate) fn tensors(&self) -> [&[f32]; 3] {
        [&self.weights, &self.bias, &self.down]
    }

    pub(crate) fn tensors_mut(&mut self) -> [&mut [f32]; 3] {
        [&mut self.weights, &mut self.bias, &mut self.down]
    }
}

fn problem(rows: usize) -> MlpProblem {
    MlpProblem::new(Problem::new(rows, PIXELS, HIDDEN, DType::F32).with_bias(true), CLASSES)
}

/// The MLP for batches of one size, and for the test images.
pub(crate) enum Network {
    Gpu(Box<OnGpu>),
    Cpu(OnCpu),
}

impl Network {
    /// `Auto` takes a GPU when there is a usable one, and says what is in the way otherwise.
    pub(crate) fn new(device: Device, batch: usize, tests: usize) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Cpu(OnCpu::new(batch, tests)?)),
            Device::Cuda(ordinal) => Ok(Self::Gpu(Box::new(OnGpu::new(ordinal, batch, tests)?))),
            Device::Auto => match OnGpu::new(0, batch, tests) {
                Ok(gpu) => Ok(Self::Gpu(Box::new(gpu))),
                Err(error) => {
                    println!("not on a GPU: {error}");
                    Ok(Self::Cpu(OnCpu::new(batch, tests)?))
                }
            },
        }
    }

    pub(crate) fn is_on_gpu(&self) -> bool {
        matches!(self, Self::Gpu(_))
    }

    /// Logits `[batch, CLASSES]` of `x`; keeps what the backward needs.
    pub(crate) fn forward(&mut self, parameters: &Parameters, x: &[f32]) -> Result<Vec<f32>> {
        match self {
            Self::Gpu(gpu) => Ok(gpu.forward(parameters, x)?),
            Self::Cpu(cpu) => Ok(cpu.forward(parameters, x)?),
        }
    }

    /// Gradients of the parameters for the gradient of the logits.
    pub(crate) fn backward(&mut self, parameters: &Parameters, x: &[f32], d_logits: &[f32]) -> Result<Parameters> {
        match self {
            Self::Gpu(gpu) => Ok(gpu.backward(d_logits)?),
            Self::Cpu(cpu) => Ok(cpu.backward(parameters, x, d_logits)?),
        }
    }

    /// Logits of the test images.
    pub(crate) fn infer(&mut self, parameters: &Parameters, x: &[f32]) -> Result<Vec<f32>> {
        match self {
            Self::Gpu(gpu) => Ok(gpu.infer(parameters, x)?),
            Self::Cpu(cpu) => Ok(cpu.infer(parameters, x)?),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpu(gpu) => f.write_str(&gpu.gpu.info().name),
            Self::Cpu(_) => f.write_str("CPU"),
        }
    }
}

/// Parameters and the batch as they lie on the device.
struct Uploaded {
    x: CudaSlice<f32>,
    weights: CudaSlice<f32>,
    bias: CudaSlice<f32>,
    down: CudaSlice<f32>,
}

impl Uploaded {
    fn new(gpu: &Gpu, parameters: &Parameters, x: &[f32]) -> swiglu_kernel::Result<Self> {
        let [weights, bias, down] = parameters.tensors();
        Ok(Self { x: gpu.upload(x)?, weights: gpu.upload(weights)?, bias: gpu.upload(bias)?, down: gpu.upload(down)? })
    }

    fn inputs(&self, rows: usize) -> swiglu_kernel::Result<Inputs<'_, f32>> {
        Ok(Inputs {
            x: MatrixView::new("x", &self.x, [rows, PIXELS])?,
            weights: Weights::Joined(MatrixView::new("weights", &self.weights, [PIXELS, 2 * HIDDEN])?),
            bias: Some(VectorView::new("bias", &self.bias, [2 * HIDDEN])?),
        })
    }

    fn down(&self) -> swiglu_kernel::Result<MatrixView<'_, f32>> {
        Ok(MatrixView::new("down", &self.down, [HIDDEN, CLASSES])?)
    }
}

pub(crate) struct OnGpu {
    gpu: Gpu,
    batch: usize,
    tests: usize,
    training: MlpPlan,
    inference: MlpPlan,
    saved: CudaSlice<f32>,
    uploaded: Option<Uploaded>,
}

impl OnGpu {
    fn new(ordinal: usize, batch: usize, tests: usize) -> swiglu_kernel::Result<Self> {
        let gpu = Gpu::new(ordinal)?;
        let inference = Options { mode: Mode::Inference, ..Options::default() };
        Ok(Self {
            batch,
            tests,
            training: MlpPlan::new(&gpu, problem(batch), Options::default())?,
            inference: MlpPlan::new(&gpu, problem(tests), inference)?,
            saved: gpu.alloc(batch * 2 * HIDDEN)?,
            uploaded: None,
            gpu,
        })
    }

    fn forward(&mut self, parameters: &Parameters, x: &[f32]) -> swiglu_kernel::Result<Vec<f32>> {
        let uploaded = self.uploaded.insert(Uploaded::new(&self.gpu, parameters, x)?);
        let mut logits = self.gpu.alloc::<f32>(self.batch * CLASSES)?;
        {
            let mut y = MatrixViewMut::new("logits", &mut logits, [self.batch, CLASSES])?;
            let mut saved = MatrixViewMut::new("saved", &mut self.saved, [self.batch, 2 * HIDDEN])?;
            let (inputs, down) = (uploaded.inputs(self.batch)?, uploaded.down()?);
            self.training.forward(&inputs, &down, &mut y, Some(&mut saved))?;
        }
        Ok(self.gpu.download(&logits)?)
    }

    fn backward(&mut self, d_logits: &[f32]) -> swiglu_kernel::Result<Parameters> {
        let mut gradients = Parameters::zeros();
        let Some(uploaded) = &self.uploaded else { return Ok(gradients) };
        let d_logits = self.gpu.upload(d_logits)?;
        let [mut d_weights, mut d_bias, mut d_down] = [
            self.gpu.alloc::<f32>(PIXELS * 2 * HIDDEN)?,
            self.gpu.alloc::<f32>(2 * HIDDEN)?,
            self.gpu.alloc::<f32>(HIDDEN * CLASSES)?,
        ];
        {
            let d_weights = MatrixViewMut::new("d_weights", &mut d_weights, [PIXELS, 2 * HIDDEN])?;
            let mut targets = MlpGradients {
                layer: Gradients {
                    dx: None,
                    d_weights: Some(WeightsMut::Joined(d_weights)),
                    d_bias: Some(VectorViewMut::new("d_bias", &mut d_bias, [2 * HIDDEN])?),
                    accumulate: false,
                },
                d_down: Some(MatrixViewMut::new("d_down", &mut d_down, [HIDDEN, CLASSES])?),
            };
            let mut saved = MatrixViewMut::new("saved", &mut self.saved, [self.batch, 2 * HIDDEN])?;
            let dy = MatrixView::new("d_logits", &d_logits, [self.batch, CLASSES])?;
            let (inputs, down) = (uploaded.inputs(self.batch)?, uploaded.down()?);
            self.training.backward(&inputs, &down, &dy, Preactivations::InPlace(&mut saved), &mut targets)?;
        }
        gradients.weights = self.gpu.download(&d_weights)?;
        gradients.bias = self.gpu.download(&d_bias)?;
        gradients.down = self.gpu.download(&d_down)?;
        Ok(gradients)
    }

    fn infer(&mut self, parameters: &Parameters, x: &[f32]) -> swiglu_kernel::Result<Vec<f32>> {
        let uploaded = Uploaded::new(&self.gpu, parameters, x)?;
        let mut logits = self.gpu.alloc::<f32>(self.tests * CLASSES)?;
        {
            let mut y = MatrixViewMut::new("logits", &mut logits, [self.tests, CLASSES])?;
            self.inference.forward(&uploaded.inputs(self.tests)?, &uploaded.down()?, &mut y, None)?;
        }
        Ok(self.gpu.download(&logits)?)
    }
}

pub(crate) struct OnCpu {
    batch: usize,
    tests: usize,
    training: cpu::MlpPlan,
    inference: cpu::MlpPlan,
    saved: Vec<f32>,
}

impl OnCpu {
    fn new(batch: usize, tests: usize) -> swiglu_kernel::Result<Self> {
        let (training, inference) = (cpu::MlpPlan::new(problem(batch))?, cpu::MlpPlan::new(problem(tests))?);
        Ok(Self { batch, tests, training, inference, saved: vec![0.0; batch * 2 * HIDDEN] })
    }

    fn inputs<'a>(
        parameters: &'a Parameters,
        x: &'a [f32],
        rows: usize,
    ) -> reference_cpu::Result<cpu::Inputs<'a, f32>> {
        let weights = cpu::HostMatrix::new("weights", &parameters.weights, PIXELS, 2 * HIDDEN)?;
        Ok(cpu::Inputs {
            x: cpu::HostMatrix::new("x", x, rows, PIXELS)?,
            weights: cpu::Weights::Joined(weights),
            bias: Some(&parameters.bias),
        })
    }

    fn down(parameters: &Parameters) -> reference_cpu::Result<cpu::HostMatrix<'_, f32>> {
        cpu::HostMatrix::new("down", &parameters.down, HIDDEN, CLASSES)
    }

    fn forward(&mut self, parameters: &Parameters, x: &[f32]) -> swiglu_kernel::Result<Vec<f32>> {
        let mut logits = vec![0.0; self.batch * CLASSES];
        let mut y = cpu::HostMatrixMut::new("logits", &mut logits, self.batch, CLASSES)?;
        let mut saved = cpu::HostMatrixMut::new("saved", &mut self.saved, self.batch, 2 * HIDDEN)?;
        let inputs = Self::inputs(parameters, x, self.batch)?;
        self.training.forward(&inputs, Self::down(parameters)?, &mut y, Some(&mut saved))?;
        Ok(logits)
    }

    fn backward(&mut self, parameters: &Parameters, x: &[f32], d_logits: &[f32]) -> swiglu_kernel::Result<Parameters> {
        let mut gradients = Parameters::zeros();
        let d_weights = cpu::HostMatrixMut::new("d_weights", &mut gradients.weights, PIXELS, 2 * HIDDEN)?;
        let mut targets = cpu::MlpGradients {
            layer: cpu::Gradients {
                dx: None,
                d_weights: Some(cpu::WeightsMut::Joined(d_weights)),
                d_bias: Some(&mut gradients.bias),
                accumulate: false,
            },
            d_down: Some(cpu::HostMatrixMut::new("d_down", &mut gradients.down, HIDDEN, CLASSES)?),
        };
        let saved = cpu::HostMatrix::new("saved", &self.saved, self.batch, 2 * HIDDEN)?;
        let dy = cpu::HostMatrix::new("d_logits", d_logits, self.batch, CLASSES)?;
        let inputs = Self::inputs(parameters, x, self.batch)?;
        self.training.backward(&inputs, Self::down(parameters)?, dy, Some(saved), &mut targets)?;
        Ok(gradients)
    }

    fn infer(&mut self, parameters: &Parameters, x: &[f32]) -> swiglu_kernel::Result<Vec<f32>> {
        let mut logits = vec![0.0; self.tests * CLASSES];
        let mut y = cpu::HostMatrixMut::new("logits", &mut logits, self.tests, CLASSES)?;
        let inputs = Self::inputs(parameters, x, self.tests)?;
        self.inference.forward(&inputs, Self::down(parameters)?, &mut y, None)?;
        Ok(logits)
    }
}
