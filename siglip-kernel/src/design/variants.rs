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

/// Whether cuBLASLt, where it is there, adds up the sums of images and of texts on Hopper. Not where blocks are so few that one of the gradients is finished at once.
/// With 1,024 features and more, up to 32,768 texts, our own sums of texts take 1 to 3% of a step less between other work and as long when sustained, with the
/// same bits; with fewer features or more texts up to 2% more (H200). In low memory not measured.
pub(crate) fn library_sums(problem: &Problem, (rows, cols): (Gradient, Gradient)) -> [bool; 2] {
    let library = rows != Gradient::Direct && cols != Gradient::Direct;
    let own_texts = cols == Gradient::Finished && (1024..=1536).contains(&problem.dim) && problem.cols <= 32_768;
    [library, library && !own_texts]
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
                let gradients = self.gradients(pass);
                let there = ensure(Library::CublasLt).is_ok();
                let by_library = library_sums(&pass.problem, gradients).map(|library| library && there);
                let of_sides = [gradients.0, gradients.1].into_iter().zip(by_library);
                for ((transposed, rows), (gradient, library)) in sides.into_iter().zip(of_sides) {
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
        assert!(fp8.contains(&"gradient_sm90 BF16 K 128 1".to_owned()), "{fp8:?}");
    }

    #[test]
    fn sums_of_texts_are_ours_where_that_is_measured_better() {
        let sums = |batch, dim, route| {
            let design =
                Design::new(&h200(), &Problem::square(batch, dim, DType::Bf16), &Options { route, chunk: Chunk::Auto });
            let design = design.unwrap();
            library_sums(&design.images.problem, design.gradients(&design.images))
        };
        assert_eq!([sums(32_768, 1152, Route::Auto), sums(32_768, 1024, Route::Fp8)], [[true, false]; 2]);
        assert_eq!([sums(65_536, 768, Route::Auto), sums(65_536, 1152, Route::Auto)], [[true, true]; 2]);
        assert_eq!(sums(32_768, 1152, Route::LowMemory), [true, true]);
        assert_eq!(sums(16_384, 1152, Route::Auto), [false, false], "images' gradient is finished at once");
        // And compiled with the plan.
        let all = plan_variants(&h200(), &Problem::square(32_768, 1152, DType::Bf16), &Options::default()).unwrap();
        assert!((128..=192).step_by(64).any(|columns| all.contains(&programs::gradient_sm90(
            DType::Bf16,
            true,
            false,
            columns
        ))));
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
