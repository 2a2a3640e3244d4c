//! The CUDA sources of this crate and every variant of them that can be launched.

use kernel_core::cuda::{element, flag};
use kernel_core::{DType, Program, Variant};

use crate::kernels::{Choosers, FinishGradients, ForwardMma, Prepare, Shape, StreamShape};
use crate::rows::RowAccess;

const HEADERS: &[(&str, &str)] = &[
    ("forward.cuh", include_str!("../cuda/forward.cuh")),
    ("forward_sm90/adder.cuh", include_str!("../cuda/forward_sm90/adder.cuh")),
    ("forward_sm90/consumer.cuh", include_str!("../cuda/forward_sm90/consumer.cuh")),
    ("forward_sm90/control.cuh", include_str!("../cuda/forward_sm90/control.cuh")),
    ("forward_sm90/producer.cuh", include_str!("../cuda/forward_sm90/producer.cuh")),
    ("forward_sm90/search.cuh", include_str!("../cuda/forward_sm90/search.cuh")),
    ("found.cuh", include_str!("../cuda/found.cuh")),
    ("gradients.cuh", include_str!("../cuda/gradients.cuh")),
    ("items.cuh", include_str!("../cuda/items.cuh")),
    ("rows.cuh", include_str!("../cuda/rows.cuh")),
    ("stream.cuh", include_str!("../cuda/stream.cuh")),
    ("texts.cuh", include_str!("../cuda/texts.cuh")),
];

macro_rules! program {
    ($name:ident, $file:literal) => {
        pub(crate) static $name: Program = Program {
            name: concat!("maxsim/", $file),
            source: include_str!(concat!("../cuda/", $file, ".cu")),
            headers: HEADERS,
        };
    };
}

program!(PREPARE, "prepare");
program!(FORWARD_PORTABLE, "forward_portable");
program!(FORWARD_MMA, "forward_mma");
program!(FORWARD_SM90, "forward_sm90");
program!(FORWARD_STREAM, "forward_stream");
program!(FORWARD_STREAM_WIDE, "forward_stream_wide");
program!(SETTLE, "settle");
program!(TOP_K, "top_k");
program!(BACKWARD_QUERIES, "backward_queries");
program!(BACKWARD_DOCS, "backward_docs");
program!(FINISH_GRADIENTS, "finish_gradients");
program!(GATHER_ROWS, "gather_rows");

fn row_defines(dtype: DType, access: RowAccess) -> Vec<(&'static str, String)> {
    vec![
        ("ELEMENT", element(dtype)),
        ("VECTORIZED", flag(access.vectorized)),
        ("ROW_LANES", access.lanes.to_string()),
        ("ROW_SLICES", access.slices.to_string()),
    ]
}

/// `entry`: of `prepare.cu`.
pub(crate) fn prepare(dtype: DType, entry: &'static str) -> Variant {
    let defines = vec![("ELEMENT", element(dtype))];
    Variant { program: &PREPARE, entry, defines, hot: false, min_arch: Some("sm_80") }
}

pub(crate) fn forward_portable(dtype: DType, argmax: bool) -> Variant {
    Variant {
        program: &FORWARD_PORTABLE,
        entry: "maxsim_forward_portable",
        defines: vec![("ELEMENT", element(dtype)), ("WITH_ARGMAX", flag(argmax))],
        hot: true,
        min_arch: Some("sm_80"),
    }
}

/// `steps`: 16-element steps of d held in registers, or 0.
pub(crate) fn forward_mma(dtype: DType, steps: usize, argmax: bool) -> Variant {
    let defines = vec![("ELEMENT", element(dtype)), ("WITH_ARGMAX", flag(argmax)), ("QUERY_STEPS", steps.to_string())];
    Variant { program: &FORWARD_MMA, entry: "maxsim_forward_mma", defines, hot: true, min_arch: Some("sm_80") }
}

