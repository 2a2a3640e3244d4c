//! `xtask eval swiglu`.

use super::command::{Device, among};
use super::file::{Input, Names, Output};
use crate::card;
use crate::siglip::Number;
use crate::swiglu::{DeviceCall, Step, Tensors, on_host};
use anyhow::{Result, bail};
use half::{bf16, f16};
use kernel_core::Gpu;
use safetensors::tensor::Dtype;
use std::collections::HashMap;
use std::path::PathBuf;
use swiglu_kernel::{Gate, Layout, Mode, Order, Problem, Route};

#[derive(Debug, clap::Args)]
pub(super) struct Swiglu {
    #[arg(long, value_name = "FILE")]
    pub(super) input: PathBuf,
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// cpu, or cuda:0 and so on
    #[arg(long, default_value = "cpu")]
    device: Device,
    #[arg(long, help = among(&Route::ALL, "on a GPU only"))]
    route: Option<Route>,
    /// packed, packed-gate-second, linear, linear-gate-second, separate or separate-linear [default: packed]
    #[arg(long)]
    layout: Option<Layout>,
    /// silu, gelu-tanh, relu or sigmoid [default: silu]
    #[arg(long)]
    gate: Option<Gate>,
    /// in-place: the backward reads saved pre-activations; recompute: it computes them again
    #[arg(long, default_value = "in-place")]
    mode: Mode,
}

const TENSORS: Names =
    Names { needs: "x, w (or w_gate, w_up), dz, optionally bias", known: &["x", "w", "w_gate", "w_up", "dz", "bias"] };

pub(super) fn evaluate(args: &Swiglu, bytes: &[u8]) -> Result<()> {
    let input = Input::parse(bytes, TENSORS)?;
    match input.dtype("x")? {
        Dtype::F32 => evaluate_as::<f32>(args, &input),
        Dtype::F16 => evaluate_as::<f16>(args, &input),
        Dtype::BF16 => evaluate_as::<bf16>(args, &input),
        other => bail!("tensor `x`: found dtype {other:?}, expected F32, F16 or BF16"),
    }
}

fn evaluate_as<T: Number>(args: &Swiglu, input: &Input<'_>) -> Result<()> {
    if args.mode == Mode::Inference {
        bail!("--mode inference has no gradients: expected in-place or recompute");
    }
    let tensors = read::<T>(args, input)?;
    let Problem { rows, inputs, outputs, layout, .. } = tensors.problem;
    let (step, route) = match args.device {
        Device::Cpu => {
            if args.route.is_some() {
                bail!("--route chooses among GPU kernels: expected --device cuda:N with it, found cpu");
            }
            (on_host(&tensors, args.mode == Mode::InPlace)?, "reference-cpu".to_owned())
        }
        Device::Cuda(ordinal) => on_gpu(args, &card::open(ordinal)??, &tensors)?,
    };
    let mut output = Output::default();
    output.push("z", &[rows, outputs], &step.z);
    output.push("dx", &[rows, inputs], &step.dx);
    for (name, values) in names(layout).iter().zip(&step.d_weights) {
        output.push(&format!("d{name}"), &layout.shape(inputs, outputs), values);
    }
    if !step.d_bias.is_empty() {
        output.push("d_bias", &[2 * outputs], &step.d_bias);
    }
    output.save(&args.output, HashMap::from([("route".to_owned(), route.clone())]))?;
    println!("{} {layout} ({route}); wrote {}", tensors.problem.gate, args.output.display());
    Ok(())
}

/// What weights are called in any layout.
const WEIGHTS: [&str; 3] = ["w", "w_gate", "w_up"];

/// The weights' names in the file.
fn names(layout: Layout) -> &'static [&'static str] {
    if layout.is_joined() { &["w"] } else { &["w_gate", "w_up"] }
}

/// Flags before metadata before defaults.
fn read<T: Number>(args: &Swiglu, input: &Input<'_>) -> Result<Tensors<T>> {
    let layout = args.layout.or(input.metadata("layout", "a layout such as `packed`")?);
    let layout = layout.unwrap_or(Layout::Packed(Order::GateFirst));
    let gate = args.gate.or(input.metadata("gate", "silu, gelu-tanh, relu or sigmoid")?).unwrap_or(Gate::Silu);
    let ([rows, inputs], x) = input.matrix::<T>("x")?;
    let ([dz_rows, outputs], dz) = input.matrix::<T>("dz")?;
    if dz_rows != rows {
        bail!("tensor `dz`: found shape [{dz_rows}, {outputs}], expected [{rows}, N], the M of x");
    }
    // Of two forms of the weights one would be left out unnoticed.
    if let Some(name) = WEIGHTS.into_iter().find(|name| input.has(name) && !names(layout).contains(name)) {
        bail!("tensor `{name}`: the layout {layout} does not use it; expected {}", names(layout).join(", "));
    }
    let expected = layout.shape(inputs, outputs);
    let mut weights = Vec::new();
    for name in names(layout) {
        let (shape, values) = input.matrix::<T>(name)?;
        if shape != expected {
            bail!("tensor `{name}`: found shape {shape:?}, expected {expected:?} for the layout {layout}");
        }
        weights.push(values);
    }
    let bias = if input.has("bias") { input.vector::<T>("bias", 2 * outputs)? } else { Vec::new() };
    let problem = Problem::new(rows, inputs, outputs, <T as kernel_core::Element>::DTYPE);
    let problem = problem.with_layout(layout).with_gate(gate).with_bias(!bias.is_empty());
    Ok(Tensors { problem, x, weights, bias, dz })
}

fn on_gpu<T: Number>(args: &Swiglu, gpu: &Gpu, tensors: &Tensors<T>) -> Result<(Step<T>, String)> {
    let mut call = DeviceCall::new(gpu, tensors, args.mode)?;
    let mut plan = call.plan(args.route.unwrap_or_default())?;
    call.poison()?;
    call.step(&mut plan, args.mode)?;
    Ok((call.results()?, format!("{} on {}", plan.route(), gpu.info().name)))
}
