//! `xtask eval maxsim`.

use super::command::{Device, among};
use super::file::{Input, Names, Output};
use crate::card;
use crate::maxsim::{DeviceCall, Found, Tensors, on_host};
use crate::siglip::Number;
use anyhow::{Result, bail};
use half::{bf16, f16};
use maxsim_kernel::{BackwardRoute, Options, Pairing, Problem, Route, Spans};
use safetensors::tensor::Dtype;
use std::collections::HashMap;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Maxsim {
    #[arg(long, value_name = "FILE")]
    pub(super) input: PathBuf,
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// cpu, or cuda:0 and so on
    #[arg(long, default_value = "cpu")]
    device: Device,
    #[arg(long, help = among(Route::ALL, "on a GPU only"))]
    route: Option<Route>,
    #[arg(long, help = among(BackwardRoute::ALL, "how gradients are summed, on a GPU only"))]
    backward: Option<BackwardRoute>,
    /// Score query i against document i alone
    #[arg(long)]
    pairs: bool,
    /// Divide each token by its norm
    #[arg(long)]
    normalize: bool,
}

const TENSORS: Names = Names {
    needs: "query_tokens, doc_tokens (or code_tokens), query_offsets and doc_offsets (or code_offsets) when packed, \
            optionally query_mask, doc_mask (or code_mask), pairs, d_scores",
    known: &[
        "query_tokens",
        "query_offsets",
        "query_mask",
        "doc_tokens",
        "doc_offsets",
        "doc_mask",
        "code_tokens",
        "code_offsets",
        "code_mask",
        "pairs",
        "d_scores",
    ],
};

/// What the tensors of a side may be called.
const QUERIES: &[&str] = &["query"];
const DOCS: &[&str] = &["doc", "code"];

pub(super) fn evaluate(args: &Maxsim, bytes: &[u8]) -> Result<()> {
    let input = Input::parse(bytes, TENSORS)?;
    match input.dtype("query_tokens")? {
        Dtype::F32 => evaluate_as::<f32>(args, &input),
        Dtype::F16 => evaluate_as::<f16>(args, &input),
        Dtype::BF16 => evaluate_as::<bf16>(args, &input),
        other => bail!("tensor `query_tokens`: found dtype {other:?}, expected F32, F16 or BF16"),
    }
}

/// One side of the file: the name of its rows, they, how they are cut, and their shape there.
struct Side<T> {
    name: String,
    tokens: Vec<T>,
    spans: Spans,
    shape: Vec<usize>,
    mask: Option<Vec<bool>>,
}

impl<T: Number> Side<T> {
    /// `prefix`_tokens: `[total, d]` with `prefix`_offsets, `[N, L, d]`, or for documents `[Nq, K, L, d]`. Each by any one of the prefixes.
    fn read(input: &Input<'_>, prefixes: &[&str]) -> Result<Self> {
        let called = |what: &str| input.any_of(prefixes.iter().map(|prefix| format!("{prefix}_{what}")).collect());
        let (name, offsets, mask) = (called("tokens")?, called("offsets")?, called("mask")?);
        let (shape, tokens) = input.array::<T>(&name)?;
        let spans = match (shape.as_slice(), input.has(&offsets)) {
            ([rows, _], true) => {
                let offsets_found = input.indices(&offsets)?;
                if offsets_found.last() != Some(rows) {
                    let last = offsets_found.last();
                    bail!("tensor `{offsets}`: found {last:?} as its last, expected {rows}, the rows of {name}");
                }
                Spans::packed(offsets_found)
            }
            ([.., _, _, _], true) => {
                bail!("tensor `{offsets}` beside padded `{name}` of shape {shape:?}: expected one of the two")
            }
            ([count, length, _], false) => Spans::padded(*count, *length),
            ([queries, k, length, _], false) => Spans::padded(queries * k, *length),
            _ => bail!("tensor `{name}`: found shape {shape:?}, expected [N, L, d], or [total, d] with `{offsets}`"),
        };
        let mask = if input.has(&mask) { Some(input.mask(&mask, spans.rows())?) } else { None };
        Ok(Self { name, tokens, spans, shape, mask })
    }

    fn dim(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }
}

fn evaluate_as<T: Number>(args: &Maxsim, input: &Input<'_>) -> Result<()> {
    let queries = Side::<T>::read(input, QUERIES)?;
    let docs = Side::<T>::read(input, DOCS)?;
    if docs.dim() != queries.dim() {
        let name = &docs.name;
        bail!("tensor `{name}`: found d = {}, expected {}, the d of query_tokens", docs.dim(), queries.dim());
    }
    let pairing = match (input.has("pairs"), args.pairs, docs.shape.as_slice()) {
        (true, true, _) => bail!("--pairs beside a tensor `pairs`: expected one of the two"),
        (true, false, _) => Pairing::List(input.index_pairs("pairs")?.into()),
        (false, true, _) => Pairing::Pairs,
        (false, false, [_, per_query, _, _]) => Pairing::Candidates { per_query: *per_query },
        _ => Pairing::Cross,
    };
    let dtype = <T as kernel_core::Element>::DTYPE;
    let problem = Problem::new(queries.spans.clone(), docs.spans.clone(), queries.dim(), dtype, pairing)
        .with_normalize(args.normalize)
        .with_masks(queries.mask.is_some(), docs.mask.is_some());
    let shape = match problem.pairing {
        Pairing::Cross => vec![queries.spans.count(), docs.spans.count()],
        Pairing::Candidates { per_query } => vec![queries.spans.count(), per_query],
        Pairing::Pairs => vec![queries.spans.count()],
        Pairing::List(ref list) => vec![list.len()],
    };
    let d_scores = if input.has("d_scores") {
        let (found, values) = input.array::<f32>("d_scores")?;
        if found != shape {
            bail!("tensor `d_scores`: found shape {found:?}, expected {shape:?}, that of the scores");
        }
        Some(values)
    } else {
        None
    };
    let tensors = Tensors {
        problem,
        queries: queries.tokens,
        docs: docs.tokens,
        query_mask: queries.mask,
        doc_mask: docs.mask,
        d_scores,
    };
    let (found, route) = compute(args, &tensors)?;
    let mut output = Output::default();
    output.push("scores", &shape, &found.scores);
    if tensors.d_scores.is_some() {
        output.push("d_query_tokens", &queries.shape, &found.d_queries);
        output.push(&format!("d_{}", docs.name), &docs.shape, &found.d_docs);
    }
    output.save(&args.output, HashMap::from([("route".to_owned(), route.clone())]))?;
    println!("scores {shape:?} ({route}); wrote {}", args.output.display());
    Ok(())
}

fn compute<T: Number>(args: &Maxsim, tensors: &Tensors<T>) -> Result<(Found<T>, String)> {
    match args.device {
        Device::Cpu => {
            if args.route.is_some() || args.backward.is_some() {
                bail!("--route and --backward choose among GPU kernels: expected --device cuda:N with them, found cpu");
            }
            Ok((on_host(tensors)?, "reference-cpu".to_owned()))
        }
        Device::Cuda(ordinal) => {
            let gpu = card::open(ordinal)??;
            let options =
                Options { route: args.route.unwrap_or_default(), backward: args.backward.unwrap_or_default() };
            let mut call = DeviceCall::new(&gpu, tensors, options)?;
            let (_, found) = call.run()?;
            let (route, backward) = (call.plan.route(), call.plan.backward_route());
            Ok((found, format!("{route}, {backward} on {}", gpu.info().name)))
        }
    }
}
