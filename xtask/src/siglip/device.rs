//! Device buffers of one problem, and the calls on them.

use super::host::{Number, Step};
use cudarc::driver::CudaSlice;
use reference_cpu::siglip::{Positives, SiglipParams};
use siglip_kernel::{Chunk, Gpu, Inputs, MatrixView, MatrixViewMut, Options, Outputs, Plan, Problem, Route, Scalar};
use siglip_kernel::{Result, VectorViewMut};

/// Inputs and outputs of one problem on the device. log_temp and bias lie there too, as they do in training.
pub(crate) struct DeviceCall<T> {
    gpu: Gpu,
    pub(crate) problem: Problem,
    upstream: f32,
    img: CudaSlice<T>,
    txt: CudaSlice<T>,
    log_temp: CudaSlice<f32>,
    bias: CudaSlice<f32>,
    loss: CudaSlice<f32>,
    d_img: CudaSlice<T>,
    d_txt: CudaSlice<T>,
    d_log_temp: CudaSlice<f32>,
    d_bias: CudaSlice<f32>,
}

pub(crate) fn options(route: Route, chunk: Option<usize>) -> Options {
    Options { route, chunk: chunk.map_or(Chunk::Auto, Chunk::Rows) }
}

impl<T: Number> DeviceCall<T> {
    /// Uploads the inputs: images `[N, dim]`, texts `[M, dim]`, dense.
    pub(crate) fn new(gpu: &Gpu, img: &[T], txt: &[T], dim: usize, params: &SiglipParams) -> Result<Self> {
        let positives = match params.positives {
            Positives::Diagonal { offset } => siglip_kernel::Positives::Diagonal { offset },
            Positives::None => siglip_kernel::Positives::None,
        };
        let dtype = <T as kernel_core::Element>::DTYPE;
        let problem = Problem::block(img.len() / dim, txt.len() / dim, dim, dtype, positives).with_batch(params.batch);
        Ok(Self {
            gpu: gpu.clone(),
            problem,
            upstream: params.upstream,
            img: gpu.upload(img)?,
            txt: gpu.upload(txt)?,
            log_temp: gpu.upload(&[params.log_temp])?,
            bias: gpu.upload(&[params.bias])?,
            loss: gpu.alloc(1)?,
            d_img: gpu.alloc(img.len())?,
            d_txt: gpu.alloc(txt.len())?,
            d_log_temp: gpu.alloc(1)?,
            d_bias: gpu.alloc(1)?,
        })
    }

    /// Device memory of the outputs.
    pub(crate) fn output_bytes(&self) -> usize {
        (self.d_img.len() + self.d_txt.len()) * size_of::<T>() + 3 * size_of::<f32>()
    }

    /// Fills the outputs with NaN, so that one that is not written is found.
    pub(crate) fn poison(&mut self) -> Result<()> {
        let (nan, gpu) = (T::rounded(f32::NAN), &self.gpu);
        self.d_img = gpu.upload(&vec![nan; self.d_img.len()])?;
        self.d_txt = gpu.upload(&vec![nan; self.d_txt.len()])?;
        for scalar in [&mut self.loss, &mut self.d_log_temp, &mut self.d_bias] {
            *scalar = gpu.upload(&[f32::NAN])?;
        }
        Ok(())
    }

    /// Queues the loss alone.
    pub(crate) fn forward(&mut self, plan: &mut Plan) -> Result<()> {
        let Problem { rows, cols, dim, .. } = self.problem;
        let inputs = Inputs {
            img: MatrixView::new("img", &self.img, [rows, dim])?,
            txt: MatrixView::new("txt", &self.txt, [cols, dim])?,
            log_temp: Scalar::device("log_temp", &self.log_temp)?,
            bias: Scalar::device("bias", &self.bias)?,
        };
        plan.forward(&inputs, &mut VectorViewMut::new("loss", &mut self.loss, [1])?)
    }

    /// Queues loss and gradients.
    pub(crate) fn step(&mut self, plan: &mut Plan) -> Result<()> {
        let Problem { rows, cols, dim, .. } = self.problem;
        let inputs = Inputs {
            img: MatrixView::new("img", &self.img, [rows, dim])?,
            txt: MatrixView::new("txt", &self.txt, [cols, dim])?,
            log_temp: Scalar::device("log_temp", &self.log_temp)?,
            bias: Scalar::device("bias", &self.bias)?,
        };
        let mut outputs = Outputs {
            loss: VectorViewMut::new("loss", &mut self.loss, [1])?,
            d_img: MatrixViewMut::new("d_img", &mut self.d_img, [rows, dim])?,
            d_txt: MatrixViewMut::new("d_txt", &mut self.d_txt, [cols, dim])?,
            d_log_temp: VectorViewMut::new("d_log_temp", &mut self.d_log_temp, [1])?,
            d_bias: VectorViewMut::new("d_bias", &mut self.d_bias, [1])?,
        };
        plan.forward_backward(&inputs, &Scalar::Host(self.upstream), &mut outputs)
    }

    /// The loss, once the device is done.
    pub(crate) fn loss(&self) -> Result<f32> {
        Ok(self.gpu.download(&self.loss)?[0])
    }

    /// All outputs, once the device is done.
    pub(crate) fn results(&self) -> Result<Step<T>> {
        Ok(Step {
            loss: self.loss()?,
            d_img: self.gpu.download(&self.d_img)?,
            d_txt: self.gpu.download(&self.d_txt)?,
            d_log_temp: self.gpu.download(&self.d_log_temp)?[0],
            d_bias: self.gpu.download(&self.d_bias)?[0],
        })
    }
}

/// All bits of a result (a narrow element widens exactly), to compare two runs.
pub(crate) fn bits<T: Number>(step: &Step<T>) -> impl Iterator<Item = u32> {
    let scalars = [step.loss, step.d_log_temp, step.d_bias].map(f32::to_bits);
    let gradients = step.d_img.iter().chain(&step.d_txt).map(|x| kernel_core::Element::to_f32(*x).to_bits());
    scalars.into_iter().chain(gradients)
}
