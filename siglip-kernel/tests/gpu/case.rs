//! One problem with its inputs, on the device and back.

use siglip_kernel::cpu::Element;
use siglip_kernel::kernel_core::cudarc::driver::CudaSlice;
use siglip_kernel::kernel_core::half::f16;
use siglip_kernel::{
    Gpu, Inputs, MatrixView, MatrixViewMut, Options, Outputs, Plan, Positives, Problem, Result, Scalar, VectorViewMut,
};

use crate::support::{bits, noise, rounded};

/// What lies in the gaps between rows, before and after the call. No element of any input or gradient.
const GAP: f32 = -1808.0;

/// Everything about a call but the elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) dim: usize,
    pub(crate) positives: Positives,
    /// 0: the number of rows.
    pub(crate) batch: usize,
    pub(crate) log_temp: f32,
    pub(crate) bias: f32,
    pub(crate) upstream: f32,
    pub(crate) options: Options,
    /// Elements before the first row and between rows, of inputs and of gradients.
    pub(crate) input_gap: usize,
    pub(crate) output_gap: usize,
    /// log_temp, bias and upstream in device memory, or with the call.
    pub(crate) device_scalars: bool,
}

/// Rows, columns: so many columns, and of tiles of 128 × 192 so many fewer waves, that Hopper's logit product takes those; edges everywhere.
pub(crate) const WIDE_TILES: [usize; 2] = [300, 40_000];

impl Case {
    /// Matching pairs with the paper's initial temperature and bias.
    pub(crate) fn new(rows: usize, cols: usize, dim: usize) -> Self {
        Self {
            rows,
            cols,
            dim,
            positives: Positives::Matching,
            batch: 0,
            log_temp: std::f32::consts::LN_10,
            bias: -10.0,
            upstream: 1.0,
            options: Options::default(),
            input_gap: 0,
            output_gap: 0,
            device_scalars: true,
        }
    }

    pub(crate) fn problem<T: Element>(&self) -> Problem {
        let Self { rows, cols, dim, positives, .. } = *self;
        Problem::block(rows, cols, dim, T::DTYPE, positives).with_batch(self.batch())
    }

    pub(crate) fn batch(&self) -> usize {
        if self.batch == 0 { self.rows } else { self.batch }
    }
}

/// Dense inputs as rounded to their dtype.
#[derive(Clone)]
pub(crate) struct Host<T> {
    pub(crate) img: Vec<T>,
    pub(crate) txt: Vec<T>,
}

impl<T: Element> Host<T> {
    /// Rows of length 1; every text leans to the image of its own index, so that positives differ from negatives.
    pub(crate) fn unit(case: &Case, seed: u64) -> Self {
        let dim = case.dim;
        let mut img = noise(case.rows * dim, seed);
        let mut txt = noise(case.cols * dim, seed + 1);
        for (j, row) in txt.chunks_mut(dim).enumerate() {
            let of = j % case.rows;
            row.iter_mut().zip(&img[of * dim..]).for_each(|(x, y)| *x += y);
        }
        for row in img.chunks_mut(dim).chain(txt.chunks_mut(dim)) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
        Self::round(&img, &txt)
    }

    /// Rows `scale · s · v` with one direction v of ±1 and s in [-1, 1): logits over the whole range, none of them a difference of large sums.
    pub(crate) fn collinear(case: &Case, scale: f32, least: f32, seed: u64) -> Self {
        let side = |rows: usize, seed: u64| -> Vec<f32> {
            let factors = noise(rows, seed).into_iter().map(|s| scale * (s + least.copysign(s)));
            factors.flat_map(|s| (0..case.dim).map(move |k| if k % 3 == 0 { -s } else { s })).collect()
        };
        Self::round(&side(case.rows, seed), &side(case.cols, seed + 1))
    }

    pub(crate) fn round(img: &[f32], txt: &[f32]) -> Self {
        Self { img: img.iter().map(|x| rounded(*x)).collect(), txt: txt.iter().map(|x| rounded(*x)).collect() }
    }
}