pub(crate) fn forward_sm90(dtype: DType, shape: Shape, argmax: bool) -> Variant {
    Variant {
        program: &FORWARD_SM90,
        entry: "maxsim_forward_sm90",
        defines: vec![
            ("ELEMENT", element(dtype)),
            ("WITH_ARGMAX", flag(argmax)),
            ("TILE_TOKENS", shape.tokens.to_string()),
            ("QUERY_BLOCKS", shape.query_blocks.to_string()),
            ("NORMALIZED", flag(shape.norms)),
        ],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

pub(crate) fn forward_stream(dtype: DType, shape: StreamShape, argmax: bool) -> Variant {
    let mut defines = vec![
        ("ELEMENT", element(dtype)),
        ("WITH_ARGMAX", flag(argmax)),
        ("MAX_STAGES", format!("{}u", shape.max_stages())),
    ];
    let (program, entry) = if shape.wide() {
        defines.push(("ROWS", format!("{}u", shape.rows())));
        (&FORWARD_STREAM_WIDE, "maxsim_forward_stream_wide")
    } else {
        defines.push(("ROW_PIECES", shape.row_pieces.to_string()));
        defines.push(("QUERY_STEPS", shape.query_steps.to_string()));
        (&FORWARD_STREAM, "maxsim_forward_stream")
    };
    Variant { program, entry, defines, hot: true, min_arch: Some("sm_90a") }
}

pub(crate) fn settle(dtype: DType) -> Variant {
    let defines = vec![("ELEMENT", element(dtype))];
    Variant { program: &SETTLE, entry: "maxsim_settle", defines, hot: false, min_arch: Some("sm_80") }
}

pub(crate) fn top_k() -> Variant {
    Variant { program: &TOP_K, entry: "maxsim_top_k", defines: Vec::new(), hot: false, min_arch: Some("sm_80") }
}

/// `docs`: also sums the documents' gradient, by atomic additions.
pub(crate) fn backward_queries(dtype: DType, access: RowAccess, docs: bool) -> Variant {
    let mut defines = row_defines(dtype, access);
    defines.push(("WITH_DOCS", flag(docs)));
    Variant {
        program: &BACKWARD_QUERIES,
        entry: "maxsim_backward_queries",
        defines,
        hot: true,
        min_arch: Some("sm_80"),
    }
}

pub(crate) fn backward_docs(dtype: DType, access: RowAccess, choosers: Choosers) -> Variant {
    let mut defines = row_defines(dtype, access);
    defines.push(("OWNED", format!("{}u", choosers.owned())));
    defines.push(("BLOCK_WARPS", choosers.warps().to_string()));
    defines.push(("NEIGHBOURS", flag(choosers == Choosers::Few)));
    defines.push(("RESIDENT", choosers.resident(dtype, access).to_string()));
    Variant { program: &BACKWARD_DOCS, entry: "maxsim_backward_docs", defines, hot: true, min_arch: Some("sm_80") }
}

/// `entry`: `maxsim_finish` or `maxsim_clear`.
pub(crate) fn finish_gradients(dtype: DType, access: RowAccess, entry: &'static str) -> Variant {
    let defines = row_defines(dtype, access);
    Variant { program: &FINISH_GRADIENTS, entry, defines, hot: false, min_arch: Some("sm_80") }
}

pub(crate) fn gather_rows(dtype: DType) -> Variant {
    Variant {
        program: &GATHER_ROWS,
        entry: "maxsim_gather_rows",
        defines: vec![("ELEMENT", element(dtype))],
        hot: false,
        min_arch: Some("sm_80"),
    }
}

/// Every kernel that this crate can launch.
pub fn variants() -> Vec<Variant> {
    let mut all = vec![top_k()];
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        all.extend(Prepare::variants(dtype));
        all.push(gather_rows(dtype));
        for on in [false, true] {
            all.push(forward_portable(dtype, on));
        }
        for access in RowAccess::all(dtype) {
            for docs in [false, true] {
                all.push(backward_queries(dtype, access, docs));
            }
            for choosers in Choosers::ALL {
                all.push(backward_docs(dtype, access, choosers));
            }
            all.extend(FinishGradients::variants(dtype, access));
        }
    }
    for dtype in [DType::F16, DType::Bf16] {
        for argmax in [false, true] {
            all.extend(Shape::all().map(|shape| forward_sm90(dtype, shape, argmax)));
            all.extend(StreamShape::all().map(|shape| forward_stream(dtype, shape, argmax)));
            all.extend(ForwardMma::all_steps().map(|steps| forward_mma(dtype, steps, argmax)));
        }
        all.push(settle(dtype));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn variants_are_distinct_and_name_their_entries() {
        let all = variants();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        for variant in all {
            assert!(variant.program.source.contains(variant.entry), "{variant:?}");
            let texts: String = variant.program.all_headers().map(|(_, text)| text).collect();
            for (name, _) in &variant.defines {
                let used = variant.program.source.contains(name) || texts.contains(name);
                assert!(used, "{name} in {}", variant.program.name);
            }
        }
    }
}
