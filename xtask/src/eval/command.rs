//! The command.

use super::file::{Input, Names, Output};
use crate::card;
use crate::siglip::{DeviceCall, Number, Step, on_host, options};
use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use half::{bf16, f16};
use kernel_core::Gpu;
use reference_cpu::siglip::{Positives, SiglipParams};
use safetensors::tensor::Dtype;
use siglip_kernel::{Plan, Route};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

/// Run one operation on tensors from a safetensors file, to compare with any other implementation
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    operation: Operation,
}

#[derive(Debug, Subcommand)]
enum Operation {
    /// SigLIP loss and all gradients: img [N, D], txt [M, D], log_temp, bias in; loss, d_img, d_txt, d_log_temp, d_bias out
    ///
    /// img and txt are F32, F16 or BF16 alike; log_temp and bias are single F32 values. What the flags leave open is taken from the
    /// file's metadata (positives, offset, upstream, batch), then from the defaults.
    Siglip(Siglip),
    /// Gated layer and all gradients: x [M, K], w, dz [M, N], optionally a bias of 2N values in; z, dx, dw, d_bias out
    ///
    /// w is [K, 2N], or [2N, K] with --layout linear; with --layout separate there are w_gate and w_up [K, N] instead, and dw_gate and dw_up
    /// come out. All are F32, F16 or BF16 alike. What the flags leave open is taken from the file's metadata (layout, gate), then from the
    /// defaults.
    Swiglu(super::swiglu::Swiglu),
    /// MaxSim scores: query_tokens and doc_tokens (or code_tokens) in; scores out, and with d_scores the gradients of the tokens
    ///
    /// Tokens are [N, L, d], or [total, d] with query_offsets and doc_offsets (code_offsets) of N + 1 entries, or for K documents a query
    /// [Nq, K, L, d]; all F32, F16 or BF16 alike. query_mask and doc_mask or code_mask (BOOL or U8, true to keep) are optional, and so is pairs
    /// [n, 2] of (query, document). Every query meets every document unless pairs, --pairs or the fourth axis say otherwise.
    Maxsim(super::maxsim::Maxsim),
}

#[derive(Debug, clap::Args)]
struct Siglip {
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// cpu, or cuda:0 and so on
    #[arg(long, default_value = "cpu")]
    device: Device,
    #[arg(long, help = among(&Route::ALL, "on a GPU only"))]
    route: Option<Route>,
    /// Rows of a chunk; on a GPU only [default: chosen for the device]
    #[arg(long)]
    chunk: Option<usize>,
    /// Which pairs are positive [default: diagonal]
    #[arg(long, value_enum)]
    positives: Option<Pairs>,
    /// Row i is positive with column i + offset [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    offset: Option<i64>,
    /// Gradient that arrives at the loss; scales all gradients [default: 1]
    #[arg(long, allow_hyphen_values = true)]
    upstream: Option<f32>,
    /// Divisor of the sum over pairs [default: rows of img]
    #[arg(long)]
    batch: Option<usize>,
}

/// The help of a flag that takes one of `all`.
pub(super) fn among<R: std::fmt::Display>(all: &[R], what: &str) -> String {
    let names: Vec<String> = all.iter().map(R::to_string).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}; {what}", rest.join(", ")),
        _ => format!("{}; {what}", names.concat()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pairs {
    Diagonal,
    None,
}

impl FromStr for Pairs {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    Cpu,
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
        match (text, ordinal) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(ordinal)) => Ok(Self::Cuda(ordinal)),
            _ => Err(format!("found `{text}`, expected `cpu` or `cuda:N`")),
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("reading {}", path.display()));
    match args.operation {
        Operation::Siglip(args) => {
            evaluate(&args, &read(&args.input)?).with_context(|| format!("in {}", args.input.display()))
        }
        Operation::Swiglu(args) => {
            let bytes = read(&args.input)?;
            super::swiglu::evaluate(&args, &bytes).with_context(|| format!("in {}", args.input.display()))
        }
        Operation::Maxsim(args) => {
            let bytes = read(&args.input)?;
            super::maxsim::evaluate(&args, &bytes).with_context(|| format!("in {}", args.input.display()))
        }
    }
}

