//! The SigLIP loss of all pairs as one batch, on the GPU or on the CPU: the same shape of code twice.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use siglip_kernel::kernel_core::cudarc::driver::CudaSlice;
use siglip_kernel::{
    DType, Gpu, Inputs, MatrixView, MatrixViewMut, Options, Outputs, Plan, Problem, Scalar, VectorViewMut, cpu,
};

use crate::matrix::Matrix;

/// Temperature and bias as SigLIP begins with them (arXiv 2303.15343, section 3.2).
const TEMPERATURE: f32 = 10.0;
const BIAS: f32 = -10.0;

/// Where the loss is computed.
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

/// Codes are the locked side, queries the tuned one.
pub(crate) enum Loss {
    Gpu(Box<OnGpu>),
    Cpu(OnCpu),
}

impl Loss {
    /// `Auto` takes a GPU when there is a usable one, and says what is in the way otherwise.
    pub(crate) fn new(device: Device, codes: &Matrix) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Cpu(OnCpu::new(codes)?)),
            Device::Cuda(ordinal) => Ok(Self::Gpu(Box::new(OnGpu::new(ordinal, codes)?))),
            Device::Auto => match OnGpu::new(0, codes) {
                Ok(gpu) => Ok(Self::Gpu(Box::new(gpu))),
                Err(error) => {
                    println!("not on a GPU: {error}");
                    Ok(Self::Cpu(OnCpu::new(codes)?))
                }
            },
        }
    }

    /// The loss of queries against the codes, and the gradient of the queries.
    pub(crate) fn step(&mut self, queries: &Matrix) -> Result<(f32, Matrix)> {
        match self {
            Loss::Gpu(gpu) => Ok(gpu.step(queries)?),
            Loss::Cpu(cpu) => Ok(cpu.step(queries)?),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::Gpu(on) => write!(f, "{}", on.gpu.info().name),
            Loss::Cpu(_) => f.write_str("the CPU"),
        }
    }
}

fn problem(codes: &Matrix) -> Problem {
    Problem::square(codes.rows, codes.cols, DType::F32)
}

/// Everything a step needs, in device memory.
pub(crate) struct OnGpu {
    gpu: Gpu,
    plan: Plan,
    codes: CudaSlice<f32>,
    queries: CudaSlice<f32>,
    loss: CudaSlice<f32>,
    d_codes: CudaSlice<f32>,
    d_queries: CudaSlice<f32>,
    d_log_temp: CudaSlice<f32>,
    d_bias: CudaSlice<f32>,
}

impl OnGpu {
    fn new(ordinal: usize, codes: &Matrix) -> siglip_kernel::Result<Self> {
        let gpu = Gpu::new(ordinal)?;
        let elements = codes.data.len();
        Ok(Self {
            plan: Plan::new(&gpu, problem(codes), Options::default())?,
            codes: gpu.upload(&codes.data)?,
            queries: gpu.alloc(elements)?,
            loss: gpu.alloc(1)?,
            d_codes: gpu.alloc(elements)?,
            d_queries: gpu.alloc(elements)?,
            d_log_temp: gpu.alloc(1)?,
            d_bias: gpu.alloc(1)?,
            gpu,
        })
    }

    fn step(&mut self, queries: &Matrix) -> siglip_kernel::Result<(f32, Matrix)> {
        let shape = [queries.rows, queries.cols];
        let copied = self.gpu.stream().memcpy_htod(&queries.data, &mut self.queries);
        copied.map_err(siglip_kernel::kernel_core::Error::driver("cuMemcpyHtoD"))?;
        let inputs = Inputs {
            img: MatrixView::new("codes", &self.codes, shape)?,
            txt: MatrixView::new("queries", &self.queries, shape)?,
            log_temp: Scalar::Host(TEMPERATURE.ln()),
            bias: Scalar::Host(BIAS),
        };
        let outputs = &mut Outputs {
            loss: VectorViewMut::new("loss", &mut self.loss, [1])?,
            d_img: MatrixViewMut::new("d_codes", &mut self.d_codes, shape)?,
            d_txt: MatrixViewMut::new("d_queries", &mut self.d_queries, shape)?,
            d_log_temp: VectorViewMut::new("d_log_temp", &mut self.d_log_temp, [1])?,
            d_bias: VectorViewMut::new("d_bias", &mut self.d_bias, [1])?,
        };
        self.plan.forward_backward(&inputs, &Scalar::Host(1.0), outputs)?;
        let gradient = Matrix { data: self.gpu.download(&self.d_queries)?, ..*queries };
        Ok((self.gpu.download(&self.loss)?[0], gradient))
    }
}

/// The same on host slices.
pub(crate) struct OnCpu {
    plan: cpu::Plan,
    codes: Matrix,
    d_codes: Matrix,
}

impl OnCpu {
    fn new(codes: &Matrix) -> siglip_kernel::Result<Self> {
        let d_codes = Matrix::zeros(codes.rows, codes.cols);
        Ok(Self { plan: cpu::Plan::new(problem(codes))?, codes: codes.clone(), d_codes })
    }

    fn step(&mut self, queries: &Matrix) -> siglip_kernel::Result<(f32, Matrix)> {
        let Matrix { rows, cols, .. } = *queries;
        let mut d_queries = Matrix::zeros(rows, cols);
        let (mut loss, mut d_log_temp, mut d_bias) = (0.0, 0.0, 0.0);
        let inputs = cpu::Inputs {
            img: cpu::HostMatrix::new("codes", &self.codes.data, rows, cols)?,
            txt: cpu::HostMatrix::new("queries", &queries.data, rows, cols)?,
            log_temp: TEMPERATURE.ln(),
            bias: BIAS,
        };
        let outputs = &mut cpu::Outputs {
            loss: &mut loss,
            d_img: cpu::HostMatrixMut::new("d_codes", &mut self.d_codes.data, rows, cols)?,
            d_txt: cpu::HostMatrixMut::new("d_queries", &mut d_queries.data, rows, cols)?,
            d_log_temp: &mut d_log_temp,
            d_bias: &mut d_bias,
        };
        self.plan.forward_backward(&inputs, 1.0, outputs)?;
        Ok((loss, d_queries))
    }
}
