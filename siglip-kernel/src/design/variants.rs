//! The kernels that a plan's engines load, known before they do so: compiled side by side, all of them take as long as the longest.

use kernel_core::probe::{Library, ensure};
use kernel_core::{DeviceInfo, Variant};

use super::{Design, Engine, Gradient, Pass};
use crate::blocks::NARROW;
use crate::error::Result;
use crate::kernels::{gradient_int8, gradient_sm90, gradient_split};
use crate::problem::{Options, Problem, Route};
use crate::programs::{
    self, FINALIZE_ENTRIES, FP8_ENTRIES, INT8_ENTRIES, finalize, fused_sm90, logits_int8, logits_portable, logits_sm90,
    logits_split, pairs_f32, quantize_fp8, quantize_int8, split_inputs,
};

/// The kernels of a [`Plan`](crate::Plan) for this problem on such a device. No device is needed to ask, nor to compile them ahead into a cache that plans will look
/// into: see [`compile_all_in`](kernel_core::compile::compile_all_in).
///
/// # Errors
/// As [`Plan::new`](crate::Plan::new), for what can be told from the problem and the device.
pub fn plan_variants(info: &DeviceInfo, problem: &Problem, options: &Options) -> Result<Vec<Variant>> {
    Ok(Design::new(info, problem, options)?.variants(info))
}

impl Design {
    /// Each of them once, those that take the longest to compile first.
    pub(crate) fn variants(&self, info: &DeviceInfo) -> Vec<Variant> {
        let mut all: Vec<Variant> = Vec::new();
        let rest = FINALIZE_ENTRIES.map(|entry| finalize(self.images.problem.dtype, entry));
        for variant in self.passes().flat_map(|pass| self.of_pass(pass, info)).chain(rest) {
            if !all.contains(&variant) {
                all.push(variant);
            }
        }
        all
    }