/// What a call gave, dense.
#[derive(Clone)]
pub(crate) struct Step<T> {
    /// By the call without gradients.
    pub(crate) forward: f32,
    pub(crate) loss: f32,
    pub(crate) d_img: Vec<T>,
    pub(crate) d_txt: Vec<T>,
    pub(crate) d_log_temp: f32,
    pub(crate) d_bias: f32,
}

impl<T: Element> Step<T> {
    pub(crate) fn bits(&self) -> Vec<u32> {
        let scalars = [self.forward, self.loss, self.d_log_temp, self.d_bias].map(f32::to_bits);
        scalars.into_iter().chain(self.d_img.iter().chain(&self.d_txt).map(|x| bits(*x))).collect()
    }
}

/// Inputs and outputs of a case in device memory.
pub(crate) struct Device<T> {
    pub(crate) case: Case,
    pub(crate) img: CudaSlice<T>,
    pub(crate) txt: CudaSlice<T>,
    pub(crate) log_temp: CudaSlice<f32>,
    pub(crate) bias: CudaSlice<f32>,
    pub(crate) upstream: CudaSlice<f32>,
    pub(crate) loss: CudaSlice<f32>,
    pub(crate) d_img: CudaSlice<T>,
    pub(crate) d_txt: CudaSlice<T>,
    pub(crate) d_log_temp: CudaSlice<f32>,
    pub(crate) d_bias: CudaSlice<f32>,
}

/// Rows with `gap` elements before each and after the last.
fn spread<T: Element>(dense: &[T], dim: usize, gap: usize) -> Vec<T> {
    let gaps = vec![rounded(GAP); gap];
    let mut all: Vec<T> = dense.chunks(dim).flat_map(|row| gaps.iter().chain(row).copied()).collect();
    all.extend(&gaps);
    all
}

/// The rows again; an error when a gap was written.
fn gather<T: Element>(what: &str, all: &[T], dim: usize, gap: usize) -> Result<Vec<T>, String> {
    let written = |x: &&T| bits(**x) != GAP.to_bits();
    let mut dense = Vec::new();
    for row in all.chunks(dim + gap) {
        if row[..gap].iter().any(|x| written(&x)) {
            return Err(format!("{what}: the gap before row {} was written", dense.len() / dim));
        }
        dense.extend_from_slice(&row[gap..]);
    }
    Ok(dense)
}

impl<T: Element> Device<T> {
    pub(crate) fn new(gpu: &Gpu, case: Case, host: &Host<T>) -> Self {
        let up = |dense: &[T], gap| gpu.upload(&spread(dense, case.dim, gap)).unwrap();
        let scalar = |value: f32| gpu.upload(&[value]).unwrap();
        // What is not overwritten is found.
        let nan = |like: &[T]| vec![rounded::<T>(f32::NAN); like.len()];
        Self {
            case,
            img: up(&host.img, case.input_gap),
            txt: up(&host.txt, case.input_gap),
            log_temp: scalar(case.log_temp),
            bias: scalar(case.bias),
            upstream: scalar(case.upstream),
            loss: scalar(f32::NAN),
            d_img: up(&nan(&host.img), case.output_gap),
            d_txt: up(&nan(&host.txt), case.output_gap),
            d_log_temp: scalar(f32::NAN),
            d_bias: scalar(f32::NAN),
        }
    }

