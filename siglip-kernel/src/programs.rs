//! The CUDA sources of this crate and every variant of them that can be launched.

use kernel_core::cuda::{element, flag};
use kernel_core::{DType, Program, Variant};

use crate::blocks::{NARROW, WIDE};

const HEADERS: &[(&str, &str)] = &[
    ("factor.cuh", include_str!("../cuda/factor.cuh")),
    ("fragment.cuh", include_str!("../cuda/fragment.cuh")),
    ("left_out.cuh", include_str!("../cuda/left_out.cuh")),
    ("plane_scale.cuh", include_str!("../cuda/plane_scale.cuh")),
    ("positives.cuh", include_str!("../cuda/positives.cuh")),
    ("rows.cuh", include_str!("../cuda/rows.cuh")),
    ("scalars.cuh", include_str!("../cuda/scalars.cuh")),
    ("sigmoid.cuh", include_str!("../cuda/sigmoid.cuh")),
    ("sigmoid_f32.cuh", include_str!("../cuda/sigmoid_f32.cuh")),
    ("slot.cuh", include_str!("../cuda/slot.cuh")),
];

macro_rules! program {
    ($name:ident, $file:literal) => {
        pub(crate) static $name: Program = Program {
            name: concat!("siglip/", $file),
            source: include_str!(concat!("../cuda/", $file, ".cu")),
            headers: HEADERS,
        };
    };
}

program!(LOGITS_SM90, "logits_sm90");
program!(LOGITS_INT8, "logits_int8");
program!(GRADIENT_INT8, "gradient_int8");
program!(GRADIENT_SM90, "gradient_sm90");
program!(FUSED_SM90, "fused_sm90");
program!(LOGITS_PORTABLE, "logits_portable");
program!(PAIRS_F32, "pairs_f32");
program!(SPLIT_INPUTS, "split_inputs");
program!(LOGITS_SPLIT, "logits_split");
program!(GRADIENT_SPLIT, "gradient_split");
program!(FINALIZE, "finalize");
program!(QUANTIZE_FP8, "quantize_fp8");
program!(QUANTIZE_INT8, "quantize_int8");

/// Blocks of a cluster share the text tile in the loss-only kernel, where that is 10% faster at narrow bands; with gradients it makes no difference
/// (H200).
pub(crate) fn logits_cluster(gradient: bool) -> u32 {
    if gradient { 1 } else { 2 }
}