const TENSORS: Names = Names { needs: "img, txt, log_temp, bias", known: &["img", "txt", "log_temp", "bias"] };

fn evaluate(args: &Siglip, bytes: &[u8]) -> Result<()> {
    let input = Input::parse(bytes, TENSORS)?;
    match input.dtype("img")? {
        Dtype::F32 => evaluate_as::<f32>(args, &input),
        Dtype::F16 => evaluate_as::<f16>(args, &input),
        Dtype::BF16 => evaluate_as::<bf16>(args, &input),
        other => bail!("tensor `img`: found dtype {other:?}, expected F32, F16 or BF16"),
    }
}

fn evaluate_as<T: Number>(args: &Siglip, input: &Input<'_>) -> Result<()> {
    let ([rows, dim], img) = input.matrix::<T>("img")?;
    let ([cols, txt_dim], txt) = input.matrix::<T>("txt")?;
    if txt_dim != dim {
        bail!("tensor `txt`: found shape [{cols}, {txt_dim}], expected [{cols}, {dim}], the D of img");
    }
    let params = params(args, input, rows)?;
    let (step, route) = match args.device {
        Device::Cpu => {
            if args.route.is_some() || args.chunk.is_some() {
                bail!("--route and --chunk choose among GPU kernels: expected --device cuda:N with them, found cpu");
            }
            (on_host(&img, &txt, dim, &params)?, "reference-cpu".to_owned())
        }
        Device::Cuda(ordinal) => on_gpu(args, &card::open(ordinal)??, &img, &txt, dim, &params)?,
    };
    let mut output = Output::default();
    output.push("loss", &[], &[step.loss]);
    output.push("d_img", &[rows, dim], &step.d_img);
    output.push("d_txt", &[cols, dim], &step.d_txt);
    output.push("d_log_temp", &[], &[step.d_log_temp]);
    output.push("d_bias", &[], &[step.d_bias]);
    output.save(&args.output, HashMap::from([("route".to_owned(), route.clone())]))?;
    println!("loss {} ({route}); wrote {}", step.loss, args.output.display());
    Ok(())
}

/// Flags before metadata before defaults.
fn params(args: &Siglip, input: &Input<'_>, rows: usize) -> Result<SiglipParams> {
    let pairs = args.positives.or(input.metadata("positives", "`diagonal` or `none`")?).unwrap_or(Pairs::Diagonal);
    let offset = args.offset.or(input.metadata("offset", "an integer")?);
    let positives = match (pairs, offset) {
        (Pairs::Diagonal, offset) => Positives::Diagonal { offset: offset.unwrap_or(0) },
        (Pairs::None, None) => Positives::None,
        (Pairs::None, Some(offset)) => {
            bail!("an offset ({offset}) with positives `none`: expected `diagonal` or no offset")
        }
    };
    Ok(SiglipParams {
        log_temp: input.scalar("log_temp")?,
        bias: input.scalar("bias")?,
        positives,
        batch: args.batch.or(input.metadata("batch", "a positive integer")?).unwrap_or(rows),
        upstream: args.upstream.or(input.metadata("upstream", "a number")?).unwrap_or(1.0),
    })
}

fn on_gpu<T: Number>(
    args: &Siglip,
    gpu: &Gpu,
    img: &[T],
    txt: &[T],
    dim: usize,
    params: &SiglipParams,
) -> Result<(Step<T>, String)> {
    let mut call = DeviceCall::new(gpu, img, txt, dim, params)?;
    let mut plan = Plan::new(gpu, call.problem, options(args.route.unwrap_or_default(), args.chunk))?;
    call.poison()?;
    call.step(&mut plan)?;
    Ok((call.results()?, format!("{} on {}", plan.route(), gpu.info().name)))
}
