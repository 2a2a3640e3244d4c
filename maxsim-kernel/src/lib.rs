//! Late-interaction scores (MaxSim) on NVIDIA GPUs, forward and backward, and top-k search.
//!
//! ```text
//! s[q, d] = Σ_i max_j ⟨Q[q, i], D[d, j]⟩
//! ```
//!
//! for the tokens i of query q and j of document d that the masks keep: what ColBERT scores passages with (Khattab and Zaharia,
//! [arXiv 2004.12832](https://arxiv.org/abs/2004.12832), section 3.3) and ColPali page images (Faysse et al., [arXiv 2407.01449](https://arxiv.org/abs/2407.01449)).
//! With the argmax a(q, i, d) of each maximum, and g the gradient of the scores,
//!
//! ```text
//! d_Q[q, i] = Σ_d g[q, d] D[d, a(q, i, d)]        d_D[d, j] = Σ_{q, i : a(q, i, d) = j} g[q, d] Q[q, i]
//! ```
//!
//! A [`Problem`] says which texts there are ([`Spans`]), which of them meet ([`Pairing`]) and how tokens are compared; a [`Plan`] computes it on a
//! device ([`Plan::forward`], [`Plan::backward`]), [`cpu::Plan`] without one, and [`TopK`] ranks documents. Every layout is a list of (query, document)
//! items for the same kernels; the matrix of token similarities is never held.
//!
//! # Shapes and dtypes
//! | [`Pairing`] | queries | documents | scores |
//! |---|---|---|---|
//! | [`Cross`](Pairing::Cross) | `[Nq, Lq, d]` | `[Nd, Ld, d]` | `[Nq, Nd]` |
//! | [`Candidates`](Pairing::Candidates) | `[Nq, Lq, d]` | `[Nq, K, Ld, d]` | `[Nq, K]` |
//! | [`Pairs`](Pairing::Pairs) | `[B, Lq, d]` | `[B, Ld, d]` | `[B]` |
//! | [`List`](Pairing::List) of (query, document) | `[Nq, Lq, d]` | `[Nd, Ld, d]` | one a pair |
//!
//! Either side is padded as here, or packed: `[tokens, d]` and offsets, where no time is spent on padding ([`Packing`] moves padded tokens to packed rows). Either has a mask if wanted, a byte a
//! token, with any holes. d is 1 to 1024 ([`MAX_DIM`]), a text 0 to 262,144 tokens ([`MAX_TOKENS`]), a side up to 2³¹ − 1 tokens and more than 2³¹ elements. Tokens and
//! gradients are all f32, all f16 or all bf16, with any row stride; scores are f32, choices i32 and the caller's: written on request, in the layout of
//! the scores with one entry for each query token ([`argmax_offset`]). [`Problem::normalize`] divides each token by √max(|x|², 1e-12), in the gradients too.
//!
//! On the route `Hopper`, rows whose d is a multiple of 8 must begin at multiples of 16 bytes; those of another d are copied to padded rows first, as
//! on `Portable` in 16 bits.
//!
//! # Cost
//! | | flop | memory traffic at least |
//! |---|---|---|
//! | scores | 2·d for each pair of kept tokens that meet ([`Problem::forward_flop`]) | both sides once, the documents once for every 64 to 192 query tokens (from the L2 cache where a chunk of them fits) |
//! | gradients | 2·d for each choice and each side | a row for each choice and side |
//!
//! A batch is bound by the products, a lone query by reading the corpus. Documents that a mask ends early, or that are packed, cost what they hold.
//!
//! [`workspace_bytes`] tells the device memory of a plan ahead of time, [`Plan::workspace_bytes`] what it holds; a call allocates nothing. That memory is:
//!
//! | what | bytes |
//! |---|---|
//! | queries of more than 64 tokens | 4 for each score and 64 tokens of its query |
//! | [`LowMemory`](BackwardRoute::LowMemory), fewer than 4096 query tokens, over 64 documents a query | 4·d for each query token and part, at most 4·d·4096 |
//! | [`Unified`](BackwardRoute::Unified) | 4·d for each document token |
//! | 16 bits, d no multiple of 8 | 2·d, d rounded up to 8, for each token of both sides |
//! | normalisation | 4 a token |
//! | masks | 1/8 a token and 12 a text; of documents 8 a score's document more |
//! | packed texts, lists | 8 a text; 24 a pair |
//!
//! With [`BackwardRoute::None`], for scores alone, nothing is held for gradients. [`TopK`] scores a corpus in runs of 128 MB and holds one workspace for all,
//! at most 64 MB of scores, and 16·k bytes a query ([`TopK::required_bytes`]); [`TopK::search_host`] two runs more.
//!
//! # Routes
//! | [`Route`] | dtypes | GPUs | how |
//! |---|---|---|---|
//! | [`Hopper`](Route::Hopper) | f16, bf16 | sm_90 (H100, H200) | TMA and warpgroup products; several short queries share a tile of 64 rows and every document tile they meet. Few query rows that meet many documents: documents are streamed past them at the rate of the memory |
//! | [`Portable`](Route::Portable) | f16, bf16 | sm_80 and newer | `mma.sync`; rows that begin at no multiple of 16 bytes though d is a multiple of 8 on f32 units |
//! | [`Portable`](Route::Portable) | f32 | sm_80 and newer | f32 units, no TF32 |
//!
//! [`Auto`](Route::Auto) takes `Hopper` where it can. Gradients of either route are [`LowMemory`](BackwardRoute::LowMemory), where each token's sum has one owner, or
//! [`Unified`](BackwardRoute::Unified), by atomic additions; [`Auto`](BackwardRoute::Auto) takes the former.
//!
//! # Numerics
//! Products of 16-bit numbers are exact in f32, and all sums are f32. Against f64 on the inputs as rounded to their dtype:
//!
//! * Scores are within 4e-6 of the largest, relative to Σ_i |Q[q, i]| · max_j |D[d, j]| where terms cancel, whatever the dtype.
//! * Gradients are f32 sums, rounded once to the dtype: within 4e-6 (f32), 2⁻¹¹ (f16) and 2⁻⁸ (bf16) of the largest and some f32 roundings. They follow the choices
//!   that are given; of maxima that differ by less than a rounding, either may be chosen.
//! * Equal similarities count for the lowest index. A text without kept tokens scores exactly 0 and has a gradient of exactly 0, as has a token that nothing chose.
//! * A NaN or an infinity in a token that counts reaches the scores that it touches, and is chosen where it is the maximum (NaN beats every number). With `normalize` a token
//!   with an infinity has no direction: its similarities are NaN, and which document token such a query token chooses is not promised. What a masked token holds never matters.
//! * The same plan gives the same scores, choices and `LowMemory` gradients on every run, bit for bit; `Unified` gradients of documents may differ.
//!
//! # CUDA graphs
//! A call queues its work on the plan's stream and returns: no allocation, no host sync. It can be captured, on a stream of its own and with cudarc's
//! event tracking off ([`Gpu`] says why), after one like it outside of the capture: with or without argmax as it, and with the same rows (address, stride and alignment).
//! A captured call replays with the addresses it was captured with. [`TopK`] waits for its results, so it cannot be captured.
//!
//! # Errors
//! A mistake in a call gives an [`enum@Error`] that names the argument, what was found and what was expected: shape, dtype, device, stride, alignment, overlap of inputs and
//! outputs, zero sizes; a missing driver or NVRTC, or one that fails, or too little memory. Calls do not panic, and write nothing before all arguments are checked. Only arithmetic
//! about one text or score of a problem, such as [`Spans::span`] and [`Problem::pair`], may panic where there is no such text or score. Building needs no CUDA; kernels are
//! compiled at run time, once, and kept on disk.
//!
//! # Examples
//! A training step:
//!
//! ```no_run
//! use maxsim_kernel::kernel_core::half::bf16;
//! use maxsim_kernel::{
//!     DType, Gpu, Gradients, Inputs, MatrixView, MatrixViewMut, Options, Plan, Problem, Spans, VectorView, VectorViewMut,
//! };
//!
//! let gpu = Gpu::new(0)?;
//! let (queries, docs, dim) = (Spans::padded(64, 32), Spans::padded(64, 180), 128);
//! let problem = Problem::cross(queries.clone(), docs.clone(), dim, DType::Bf16).with_normalize(true);
//! let (scores, choices) = (problem.scores(), problem.argmaxes());
//! let mut plan = Plan::new(&gpu, problem, Options::default())?;
//! // From your encoder; zeroed here.
//! let (q, d) = (gpu.alloc::<bf16>(queries.rows() * dim)?, gpu.alloc::<bf16>(docs.rows() * dim)?);
//! let (mut d_q, mut d_d) = (gpu.alloc::<bf16>(queries.rows() * dim)?, gpu.alloc::<bf16>(docs.rows() * dim)?);
//! let (mut s, mut argmax) = (gpu.alloc::<f32>(scores)?, gpu.alloc::<i32>(choices)?);
//! // From your loss on the scores.
//! let d_s = gpu.alloc::<f32>(scores)?;
//!
//! // Every step:
//! let inputs = Inputs {
//!     queries: MatrixView::new("queries", &q, [queries.rows(), dim])?,
//!     docs: MatrixView::new("docs", &d, [docs.rows(), dim])?,
//!     query_mask: None,
//!     doc_mask: None,
//! };
//! let mut argmax = VectorViewMut::new("argmax", &mut argmax, [choices])?;
//! plan.forward(&inputs, &mut VectorViewMut::new("scores", &mut s, [scores])?, Some(&mut argmax))?;
//! let mut gradients = Gradients {
//!     d_queries: Some(MatrixViewMut::new("d_queries", &mut d_q, [queries.rows(), dim])?),
//!     d_docs: Some(MatrixViewMut::new("d_docs", &mut d_d, [docs.rows(), dim])?),
//! };
//! plan.backward(&inputs, &VectorView::new("d_scores", &d_s, [scores])?, &argmax.as_view(), &mut gradients)?;
//! # Ok::<(), maxsim_kernel::Error>(())
//! ```
//!
//! On the CPU, the scores of one query and which tokens it chose:
//!
//! ```
//! use maxsim_kernel::cpu::{HostMatrix, Inputs, Plan};
//! use maxsim_kernel::{DType, Problem, Ranking, Spans};
//!
//! // A query of two tokens; documents of two, none and one.
//! let (query, docs) = ([1.0f32, 0.0, 0.0, 2.0], [3.0f32, 1.0, 0.5, 4.0, -1.0, 5.0]);
//! let inputs = Inputs {
//!     queries: HostMatrix::new("queries", &query, 2, 2)?,
//!     docs: HostMatrix::new("docs", &docs, 3, 2)?,
//!     query_mask: None,
//!     doc_mask: None,
//! };
//! let plan = Plan::new(Problem::cross(Spans::padded(1, 2), Spans::of_lengths([2, 0, 1]), 2, DType::F32))?;
//! let (mut scores, mut choices) = ([0.0; 3], [0; 6]);
//! plan.forward(&inputs, &mut scores, Some(&mut choices))?;
//! assert_eq!(scores, [3.0 + 8.0, 0.0, -1.0 + 10.0]);
//! assert_eq!(choices, [0, 1, -1, -1, 0, 0]);
//! assert_eq!(Ranking::of_scores(&scores, 3, 2)?.docs, [0, 2]);
//! # Ok::<(), maxsim_kernel::Error>(())
//! ```
#![deny(missing_docs)]

mod backward;
pub mod cpu;
mod design;
mod error;
mod io;
mod kernels;
mod packing;
mod plan;
mod problem;
mod programs;
mod ranking;
mod rows;
mod runs;
mod scorer;
mod spans;
mod tables;
mod tiles;
mod top_k;
mod workspace;

pub use kernel_core;
pub use kernel_core::{DType, Gpu, MatrixView, MatrixViewMut, VectorView, VectorViewMut};

pub use design::workspace_bytes;
pub use error::{Error, Result};
pub use io::{Gradients, Inputs};
pub use packing::{Packing, packed_spans};
pub use plan::{Plan, argmax_offset};
pub use problem::{BackwardRoute, MAX_DIM, Options, Pairing, Problem, Route};
pub use programs::variants;
pub use ranking::Ranking;
pub use spans::{MAX_TOKENS, Spans};
pub use top_k::TopK;

/// The README's examples, compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