    /// Views of everything; the last is the upstream gradient.
    pub(crate) fn views(&mut self) -> (Inputs<'_, T>, Outputs<'_, T>, Scalar<'_>) {
        let Case { rows, cols, dim, input_gap, output_gap, device_scalars, .. } = self.case;
        let scalar = |what, device, value: f32| {
            if device_scalars { Scalar::device(what, device).unwrap() } else { Scalar::Host(value) }
        };
        let (input_stride, output_stride) = (dim + input_gap, dim + output_gap);
        let inputs = Inputs {
            img: MatrixView::with_row_stride("img", self.img.slice(input_gap..), [rows, dim], input_stride).unwrap(),
            txt: MatrixView::with_row_stride("txt", self.txt.slice(input_gap..), [cols, dim], input_stride).unwrap(),
            log_temp: scalar("log_temp", &self.log_temp, self.case.log_temp),
            bias: scalar("bias", &self.bias, self.case.bias),
        };
        let d_img = self.d_img.slice_mut(output_gap..);
        let d_txt = self.d_txt.slice_mut(output_gap..);
        let outputs = Outputs {
            loss: VectorViewMut::new("loss", &mut self.loss, [1]).unwrap(),
            d_img: MatrixViewMut::with_row_stride("d_img", d_img, [rows, dim], output_stride).unwrap(),
            d_txt: MatrixViewMut::with_row_stride("d_txt", d_txt, [cols, dim], output_stride).unwrap(),
            d_log_temp: VectorViewMut::new("d_log_temp", &mut self.d_log_temp, [1]).unwrap(),
            d_bias: VectorViewMut::new("d_bias", &mut self.d_bias, [1]).unwrap(),
        };
        (inputs, outputs, scalar("upstream", &self.upstream, self.case.upstream))
    }

    /// Queues loss and gradients.
    pub(crate) fn step(&mut self, plan: &mut Plan) -> Result<()> {
        let (inputs, mut outputs, upstream) = self.views();
        plan.forward_backward(&inputs, &upstream, &mut outputs)
    }

    /// Queues the loss alone.
    pub(crate) fn forward(&mut self, plan: &mut Plan) -> Result<()> {
        let (inputs, mut outputs, _) = self.views();
        plan.forward(&inputs, &mut outputs.loss)
    }

    /// Both calls, and their results. An error when a gap or an input was written.
    pub(crate) fn run(&mut self, gpu: &Gpu, plan: &mut Plan, host: &Host<T>) -> Result<Step<T>, String> {
        let text = |error: siglip_kernel::Error| error.to_string();
        self.forward(plan).map_err(text)?;
        let forward = gpu.download(&self.loss).unwrap()[0];
        gpu.stream().memcpy_htod(&[f32::NAN], &mut self.loss).unwrap();
        self.step(plan).map_err(text)?;
        let Case { dim, input_gap, output_gap, .. } = self.case;
        for (what, device, host) in [("img", &self.img, &host.img), ("txt", &self.txt, &host.txt)] {
            let now = gather(what, &gpu.download(device).unwrap(), dim, input_gap)?;
            if !now.iter().zip(host).all(|(a, b)| bits(*a) == bits(*b)) {
                return Err(format!("{what} was changed"));
            }
        }
        let scalar = |device: &CudaSlice<f32>| gpu.download(device).unwrap()[0];
        Ok(Step {
            forward,
            loss: scalar(&self.loss),
            d_img: gather("d_img", &gpu.download(&self.d_img).unwrap(), dim, output_gap)?,
            d_txt: gather("d_txt", &gpu.download(&self.d_txt).unwrap(), dim, output_gap)?,
            d_log_temp: scalar(&self.d_log_temp),
            d_bias: scalar(&self.d_bias),
        })
    }
}

/// A plan of its own, both calls, and their results.
pub(crate) fn run<T: Element>(gpu: &Gpu, case: &Case, host: &Host<T>) -> Result<Step<T>, String> {
    let mut plan = Plan::new(gpu, case.problem::<T>(), case.options).map_err(|error| error.to_string())?;
    Device::new(gpu, *case, host).run(gpu, &mut plan, host)
}

/// Half the distance of f16's subnormals: the error that any rounding to it may have, however small the value.
pub(crate) fn subnormal_half_step<T: Element>() -> f64 {
    if T::NAME == "f16" { f64::from(f16::from_bits(1).to_f32()) / 2.0 } else { 0.0 }
}
