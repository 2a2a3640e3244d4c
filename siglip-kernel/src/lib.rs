//! The SigLIP sigmoid contrastive loss with all gradients, fused, on NVIDIA GPUs: no B × B matrix is ever held.
//!
//! For N images and M texts of D features each, with y = +1 for positive pairs and −1 for all others,
//!
//! ```text
//! z_ij = exp(log_temp) · ⟨img_i, txt_j⟩ + bias
//! L    = −(1 / batch) Σ_ij log σ(y_ij z_ij)
//! ```
//!
//! (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", [arXiv 2303.15343](https://arxiv.org/abs/2303.15343), section 3). With
//! q = −y σ(−y z), the gradients are
//!
//! ```text
//! d_img      = exp(log_temp) · q · txt  / batch        d_log_temp = Σ q (z − bias) / batch
//! d_txt      = exp(log_temp) · qᵀ · img / batch        d_bias     = Σ q / batch
//! ```
//!
//! each times an upstream gradient. [`Plan::forward`] gives the loss alone, [`Plan::forward_backward`] the loss and all four; the free functions
//! [`forward`](forward()) and [`forward_backward`] do the same with memory of their own, for a single answer. [`cpu`] has the same calls on host slices.
//!
//! # Shapes and dtypes
//! `img` and `d_img` are `[N, D]`, `txt` and `d_txt` `[M, D]`, row-major, with any row stride; any N, M and D from 1 up to 2³¹ − 1, and more
//! than 2³¹ elements. They are all f32, all f16 or all bf16. log_temp, bias and upstream are f32: in device memory, read there without a host
//! sync, or host values. Loss, d_log_temp and d_bias are f32. [`Positives`] are a diagonal with any offset, or none, as a block of another
//! rank's texts has; the divisor is [`Problem::batch`].
//!
//! 16-bit rows whose D is a multiple of 8 must begin at multiples of 16 bytes; those of another D are copied to padded rows first. Of f32
//! matrices only the first row must.
//!
//! # Cost
//! | | flop | device memory beside inputs and gradients |
//! |---|---|---|
//! | loss | 2·N·M·D | as below: a plan is made for both calls |
//! | loss and gradients | 6·N·M·D | one block of pairs in the dtype (on Hopper, when [`Chunk::Auto`] chooses, at most 185 MB, or up to 738 MB if M·D is large: 3.5·M·D bytes, and beyond 65,536 texts up to 6.5·M·D; 1.375 times 185 MB where as much less is taken by f32 sums; what you allow with [`Chunk::Workspace`]), f32 sums of the gradients that need several blocks, padded copies if D asks for them; `Fp8` a byte more an input element, `Int8` two, and f32 sums of both gradients always |
//!
//! f32 on Hopper takes three times the flop on tensor cores, and both inputs once more for their planes, D rounded up to 64 there; its blocks are 268 MB at most.
//!
//! The products dominate: on tensor cores, in f32 before Hopper on f32 units. Memory traffic is O((N + M)·D) per block and two passes over the block itself,
//! which is written once and read by the two gradient products. [`workspace_bytes`] tells the memory ahead of time, [`Plan::workspace_bytes`] of
//! a plan; a call allocates nothing.
//!
//! # Routes
//! | [`Route`] | dtypes | GPUs | how |
//! |---|---|---|---|
//! | [`Chunked`](Route::Chunked) | f16, bf16 | sm_90 (H100, H200) | TMA and warpgroup products, loss and q in the epilogue of the first; the gradient products by cuBLASLt where both are summed in f32 (no block holds a whole sum, or D is no multiple of 8) and it is installed, else by own kernels |
//! | [`Chunked`](Route::Chunked) | f32 | sm_90 (H100, H200) | the same at f32 accuracy: every operand as two f16 planes, three products for one |
//! | [`Portable`](Route::Portable) | f16, bf16 | sm_80 and newer | `mma.sync` with the same epilogue, gradient products by cuBLASLt |
//! | [`Fp8`](Route::Fp8) | f16, bf16 | sm_90 | as `Chunked`, with logits from inputs rounded to e4m3: an approximation, never chosen by itself |
//! | [`Int8`](Route::Int8) | f16, bf16 | sm_90 | all three products of negative pairs in 8-bit integers by own kernels, positive pairs exact: an approximation, never chosen by itself |
//! | [`Portable`](Route::Portable) | f32 | sm_80 and newer | cuBLASLt in true f32 (no TF32), one pass for loss and q |
//! | [`LowMemory`](Route::LowMemory) | all | sm_80 and newer | 16-bit: a second pass with texts as rows instead of f32 sums for them, or for half of them; f32: as `Portable`; all: small blocks |
//!
//! How many rows a block has is chosen by a rule ([`Chunk::Auto`]), or measured on the device and remembered by [`tune`].
//!
//! [`Auto`](Route::Auto) takes `Chunked`, which on a GPU without warpgroup products is `Portable`.
//!
//! # Numerics
//! Products and sums are f32, the sums over warps f64. Against f64 on the inputs as rounded to their dtype:
//!
//! * The loss is within 1e-5 relative, plus what f32 logits carry: a sum of D terms near ±|z| is off by up to |z|·2⁻²³·(1 + D / 32), and so is its loss
//!   (5e-5 at |z| = 20 and D = 640; unit rows stay far below it). Each of the epilogue's three paths (pairs that are all faint, all quiet, or anything) has its own
//!   bound, derived in `cuda/sigmoid.cuh` (f32 has its own, `cuda/sigmoid_f32.cuh`): at most 2.6e-6 + f32's order for faint fragments, below 1e-5 for the others at any z. Logits of ±10⁴ neither
//!   overflow nor lose the loss.
//! * f32 gradients are within 2e-6 of the largest: the positive pairs, whose terms may be thousands of times larger than all others, are kept out of the
//!   products and added last. On Hopper every product of two f32 numbers is three of f16 parts: a number is held to 22 bits, or to 2⁻⁴⁰ of the largest
//!   in its 64 rows where that is more, and sums are rounded to nearest every 64 terms. 16-bit gradients carry two roundings: q to the dtype (in f16 scaled by 2¹⁴, so that faint pairs do
//!   not underflow), and the result; between them everything is f32. Gradients below f16's smallest number vanish, as they would anywhere:
//!   use `upstream` as a loss scale.
//! * [`Fp8`](Route::Fp8) rounds each input matrix to e4m3, by one power of two a matrix, for the logits of negative pairs alone. Positive pairs' logits
//!   are computed from the rows as they are, and so are both gradient products. For unit rows of D = 768 in random directions a negative's
//!   logit is then off by 1.4e-3 · exp(log_temp) in the mean square. Where positives dominate the gradients, as they do at SigLIP's initial temperature
//!   and bias, nothing is lost: 1.7e-3 either way for B = 8,192 in bf16. Where negatives near the positives matter, it is: on real sentence
//!   embeddings 6e-3 beside 2.1e-3 at a temperature of 10, and 2.3e-2 beside 2.0e-3 at 30. FP8 sums keep 14 bits as well: a dot product whose terms mostly
//!   have one sign loses up to 2^-10 of itself for every 32 features.
//! * [`Int8`](Route::Int8) has negative pairs in 8-bit integers throughout, whose products are summed exactly; positive pairs are computed from the rows as they are and added last, in f32. A
//!   row x of images, or of texts less their mean, is s·n with s = max|x| / 127, n rounded, so an element is off by s / 2 at most; an image's product with the mean is exact. For unit rows of
//!   D = 768 in random directions a logit is then off by 4e-4 · exp(log_temp) in the mean square. In the gradient products q of 128 negative pairs of a row (for texts, of a column) is s·n with
//!   s = max q / 255, and a feature of the rows has a scale of 127 likewise: dL/d img of a row is off by ½ max q / 255 · |txt| and ½ q · max|feature| / 127 a pair at most, and without a
//!   common sign. At SigLIP's initial temperature and bias, for unit rows of D = 768 in random directions in bf16, gradients are off by 1.66e-3, as `Auto` is (B = 8,192), and by 1.70e-3 beside
//!   1.66e-3 (B = 65,536); on real sentence embeddings by 1.8e-3 beside 2.1e-3 at a temperature of 10, as positives keep all their bits, and by 4.2e-3 beside 2.0e-3 at 30.
//!   d_log_temp is off by |z| 2⁻²⁴ of the sum of |q| as well, which is all of it only where exp(log_temp) leaves no logit but the bias.
//! * A NaN in device memory reaches the loss, and so does an infinity, but for a logit of +∞ at a positive pair or −∞ at another, whose loss is 0.
//! * The same plan, or another of equal problem, options and device, gives the same bits on every run for gradients of the same row strides (whether `d_txt` has gaps between its rows may decide how large blocks are). Where cuBLASLt multiplies (see "Routes"), that
//!   is as long as its version is the same; on Hopper in 16 bits, whether it is installed decides who multiplies. That it is there and fails is an error.
//!
//! # CUDA graphs
//! A call queues its work on the plan's stream and returns: no allocation, no host sync. It can be captured, on a stream of its own and with cudarc's
//! event tracking off ([`Gpu`] says why), after one like it outside of the capture: with or without gradients as it, and with the same row strides and
//! alignments of its matrices, for which cuBLASLt's plans are made. A captured call replays with the addresses it was captured with.
//!
//! # Errors
//! A mistake gives an [`enum@Error`] that names the argument, what was found and what was expected: shape, dtype, device, stride, alignment,
//! overlap of inputs and outputs, zero sizes, scalars that are not finite; a missing driver, NVRTC or cuBLASLt, or one that fails, or too little memory. Nothing
//! panics, and nothing is written before all arguments are checked. Building needs no CUDA; kernels are compiled at run time, once, and kept on disk.
//!
//! # Examples
//! ```no_run
//! use siglip_kernel::kernel_core::half::bf16;
//! use siglip_kernel::{
//!     DType, Gpu, Inputs, MatrixView, MatrixViewMut, Options, Outputs, Plan, Problem, Scalar, VectorViewMut,
//! };
//!
//! let (batch, dim) = (8192, 768);
//! let gpu = Gpu::new(0)?;
//! let mut plan = Plan::new(&gpu, Problem::square(batch, dim, DType::Bf16), Options::default())?;
//! // From your towers; zeroed here.
//! let (img, txt) = (gpu.alloc::<bf16>(batch * dim)?, gpu.alloc::<bf16>(batch * dim)?);
//! let (log_temp, bias) = (gpu.upload(&[10f32.ln()])?, gpu.upload(&[-10f32])?);
//! let (mut d_img, mut d_txt) = (gpu.alloc::<bf16>(batch * dim)?, gpu.alloc::<bf16>(batch * dim)?);
//! let (mut loss, mut d_log_temp, mut d_bias) = (gpu.alloc(1)?, gpu.alloc(1)?, gpu.alloc(1)?);
//!
//! // Every step:
//! let inputs = Inputs {
//!     img: MatrixView::new("img", &img, [batch, dim])?,
//!     txt: MatrixView::new("txt", &txt, [batch, dim])?,
//!     log_temp: Scalar::device("log_temp", &log_temp)?,
//!     bias: Scalar::device("bias", &bias)?,
//! };
//! let mut outputs = Outputs {
//!     loss: VectorViewMut::new("loss", &mut loss, [1])?,
//!     d_img: MatrixViewMut::new("d_img", &mut d_img, [batch, dim])?,
//!     d_txt: MatrixViewMut::new("d_txt", &mut d_txt, [batch, dim])?,
//!     d_log_temp: VectorViewMut::new("d_log_temp", &mut d_log_temp, [1])?,
//!     d_bias: VectorViewMut::new("d_bias", &mut d_bias, [1])?,
//! };
//! plan.forward_backward(&inputs, &Scalar::Host(1.0), &mut outputs)?;
//! println!("loss {}", gpu.download(&loss)?[0]);
//! # Ok::<(), siglip_kernel::Error>(())
//! ```
//!
//! On the CPU, the loss alone:
//!
//! ```
//! use siglip_kernel::cpu::{HostMatrix, Inputs, Plan};
//! use siglip_kernel::{DType, Positives, Problem};
//!
//! let (img, txt) = ([1.0f32, 0.0, 0.0, 1.0], [0.0f32, 1.0, 1.0, 0.0, 0.6, 0.8]);
//! let inputs = Inputs {
//!     img: HostMatrix::new("img", &img, 2, 2)?,
//!     txt: HostMatrix::new("txt", &txt, 3, 2)?,
//!     log_temp: 0.0,
//!     bias: 0.0,
//! };
//! // Two images against three texts: image i belongs to text i + 1.
//! let problem = Problem::block(2, 3, 2, DType::F32, Positives::Diagonal { offset: 1 });
//! let mut loss = 0.0;
//! Plan::new(problem)?.forward(&inputs, &mut loss)?;
//! let softplus = |z: f32| z.exp().ln_1p();
//! // Logits are [0, 1, 0.6] and [1, 0, 0.8], positives the second and the third.
//! let expected = (softplus(0.0) + softplus(-1.0) + softplus(0.6) + softplus(1.0) + softplus(0.0) + softplus(-0.8)) / 2.0;
//! assert!((loss - expected).abs() < 1e-6);
//! # Ok::<(), siglip_kernel::Error>(())
//! ```
#![deny(missing_docs)]

mod blocks;
pub mod cpu;
mod design;
mod engines;
mod error;
mod io;
mod kernels;
mod loan;
mod plan;
mod problem;
mod programs;
mod simple;
mod tune;
mod workspace;

pub use kernel_core;
pub use kernel_core::{DType, Gpu, MatrixView, MatrixViewMut, Scalar, VectorViewMut};

pub use design::plan_variants;
pub use error::{Error, Result};
pub use io::{Inputs, Outputs};
pub use plan::{Plan, workspace_bytes};
pub use problem::{Chunk, Options, Positives, Problem, Route};
pub use programs::variants;
pub use simple::{Gradients, forward, forward_backward};
pub use tune::{tune, tune_in};

/// The README's examples, compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