    fn of_pass(&self, pass: &Pass, info: &DeviceInfo) -> Vec<Variant> {
        let Problem { dtype, dim, .. } = pass.problem;
        let sms = info.sm_count as usize;
        let sides = [(false, pass.blocks.rows), (true, pass.blocks.cols)];
        match self.engine {
            Engine::Sm90 => {
                let fp8 = self.route == Route::Fp8;
                let logits = match pass.fused {
                    true => fused_sm90(dtype),
                    false => logits_sm90(dtype, true, fp8, pass.logit_columns),
                };
                let mut all = vec![logits, logits_sm90(dtype, false, fp8, NARROW)];
                let (of_rows, of_cols) = self.gradients(pass);
                let library =
                    of_rows != Gradient::Direct && of_cols != Gradient::Direct && ensure(Library::CublasLt).is_ok();
                for ((transposed, rows), gradient) in sides.into_iter().zip([of_rows, of_cols]) {
                    let columns = gradient_sm90::columns([rows, dim], sms);
                    let sums = gradient != Gradient::Direct && !library;
                    let finishes = matches!(gradient, Gradient::Direct | Gradient::Finished);
                    let wanted = [(true, finishes), (false, sums)].into_iter().filter(|(_, wanted)| *wanted);
                    all.extend(wanted.map(|(direct, _)| programs::gradient_sm90(dtype, transposed, direct, columns)));
                }
                if fp8 {
                    all.extend(FP8_ENTRIES.map(|entry| quantize_fp8(dtype, entry)));
                }
                all
            }
            Engine::Int8 => {
                let gradient = |(_, rows)| programs::gradient_int8(gradient_int8::columns([rows, dim], sms));
                let quantize = INT8_ENTRIES.map(|entry| quantize_int8(dtype, entry));
                [logits_int8(true), logits_int8(false)].into_iter().chain(sides.map(gradient)).chain(quantize).collect()
            }
            Engine::Split => {
                let gradient = |(transposed, _)| programs::gradient_split(transposed, gradient_split::columns(dim));
                [logits_split(true), logits_split(false)]
                    .into_iter()
                    .chain(sides.map(gradient))
                    .chain([split_inputs()])
                    .collect()
            }
            Engine::Portable => [true, false].map(|gradient| logits_portable(dtype, gradient)).into(),
            Engine::F32 => [true, false].map(pairs_f32).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::design::tests::h200;
    use crate::problem::Chunk;
    use kernel_core::DType;

    /// Program and macros of each that is compiled, in order.
    fn compiled(batch: usize, dtype: DType, route: Route) -> Vec<String> {
        let options = Options { route, chunk: Chunk::Auto };
        let mut names: Vec<String> = plan_variants(&h200(), &Problem::square(batch, 768, dtype), &options)
            .unwrap()
            .iter()
            .map(|Variant { program, defines, .. }| {
                let macros: Vec<&str> = defines.iter().map(|(_, value)| value.as_str()).collect();
                format!("{} {}", program.name.trim_start_matches("siglip/"), macros.join(" "))
            })
            .collect();
        names.dedup();
        names
    }

    #[test]
    fn plans_name_their_kernels() {
        let one_block = compiled(4096, DType::Bf16, Route::Auto);
        assert_eq!(
            one_block,
            [
                "logits_sm90 BF16 BF16 1 1 128",
                "logits_sm90 BF16 BF16 0 2 128",
                "gradient_sm90 BF16 K 192 1",
                "gradient_sm90 BF16 MN 192 1",
                "finalize BF16"
            ]
        );
        let split = compiled(4096, DType::F32, Route::Auto);
        assert_eq!(
            split,
            [
                "logits_split 1",
                "logits_split 0",
                "gradient_split K 192",
                "gradient_split MN 192",
                "split_inputs ",
                "finalize F32"
            ]
        );
        let int8 = compiled(65_536, DType::F16, Route::Int8);
        assert_eq!(
            int8,
            ["logits_int8 1 1", "logits_int8 0 2", "gradient_int8 192", "quantize_int8 F16", "finalize F16"]
        );
        assert_eq!(compiled(4096, DType::F32, Route::Portable), ["pairs_f32 1", "pairs_f32 0", "finalize F32"]);
        let portable = compiled(4096, DType::Bf16, Route::Portable);
        assert_eq!(portable, ["logits_portable BF16 1", "logits_portable BF16 0", "finalize BF16"]);
        let low = compiled(65_536, DType::Bf16, Route::LowMemory);
        assert_eq!(low[..2], ["fused_sm90 BF16", "logits_sm90 BF16 BF16 0 2 128"]);
        let fp8 = compiled(65_536, DType::Bf16, Route::Fp8);
        assert!(fp8.contains(&"quantize_fp8 BF16".to_owned()) && fp8[0] == "logits_sm90 BF16 E4M3 1 1 192", "{fp8:?}");
        // Sums over several blocks are finished by our own products, whoever adds to them.
        assert!(fp8.contains(&"gradient_sm90 BF16 K 192 1".to_owned()), "{fp8:?}");
    }

    #[test]
    fn they_are_among_all_variants_and_each_is_there_once() {
        let known = programs::variants();
        for batch in [1, 1000, 20_000, 200_000] {
            for dim in [8, 100, 768, 1152] {
                for (dtype, routes) in [
                    (DType::Bf16, [Route::Auto, Route::LowMemory, Route::Fp8, Route::Int8, Route::Portable].as_slice()),
                    (DType::F32, &[Route::Auto, Route::Portable, Route::LowMemory]),
                ] {
                    for &route in routes {
                        let options = Options { route, chunk: Chunk::Auto };
                        let all = plan_variants(&h200(), &Problem::square(batch, dim, dtype), &options).unwrap();
                        for (at, variant) in all.iter().enumerate() {
                            assert!(known.contains(variant), "{variant:?}");
                            assert!(!all[..at].contains(variant) && variant.supports(h200().arch()), "{variant:?}");
                        }
                    }
                }
            }
        }
    }
}