/// `fp8`: of inputs quantised to e4m3; G is of `dtype` either way. `columns`: of a tile with gradients, 128 or 192; without, they are 128.
pub(crate) fn logits_sm90(dtype: DType, gradient: bool, fp8: bool, columns: usize) -> Variant {
    Variant {
        program: &LOGITS_SM90,
        entry: "siglip_logits_sm90",
        defines: vec![
            ("ELEMENT", element(dtype)),
            ("OPERAND", if fp8 { "E4M3".to_owned() } else { element(dtype) }),
            ("WITH_GRADIENT", flag(gradient)),
            ("CLUSTER_SIZE", logits_cluster(gradient).to_string()),
            ("COLUMNS", columns.to_string()),
        ],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// Of route int8.
pub(crate) fn logits_int8(gradient: bool) -> Variant {
    Variant {
        program: &LOGITS_INT8,
        entry: "siglip_logits_int8",
        defines: vec![("WITH_GRADIENT", flag(gradient)), ("CLUSTER_SIZE", logits_cluster(gradient).to_string())],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// Both gradient products of route int8. `columns`: of a tile, 128 or 192.
pub(crate) fn gradient_int8(columns: usize) -> Variant {
    Variant {
        program: &GRADIENT_INT8,
        entry: "siglip_gradient_int8",
        defines: vec![("COLUMNS", columns.to_string())],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// `transposed`: d_txt, which reads G with its rows along K; otherwise d_img. `direct`: finished gradients instead of accumulators. `columns`: of a tile,
/// 128 or 192.
pub(crate) fn gradient_sm90(dtype: DType, transposed: bool, direct: bool, columns: usize) -> Variant {
    Variant {
        program: &GRADIENT_SM90,
        entry: "siglip_gradient_sm90",
        defines: vec![
            ("ELEMENT", element(dtype)),
            ("A_LAYOUT", if transposed { "MN" } else { "K" }.to_owned()),
            ("COLUMNS", columns.to_string()),
            ("DIRECT", flag(direct)),
        ],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// Logits and the gradient of the rows in one launch.
pub(crate) fn fused_sm90(dtype: DType) -> Variant {
    Variant {
        program: &FUSED_SM90,
        entry: "siglip_fused_sm90",
        defines: vec![("ELEMENT", element(dtype))],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

pub(crate) fn logits_portable(dtype: DType, gradient: bool) -> Variant {
    Variant {
        program: &LOGITS_PORTABLE,
        entry: "siglip_logits_portable",
        defines: vec![("ELEMENT", element(dtype)), ("WITH_GRADIENT", flag(gradient))],
        hot: true,
        min_arch: Some("sm_80"),
    }
}

pub(crate) fn pairs_f32(gradient: bool) -> Variant {
    Variant {
        program: &PAIRS_F32,
        entry: "siglip_pairs_f32",
        defines: vec![("WITH_GRADIENT", flag(gradient))],
        hot: true,
        min_arch: Some("sm_80"),
    }
}

pub(crate) fn split_inputs() -> Variant {
    Variant {
        program: &SPLIT_INPUTS,
        entry: "siglip_split_inputs",
        defines: Vec::new(),
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

pub(crate) fn logits_split(gradient: bool) -> Variant {
    Variant {
        program: &LOGITS_SPLIT,
        entry: "siglip_logits_split",
        defines: vec![("WITH_GRADIENT", flag(gradient))],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// `transposed`: d_txt, which reads G with its rows along K; otherwise d_img. `columns`: of a tile, 128 or 192.
pub(crate) fn gradient_split(transposed: bool, columns: usize) -> Variant {
    Variant {
        program: &GRADIENT_SPLIT,
        entry: "siglip_gradient_split",
        defines: vec![("A_LAYOUT", if transposed { "MN" } else { "K" }.to_owned()), ("COLUMNS", columns.to_string())],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// `entry`: one of [`FINALIZE_ENTRIES`].
pub(crate) fn finalize(dtype: DType, entry: &'static str) -> Variant {
    Variant {
        program: &FINALIZE,
        entry,
        defines: vec![("ELEMENT", element(dtype))],
        hot: false,
        min_arch: Some("sm_80"),
    }
}

/// `entry`: one of [`FP8_ENTRIES`].
pub(crate) fn quantize_fp8(dtype: DType, entry: &'static str) -> Variant {
    Variant {
        program: &QUANTIZE_FP8,
        entry,
        defines: vec![("ELEMENT", element(dtype))],
        hot: true,
        min_arch: Some("sm_90a"),
    }
}

/// `entry`: one of [`INT8_ENTRIES`].
pub(crate) fn quantize_int8(dtype: DType, entry: &'static str) -> Variant {
    Variant { program: &QUANTIZE_INT8, entry, ..quantize_fp8(dtype, entry) }
}

pub(crate) const FINALIZE_ENTRIES: [&str; 3] = ["siglip_reduce", "siglip_scale", "siglip_pad"];
/// In the order of their launches.
pub(crate) const FP8_ENTRIES: [&str; 3] = ["siglip_fp8_peaks", "siglip_fp8_quantize", "siglip_fp8_positives"];
pub(crate) const INT8_ENTRIES: [&str; 4] =
    ["siglip_int8_columns", "siglip_int8_means", "siglip_int8_rows", "siglip_int8_transpose"];

/// Every kernel that this crate can launch.
pub fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for dtype in [DType::F16, DType::Bf16] {
        for on in [false, true] {
            for fp8 in [false, true] {
                all.push(logits_sm90(dtype, on, fp8, NARROW));
                if on {
                    all.push(logits_sm90(dtype, on, fp8, WIDE));
                }
            }
            for direct in [false, true] {
                for columns in [128, 192] {
                    all.push(gradient_sm90(dtype, on, direct, columns));
                }
            }
        }
        all.push(fused_sm90(dtype));
        for gradient in [false, true] {
            all.push(logits_portable(dtype, gradient));
        }
        all.extend(FP8_ENTRIES.map(|entry| quantize_fp8(dtype, entry)));
        all.extend(INT8_ENTRIES.map(|entry| quantize_int8(dtype, entry)));
    }
    all.extend([false, true].map(logits_int8));
    all.extend([128, 192].map(gradient_int8));
    for on in [false, true] {
        all.push(pairs_f32(on));
        all.push(logits_split(on));
        for columns in [128, 192] {
            all.push(gradient_split(on, columns));
        }
    }
    all.push(split_inputs());
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        all.extend(FINALIZE_ENTRIES.map(|entry| finalize(dtype, entry)));
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
            for (name, _) in &variant.defines {
                assert!(variant.program.source.contains(name), "{name} in {}", variant.program.name);
            }
        }
    }
}
