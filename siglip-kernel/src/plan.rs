//! The plan: checks and buffers, and what is queued around the passes over all pairs.

mod passes;

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{Element, Gpu, Region, Scalar, ScalarArg, VectorViewMut, Workspace};

use crate::design::{Design, Engine as Kind, Gradient, Pass};
use crate::engines::{
    At, Call, Engine, F32Engine, Fp8At, Int8At, Int8Engine, Int8SideAt, Planes, PortableEngine, Sm90Engine, SplitEngine,
};
use crate::error::Result;
use crate::io::{Inputs, Outputs};
use crate::kernels::{Finalize, GradientFactor, PadParams, PositivePairs, ReduceParams, ScaleParams};
use crate::problem::{Options, Problem, Route};
use crate::workspace::{BYTE_GROUP, Int8Side, Regions, byte_stride, gain_log2, padded_dim, pads};
use passes::Spare;

/// Everything decided ahead for one problem on one device: kernels, block size, workspace.
///
/// A plan is made once and called many times. A call queues its work on the plan's stream and returns; it neither waits for the device
/// nor allocates on it, so it can be captured into a graph (after one call like it outside of the capture, see the crate's page). The same inputs give the
/// same bits on every call, if gradients have the same row strides.
///
/// Making a plan compiles its kernels if no earlier process did (seconds, once; side by side on the cores that there are) and allocates the workspace. [`plan_variants`](crate::plan_variants) lists them.
pub struct Plan {
    gpu: Gpu,
    design: Design,
    /// Of each pass.
    images: Box<dyn Engine>,
    texts: Option<Box<dyn Engine>>,
    finalize: Finalize,
    regions: Regions,
    workspace: Workspace,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("design", &self.design).field("workspace_bytes", &self.workspace.bytes()).finish()
    }
}

/// Rows of f32 sums: in one place, or in parts of whole tiles that are yet to be added up.
#[derive(Clone, Copy)]
struct Sums {
    at: At,
    parts: usize,
    /// Rows from one part to the next.
    part_rows: usize,
}

impl From<At> for Sums {
    fn from(at: At) -> Self {
        Self { at, parts: 1, part_rows: 0 }
    }
}

/// The row stride that kernels are told. A single row has no next one, so its stride may be any number, also one that tensor maps refuse.
fn stride([rows, cols]: [usize; 2], row_stride: usize) -> usize {
    if rows == 1 { cols.next_multiple_of(8) } else { row_stride }
}

/// Device memory in bytes that a plan will allocate, without making it. Gradients and inputs are the caller's and not counted.
///
/// # Errors
/// As [`Plan::new`], for what can be told from the problem and the device.
pub fn workspace_bytes(gpu: &Gpu, problem: &Problem, options: &Options) -> Result<usize> {
    let design = Design::new(gpu.info(), problem, options)?;
    Ok(Regions::layout(&design, gpu.info()).0.total())
}

impl Plan {
    /// Decides, compiles and allocates.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with: `ZeroSize` or `Shape` for an impossible problem, `Shape` for a
    /// [`Chunk::Workspace`](crate::Chunk::Workspace) that no block fits, `DType` for [`Route::Fp8`] and [`Route::Int8`] with f32, `UnsupportedDevice` before compute
    /// capability 8.0 and for those elsewhere than on Hopper, `MissingLibrary` without NVRTC, and without cuBLASLt where no kernel stands in for it
    /// (in 16 bits on Hopper one does), `Cublas` or `Unsupported` for a cuBLASLt that cannot multiply here, `OutOfMemory`, `Driver`.
    pub fn new(gpu: &Gpu, problem: Problem, options: Options) -> Result<Self> {
        let design = Design::new(gpu.info(), &problem, &options)?;
        let (layout, regions) = Regions::layout(&design, gpu.info());
        gpu.compile(&design.variants(gpu.info()))?;
        let engine = |pass: &Pass| -> Result<Box<dyn Engine>> {
            Ok(match design.engine {
                Kind::Sm90 => Box::new(Sm90Engine::new(gpu, pass, design.route == Route::Fp8, design.gradients(pass))?),
                Kind::Int8 => Box::new(Int8Engine::new(gpu, pass)?),
                Kind::Portable => Box::new(PortableEngine::new(gpu, &pass.problem)?),
                Kind::F32 => Box::new(F32Engine::new(gpu, problem.dim)?),
                Kind::Split => Box::new(SplitEngine::new(gpu, &pass.problem, pass.blocks)?),
            })
        };
        let images = engine(&design.images)?;
        let texts = design.texts.as_ref().map(engine).transpose()?;
        let finalize = Finalize::new(gpu, problem.dtype)?;
        let workspace = Workspace::new(gpu, &layout)?;
        Ok(Self { gpu: gpu.clone(), design, images, texts, finalize, regions, workspace })
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        &self.design.images.problem
    }

