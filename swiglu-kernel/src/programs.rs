//! The CUDA sources of this crate and every variant of them that can be launched.

use kernel_core::cuda::{element, flag};
use kernel_core::{DType, Program, Variant};

use crate::kernels::decode::TOKENS;
use crate::kernels::forward_sm90::{self, ForwardTile};
use crate::kernels::input_gradient_sm90::TILES;
use crate::problem::{Gate, Layout, Order, Problem};

const HEADERS: &[(&str, &str)] = &[
    ("decode.cuh", include_str!("../cuda/decode.cuh")),
    ("gate.cuh", include_str!("../cuda/gate.cuh")),
    ("vector.cuh", include_str!("../cuda/vector.cuh")),
];

macro_rules! program {
    ($name:ident, $file:literal) => {
        pub(crate) static $name: Program = Program {
            name: concat!("swiglu/", $file),
            source: include_str!(concat!("../cuda/", $file, ".cu")),
            headers: HEADERS,
        };
    };
}

program!(FORWARD_SM90, "forward_sm90");
program!(DECODE, "decode");
program!(DECODE_SM90, "decode_sm90");
program!(INPUT_GRADIENT_SM90, "input_gradient_sm90");
program!(THROUGH_SM90, "through_sm90");
program!(WEIGHT_GRADIENT_SM90, "weight_gradient_sm90");
program!(GATE, "gate");
program!(COLUMN_SUMS, "column_sums");

/// Which axis of the weights is contiguous.
fn weights(linear: bool) -> String {
    if linear { "K" } else { "MN" }.to_owned()
}

fn activation(gate: Gate) -> String {
    match gate {
        Gate::Silu => "SILU",
        Gate::GeluTanh => "GELU_TANH",
        Gate::Relu => "RELU",
        Gate::Sigmoid => "SIGMOID",
    }
    .to_owned()
}

/// `save`: whether the pre-activations are written too.
pub(crate) fn forward_sm90(problem: &Problem, save: bool, tile: ForwardTile) -> Variant {
    Variant {
        program: &FORWARD_SM90,
        entry: "swiglu_forward_sm90",
        defines: vec![
            ("ELEMENT", element(problem.dtype)),
            ("ACTIVATION", activation(problem.gate)),
            ("WEIGHTS", weights(problem.layout.is_linear())),
            ("SAVE", flag(save)),
            ("WITH_BIAS", flag(problem.bias)),
            ("CLUSTER_SIZE", tile.cluster.to_string()),
            ("COLUMNS", tile.columns.to_string()),
        ],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// `rows` and `columns` of a tile of dx: one of [`TILES`].
pub(crate) fn input_gradient_sm90(problem: &Problem, [rows, columns]: [usize; 2]) -> Variant {
    Variant {
        program: &INPUT_GRADIENT_SM90,
        entry: "swiglu_input_gradient_sm90",
        defines: vec![
            ("ELEMENT", element(problem.dtype)),
            ("ACTIVATION", activation(problem.gate)),
            ("WEIGHTS", weights(problem.layout.is_linear())),
            ("ROWS", rows.to_string()),
            ("COLUMNS", columns.to_string()),
        ],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// `down_linear`: the down projection is stored `[K_out, N]`.
pub(crate) fn through_sm90(dtype: DType, gate: Gate, down_linear: bool, cluster: u32) -> Variant {
    Variant {
        program: &THROUGH_SM90,
        entry: "swiglu_through_sm90",
        defines: vec![
            ("ELEMENT", element(dtype)),
            ("ACTIVATION", activation(gate)),
            ("DOWN", if down_linear { "MN" } else { "K" }.to_owned()),
            ("CLUSTER_SIZE", cluster.to_string()),
        ],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

pub(crate) fn weight_gradient_sm90(dtype: DType) -> Variant {
    Variant {
        program: &WEIGHT_GRADIENT_SM90,
        entry: "swiglu_weight_gradient_sm90",
        defines: vec![("ELEMENT", element(dtype))],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// For at most `tokens` rows.
pub(crate) fn decode_sm90(dtype: DType, linear: bool, tokens: usize) -> Variant {
    Variant {
        program: &DECODE_SM90,
        entry: "swiglu_decode_sm90",
        defines: vec![("ELEMENT", element(dtype)), ("WEIGHTS", weights(linear)), ("TOKENS", tokens.to_string())],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// For at most `tokens` rows.
pub(crate) fn decode(dtype: DType, linear: bool, (tokens, stages): (usize, usize)) -> Variant {
    Variant {
        program: &DECODE,
        entry: "swiglu_decode",
        defines: vec![
            ("ELEMENT", element(dtype)),
            ("WEIGHTS", weights(linear)),
            ("TOKENS", tokens.to_string()),
            ("STAGES", stages.to_string()),
        ],
        hot: true,
        min_arch: Some("sm_80"),
    }
}

/// `entry`: `swiglu_gate_forward`, `swiglu_gate_backward` or `swiglu_round`. `vector`: elements of an access.
pub(crate) fn gate(dtype: DType, entry: &'static str, vector: usize) -> Variant {
    Variant {
        program: &GATE,
        entry,
        defines: vec![("ELEMENT", element(dtype)), ("VECTOR", vector.to_string())],
        hot: true,
        min_arch: Some("sm_80"),
    }
}

pub(crate) fn column_sums(dtype: DType, result: DType) -> Variant {
    Variant {
        program: &COLUMN_SUMS,
        entry: "swiglu_column_sums",
        defines: vec![("ELEMENT", element(dtype)), ("RESULT", element(result))],
        hot: false,
        min_arch: Some("sm_80"),
    }
}

/// Blocks of a cluster share the right operand's tiles. Measured on an H200: clusters of 2 are 2 to 20% faster than none.
pub(crate) const CLUSTER: u32 = 2;

/// Every kernel that this crate can launch.
pub fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for dtype in DType::ALL {
        for vector in [1, 8] {
            all.push(gate(dtype, "swiglu_gate_forward", vector));
            all.push(gate(dtype, "swiglu_gate_backward", vector));
            if dtype != DType::F32 {
                all.push(gate(dtype, "swiglu_round", vector));
            }
        }
        all.push(column_sums(dtype, dtype));
        if dtype != DType::F32 {
            all.push(column_sums(dtype, DType::F32));
        }
    }
    for dtype in [DType::F16, DType::Bf16] {
        all.push(weight_gradient_sm90(dtype));
        for gate in Gate::ALL {
            all.extend([false, true].map(|down_linear| through_sm90(dtype, gate, down_linear, CLUSTER)));
        }
        for layout in [Layout::Packed(Order::GateFirst), Layout::Linear(Order::GateFirst)] {
            for gate in Gate::ALL {
                let problem = Problem::new(1, 1, 1, dtype).with_layout(layout).with_gate(gate);
                all.extend(TILES.map(|tile| input_gradient_sm90(&problem, tile)));
                for (save, bias) in [(false, false), (false, true), (true, false), (true, true)] {
                    let problem = problem.with_bias(bias);
                    all.extend(forward_sm90::TILES.map(|tile| forward_sm90(&problem, save, tile)));
                }
            }
            for kind in TOKENS {
                all.push(decode(dtype, layout.is_linear(), kind));
                all.push(decode_sm90(dtype, layout.is_linear(), kind.0));
            }
        }
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
            let headers = variant.program.headers.iter().map(|(_, text)| *text);
            let text = headers.chain([variant.program.source]).collect::<String>();
            for (name, _) in &variant.defines {
                assert!(text.contains(name), "{name} in {}", variant.program.name);
            }
        }
    }
}