    /// The route that was taken.
    pub fn route(&self) -> Route {
        self.design.route
    }

    /// Image and text rows of a block. In [`Route::LowMemory`] blocks have more text rows than that while a gradient that is not yet written has room for them, or
    /// where one launch makes logits and the images' gradient and no other reads G: up to 36,864. Where f32 sums lie in the texts' gradient until that is written (16 bits on
    /// Hopper, several blocks either way), a call whose `d_txt` has gaps between its rows takes blocks of half as many text rows, as the gaps are not the plan's to use.
    pub fn block(&self) -> (usize, usize) {
        (self.design.images.blocks.rows, self.design.images.blocks.cols)
    }

    /// Device memory in bytes that the plan holds.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    /// The loss alone: L = −(1/batch) Σ log σ(y z), z = exp(log_temp)·⟨img, txt⟩ + bias, y = +1 for positive pairs, −1 for the others
    /// (arXiv 2303.15343, section 3). 2·N·M·D flop.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with: `DType`, `Shape`, `Misaligned`, `WrongDevice` or `Overlap` naming the argument, `NonFinite`
    /// for a host scalar, `Driver`. A NaN or infinity in device memory is no error: it reaches the loss.
    pub fn forward<T: Element>(&mut self, inputs: &Inputs<'_, T>, loss: &mut VectorViewMut<'_, f32>) -> Result<()> {
        let problem = self.design.images.problem;
        inputs.check(&self.gpu, &problem, self.design.engine.alignment(&problem))?;
        inputs.check_loss(&self.gpu, loss)?;
        let gpu = self.gpu.clone();
        let stream: &CudaStream = gpu.stream();
        let (img, _img) = inputs.img.device_ptr(stream);
        let (txt, _txt) = inputs.txt.device_ptr(stream);
        let (log_temp, _log_temp) = inputs.log_temp.to_arg(stream);
        let (bias, _bias) = inputs.bias.to_arg(stream);
        let (loss, _loss) = loss.device_ptr(stream);
        let call = self.call(
            &gpu,
            At { address: img, row_stride: stride(inputs.img.shape(), inputs.img.row_stride()) },
            At { address: txt, row_stride: stride(inputs.txt.shape(), inputs.txt.row_stride()) },
            [log_temp, bias, ScalarArg { device: 0, host: 1.0 }],
            None,
            [loss, 0, 0],
        )?;
        let mut slots = 0;
        // SAFETY: the addresses are of checked views whose guards live to the end of this function, and of the workspace.
        unsafe { self.images.begin(&call) }?;
        for block in self.design.images.blocks.iter(&problem) {
            // SAFETY: as above.
            slots = slots.max(unsafe { self.images.logits(&call, &block) }?);
        }
        self.reduce(&call, slots)
    }

    /// The loss and all gradients, those multiplied by `upstream` (the gradient that arrives at the loss). 6·N·M·D flop. Until gradients are written, their memory may
    /// hold sums.
    ///
    /// With q = ∂L/∂z·batch = −y σ(−y z): d_img = exp(log_temp)·q·txt / batch, d_txt = exp(log_temp)·qᵀ·img / batch,
    /// d_bias = Σ q / batch, d_log_temp = Σ q (z − bias) / batch.
    ///
    /// # Errors
    /// As [`Plan::forward`].
    pub fn forward_backward<T: Element>(
        &mut self,
        inputs: &Inputs<'_, T>,
        upstream: &Scalar<'_>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<()> {
        let problem = self.design.images.problem;
        let alignment = self.design.engine.alignment(&problem);
        inputs.check(&self.gpu, &problem, alignment)?;
        outputs.check(&self.gpu, &problem, alignment, inputs, upstream)?;
        let gpu = self.gpu.clone();
        let stream: &CudaStream = gpu.stream();
        let (img, _img) = inputs.img.device_ptr(stream);
        let (txt, _txt) = inputs.txt.device_ptr(stream);
        let (log_temp, _log_temp) = inputs.log_temp.to_arg(stream);
        let (bias, _bias) = inputs.bias.to_arg(stream);
        let (upstream, _upstream) = upstream.to_arg(stream);
        let d_img_stride = stride(outputs.d_img.shape(), outputs.d_img.row_stride());
        let d_txt_stride = stride(outputs.d_txt.shape(), outputs.d_txt.row_stride());
        let (d_img, _d_img) = outputs.d_img.device_ptr(stream);
        let (d_txt, _d_txt) = outputs.d_txt.device_ptr(stream);
        let (loss, _loss) = outputs.loss.device_ptr(stream);
        let (d_log_temp, _d_log_temp) = outputs.d_log_temp.device_ptr(stream);
        let (d_bias, _d_bias) = outputs.d_bias.device_ptr(stream);

        let d_img = At { address: d_img, row_stride: d_img_stride };
        let d_txt = At { address: d_txt, row_stride: d_txt_stride };
        let img = At { address: img, row_stride: stride(inputs.img.shape(), inputs.img.row_stride()) };
        let txt = At { address: txt, row_stride: stride(inputs.txt.shape(), inputs.txt.row_stride()) };
        let scalars = [loss, d_log_temp, d_bias];
        let mut call = self.call(&gpu, img, txt, [log_temp, bias, upstream], Some((d_img, d_txt)), scalars)?;
        let summed = self.design.summed_texts(d_txt.row_stride);
        if self.design.texts.is_some() && summed > 0 {
            call.d_txt = d_txt;
        }
        let spare = if self.design.texts.is_some() && summed == 0 {
            Spare { gradient: d_txt, rows: problem.cols, fixed: true }
        } else {
            Spare { gradient: d_img, rows: problem.rows, fixed: false }
        };
        // SAFETY: the addresses are of checked views whose guards live to the end of this function, and of the workspace.
        let slots = unsafe { self.pass(&mut call, false, 0, summed, d_img, spare) }?;
        match self.design.cols_gradient() {
            Some(Gradient::Direct | Gradient::Finished) => {}
            Some(Gradient::Accumulated | Gradient::InPlace) => {
                let positives = call.positives_of_texts(0, problem.rows);
                self.scale(&call, call.d_txt, d_txt, problem.cols, positives, self.units(&call.int8.img))?;
            }
            None => {
                self.narrow(&call, d_txt, summed)?;
                let mut mirrored = self.mirrored(&call, d_txt);
                let spare = Spare { gradient: d_txt, rows: problem.cols, fixed: false };
                // SAFETY: as above; the same views with their sides exchanged.
                unsafe { self.pass(&mut mirrored, true, summed, 0, d_txt, spare) }?;
            }
        }
        // Where texts have a pass of their own, no product makes the scalars.
        if self.design.texts.is_none() && self.images.reduces() { Ok(()) } else { self.reduce(&call, slots) }
    }

    /// Where a product goes: its accumulators, or the output.
    fn place(&self, gradient: Gradient, accumulators: Region, output: At) -> At {
        match gradient {
            Gradient::Accumulated | Gradient::Finished => {
                At { address: self.workspace.ptr(accumulators), row_stride: padded_dim(&self.design.images.problem) }
            }
            Gradient::InPlace | Gradient::Direct => output,
        }
    }

    /// Resolves addresses and queues the padded copies, when there are any. `gradients`: where they go, in a call that has them.
    fn call<'a>(
        &self,
        gpu: &'a Gpu,
        img: At,
        txt: At,
        [log_temp, bias, upstream]: [ScalarArg; 3],
        gradients: Option<(At, At)>,
        [loss, d_log_temp, d_bias]: [u64; 3],
    ) -> Result<Call<'a>> {
        let at = |region, row_stride| At { address: self.workspace.ptr(region), row_stride };
        let problem = &self.design.images.problem;
        let dim = padded_dim(problem);
        let (to_img, to_txt) = gradients.unwrap_or_default();
        let (d_img, d_txt) = gradients.map_or_else(Default::default, |(img, txt)| {
            let to_img = self.design.rows_gradient(&self.design.images);
            let to_txt = self.design.cols_gradient().map(|to| self.place(to, self.regions.d_txt, txt));
            (self.place(to_img, self.regions.d_rows, img), to_txt.unwrap_or_default())
        });
        // G of route int8 has scales instead.
        let gain = if self.design.engine == Kind::Int8 { 1.0 } else { f64::from(gain_log2(problem.dtype)).exp2() };
        let int8_side = |side: &Int8Side, rows: usize| Int8SideAt {
            copy: at(side.copy, byte_stride(problem)),
            transposed: at(side.transposed, rows.next_multiple_of(BYTE_GROUP)),
            row_scales: self.workspace.ptr(side.row_scales),
            col_scales: self.workspace.ptr(side.col_scales),
            partial_peaks: self.workspace.ptr(side.partial_peaks),
        };
        let mut call = Call {
            stream: gpu.stream(),
            info: gpu.info(),
            gradient: gradients.is_some(),
            log_temp,
            bias,
            // Half the range, so that adding a block's origin cannot wrap.
            offset: problem.positives.offset().unwrap_or(i64::MIN / 2).clamp(i64::MIN / 2, i64::MAX / 2),
            img,
            txt,
            first_row: 0,
            g: at(self.regions.g, self.design.images.blocks.cols),
            groups: 1,
            d_img,
            d_txt,
            to_img,
            to_txt,
            factor: GradientFactor { log_temp, upstream, inverse: 1.0 / (problem.batch as f64 * gain) },
            scalars: ReduceParams {
                sums: self.workspace.ptr(self.regions.sums),
                slots: 0,
                gradient: u32::from(gradients.is_some()),
                inverse_batch: 1.0 / problem.batch as f64,
                log_temp,
                upstream,
                loss,
                d_log_temp,
                d_bias,
            },
            sums: self.workspace.ptr(self.regions.sums),
            positive: match self.design.engine {
                Kind::F32 | Kind::Split => self.workspace.ptr(self.regions.positive),
                Kind::Int8 => self.workspace.ptr(self.regions.int8.positives),
                Kind::Sm90 | Kind::Portable => 0,
            },
            planes: match self.design.engine {
                Kind::Split => Planes {
                    img: self.workspace.ptr(self.regions.img),
                    txt: self.workspace.ptr(self.regions.txt),
                    img_inverse: self.workspace.ptr(self.regions.img_inverse),
                    txt_inverse: self.workspace.ptr(self.regions.txt_inverse),
                    g_inverse: self.workspace.ptr(self.regions.g_inverse),
                },
                Kind::Sm90 | Kind::Int8 | Kind::Portable | Kind::F32 => Planes::default(),
            },
            fp8: Fp8At {
                img: at(self.regions.fp8.img, byte_stride(problem)),
                txt: at(self.regions.fp8.txt, byte_stride(problem)),
                peaks: self.workspace.ptr(self.regions.fp8.peaks),
                exponents: self.workspace.ptr(self.regions.fp8.exponents),
                positives: self.workspace.ptr(self.regions.fp8.positives),
            },
            int8: Int8At {
                img: int8_side(&self.regions.int8.img, problem.rows),
                txt: int8_side(&self.regions.int8.txt, problem.cols),
                partial_sums: self.workspace.ptr(self.regions.int8.partial_sums),
                mean: self.workspace.ptr(self.regions.int8.mean),
                terms: self.workspace.ptr(self.regions.int8.terms),
                positives: self.workspace.ptr(self.regions.int8.positives),
                g_scales: self.workspace.ptr(self.regions.int8.g_scales),
                transpose_scales: self.workspace.ptr(self.regions.int8.transpose_scales),
            },
            cublas: self.workspace.ptr(self.regions.cublas),
            counters: self.workspace.ptr(self.regions.counters),
        };
        if pads(problem) {
            call.img = self.pad(&call, img, at(self.regions.img, dim), problem.rows)?;
            call.txt = self.pad(&call, txt, at(self.regions.txt, dim), problem.cols)?;
        }
        Ok(call)
    }

    fn pad(&self, call: &Call<'_>, from: At, to: At, rows: usize) -> Result<At> {
        let params = PadParams {
            from: from.address,
            to: to.address,
            from_stride: from.row_stride as u64,
            to_stride: to.row_stride as u64,
            rows: rows as u64,
            cols: self.design.images.problem.dim as u32,
            padded_cols: to.row_stride as u32,
        };
        // SAFETY: `from` is a checked input, `to` a region of `rows` padded rows.
        unsafe { self.finalize.pad(call.stream, call.info, params) }?;
        Ok(to)
    }

    /// What 1 is worth in each column of sums over rows of `side`, where it is not 1.
    fn units(&self, side: &Int8SideAt) -> u64 {
        if self.design.engine == Kind::Int8 { side.col_scales } else { 0 }
    }

    /// Queues `rows` rows of gradients from their accumulators.
    fn scale(
        &self,
        call: &Call<'_>,
        from: impl Into<Sums>,
        to: At,
        rows: usize,
        positives: PositivePairs,
        units: u64,
    ) -> Result<()> {
        let Sums { at: from, parts, part_rows } = from.into();
        let params = ScaleParams {
            from: from.address,
            to: to.address,
            from_stride: from.row_stride as u64,
            to_stride: to.row_stride as u64,
            rows: rows as u64,
            part_stride: (part_rows * from.row_stride) as u64,
            parts: parts as u32,
            cols: self.design.images.problem.dim as u32,
            factor: call.factor,
            positives,
            units,
        };
        // SAFETY: accumulators and outputs hold `rows` rows.
        unsafe { self.finalize.scale(call.stream, call.info, params) }
    }

    /// Queues the scalars, from the first `slots` slots of sums.
    fn reduce(&self, call: &Call<'_>, slots: usize) -> Result<()> {
        let params = ReduceParams { slots: slots as u32, ..call.scalars };
        // SAFETY: the logit launches wrote `slots` slots; the outputs are checked views.
        unsafe { self.finalize.reduce(call.stream, call.info, params) }
    }
}
