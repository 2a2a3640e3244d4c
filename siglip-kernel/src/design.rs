//! What a plan will do: which kernels, which blocks, in how many passes. Decided without touching the device.

mod variants;

pub(crate) use variants::library_sums;
pub use variants::plan_variants;

use kernel_core::{Arch, DType, DeviceInfo};

use crate::blocks::{Blocks, Limits, TILE, logit_waves};
use crate::error::Result;
use crate::io::Alignment;
use crate::kernels::{FusedSm90, LogitsPortable, PairsF32, sm90_slots};
use crate::problem::{Chunk, Options, Problem, Route, shape};
use crate::workspace::{Regions, pads};

/// The kernels behind a plan: a [`Route`](crate::Route) resolved for a device and a dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Sm90,
    /// All products of 8-bit integers.
    Int8,
    Portable,
    /// f32 units.
    F32,
    /// f32 as two f16 planes, on Hopper's tensor cores.
    Split,
}

impl Engine {
    /// Elements of a block of G in 16 bits on Hopper, 185 MB.
    pub(crate) const SM90: usize = 5632 * 16384;

    /// What bounds the blocks of a route; among those that fit, [`Blocks::choose`] takes the cheapest. `Sm90`: 185 MB of G, and as much more as lent memory
    /// takes off the sums ([`Engine::with_lent`]), keep the step of B = 65,536 in 0.62 GB above its inputs; half as much loses 6 to 14%, and blocks small
    /// enough for L2 lose 15% in the ends of their launches (H200). Larger problems gain 3% with larger blocks: up to 7/8 of the texts' f32 sums, or in 16 bits
    /// three times 185 MB at 131,072 texts (4% less than twice as much takes; D = 768), in proportion to the texts' square, but no more than 13/8 of those sums, and up to four times as large.
    /// `Int8`, whose products are short beside the ends of their launches, takes 11/8 of those sums: 2.5% of its step at 65,536.
    /// The others spend more time per block and take less. `low_memory`: a block of 26 MB in 16 bits.
    ///
    /// A true f32 product adds up all of a block's columns one after another; blocks are added to each other, which keeps the error of d_img
    /// near 1e-6 for any number of texts.
    fn limits(self, problem: &Problem, route: Route) -> Limits {
        let cols = if self == Engine::F32 { 16384 } else { usize::MAX };
        // Short launches lose more to their ends with wide tiles: low memory keeps to narrow ones, and so do small problems where positives take the long way
        // through a wide tile, as with FP8 operands (H200: up to 2% of a step).
        let wide = match self {
            Engine::Sm90 if route != Route::Fp8 => true,
            Engine::Sm90 => problem.cols >= 32_768,
            _ => false,
        };
        if route == Route::LowMemory {
            return Limits { elements: 2816 * 4608, cols, row_tiles: 16..=33, wide: false, int8: false, sums: false };
        }
        const SM90: usize = Engine::SM90;
        // Elements of G in as many eighths of the memory of the texts' f32 sums.
        let of_sums = |eighths: usize| {
            (problem.cols.saturating_mul(problem.dim) / 4).saturating_mul(eighths).clamp(SM90, 4 * SM90)
        };
        // With the square of the texts from 65,536 on.
        let grown = match self {
            Engine::Sm90 if route != Route::Fp8 && problem.cols > 65_536 => {
                ((problem.cols / 1024 * 100 / 64).min(400).pow(2) * 3 * SM90 / 40_000).min(of_sums(13))
            }
            _ => 0,
        };
        let plain = match self {
            Engine::Sm90 => of_sums(7),
            Engine::Int8 => of_sums(11),
            Engine::Portable => 4096 * 8192,
            Engine::F32 | Engine::Split => 8192 * 8192,
        };
        let elements = plain.max(grown);
        let row_tiles = match self {
            Engine::Sm90 | Engine::Int8 => 32..=88 * elements / SM90,
            Engine::Portable | Engine::F32 | Engine::Split => 32..=72,
        };
        Limits { elements, cols, row_tiles, wide, int8: self == Engine::Int8, sums: grown > plain }
    }

    pub(crate) fn slots(self, info: &DeviceInfo) -> usize {
        match self {
            Engine::Portable => LogitsPortable::slots(info),
            Engine::F32 => PairsF32::slots(info),
            Engine::Sm90 | Engine::Int8 | Engine::Split => sm90_slots(info),
        }
    }

    /// Whether a pass in low memory takes one launch for logits and the rows' gradient: where that holds its blocks' rows, and G the two rounds that it needs.
    fn fuses(self, problem: &Problem, blocks: Blocks, sms: usize) -> bool {
        let panels = blocks.rows / TILE;
        self == Engine::Sm90
            && self.gradients(problem, blocks).0 == Gradient::Accumulated
            && panels <= FusedSm90::panels(problem.dim, sms)
            && fills(problem, panels, sms)
            && blocks.cols >= 2 * FusedSm90::round(problem.dim)
    }

    /// How the gradients of images and of texts come about.
    pub(crate) fn gradients(self, problem: &Problem, blocks: Blocks) -> (Gradient, Gradient) {
        let whole = |one_block: bool| match self {
            Engine::F32 => Gradient::InPlace,
            Engine::Split => Gradient::Direct,
            Engine::Sm90 if one_block && !pads(problem) => Gradient::Direct,
            Engine::Sm90 | Engine::Int8 | Engine::Portable => Gradient::Accumulated,
        };
        (whole(blocks.cols >= problem.cols), whole(blocks.rows >= problem.rows))
    }

    /// What inputs and outputs must satisfy.
    pub(crate) fn alignment(self, problem: &Problem) -> Alignment {
        match self {
            Engine::F32 | Engine::Split => Alignment::Start,
            Engine::Sm90 | Engine::Int8 | Engine::Portable if pads(problem) => Alignment::Element,
            Engine::Sm90 | Engine::Int8 | Engine::Portable => Alignment::Rows,
        }
    }
}

/// Whether fused launches of so many panels keep most of the multiprocessors busy, in blocks that are tall enough for the texts' sums, which each block
/// reads and writes, and with products that are no shorter than an epilogue. By arithmetic but for D = 512, 768 and 1152, which were measured.
fn fills(problem: &Problem, panels: usize, sms: usize) -> bool {
    let slices = FusedSm90::slices(problem.dim);
    slices >= 4 && panels >= 8 && panels * slices >= sms / 4 * 3
}

/// How a gradient comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gradient {
    /// f32 accumulators in the workspace, scaled and rounded into the output at the end.
    Accumulated,
    /// The output is f32 and holds its own accumulators, scaled at the end.
    InPlace,
    /// f32 accumulators in the workspace, to which the last block's product adds its own sum as it writes the output.
    Finished,
    /// The product writes the output: one block holds the whole sum, or the product's last block finishes it.
    Direct,
}

/// The one place where dtype, device and wish become an engine.
fn resolve(arch: Arch, dtype: DType, route: Route) -> Result<Engine> {
    match (route, dtype) {
        // Planes would be a second copy of the inputs: the f32 units need none.
        (Route::Portable | Route::LowMemory, DType::F32) => Ok(Engine::F32),
        (Route::Auto | Route::Chunked, DType::F32) if arch.has_wgmma() => Ok(Engine::Split),
        (Route::Auto | Route::Chunked, DType::F32) => Ok(Engine::F32),
        (Route::Fp8 | Route::Int8, DType::F32) => {
            let what = if route == Route::Fp8 { "route fp8" } else { "route int8" };
            Err(kernel_core::Error::DType { what, found: dtype, expected: "f16 or bf16".to_owned() }.into())
        }
        (Route::Fp8 | Route::Int8, _) if !arch.has_wgmma() => Err(kernel_core::Error::UnsupportedDevice {
            needs: format!("sm_90 (H100, H200) for route {route}"),
            found: arch.to_string(),
        }
        .into()),
        (Route::Int8, _) => Ok(Engine::Int8),
        (Route::Auto | Route::Chunked | Route::LowMemory | Route::Fp8, DType::F16 | DType::Bf16)
            if arch.has_wgmma() =>
        {
            Ok(Engine::Sm90)
        }
        (_, DType::F16 | DType::Bf16) => Ok(Engine::Portable),
    }
}

/// One walk over all pairs, row chunk by row chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) problem: Problem,
    pub(crate) blocks: Blocks,
    /// Of a tile of Hopper's logit product with gradients.
    pub(crate) logit_columns: usize,
    /// Whether logits and the rows' gradient come from one launch. Where only that gradient is asked for, G is then a ring of rounds.
    pub(crate) fused: bool,
}

/// All that is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Design {
    pub(crate) engine: Engine,
    pub(crate) route: Route,
    /// Images as rows: the loss, their gradient, and that of the texts unless it has a pass of its own.
    pub(crate) images: Pass,
    /// Texts as rows: their gradient, from logits computed again.
    pub(crate) texts: Option<Pass>,
}

impl Design {
    pub(crate) fn new(info: &DeviceInfo, problem: &Problem, options: &Options) -> Result<Self> {
        problem.check()?;
        if info.compute_capability < (8, 0) {
            let (major, minor) = info.compute_capability;
            return Err(kernel_core::Error::UnsupportedDevice {
                needs: "compute capability 8.0 or newer".to_owned(),
                found: format!("{major}.{minor} ({})", info.name),
            }
            .into());
        }
        let engine = resolve(info.arch(), problem.dtype, options.route)?;
        let low_memory = options.route == Route::LowMemory;
        let two_passes = low_memory && engine != Engine::F32;
        let route = match engine {
            _ if matches!(options.route, Route::LowMemory | Route::Fp8 | Route::Int8) => options.route,
            Engine::Sm90 | Engine::Int8 | Engine::Split => Route::Chunked,
            Engine::Portable | Engine::F32 => Route::Portable,
        };
        let sms = info.sm_count as usize;
        let within = |limits: &Limits| {
            let pass = |problem: Problem| {
                let choose = |limits: &Limits| Blocks::choose(&problem, options.chunk, limits, !two_passes, sms);
                // A launch that makes logits and the rows' gradient takes as many panels as fit the device.
                let panels = FusedSm90::panels(problem.dim, sms);
                let any_rows = !matches!(options.chunk, Chunk::Rows(_));
                let of_panels = (two_passes && any_rows && fills(&problem, panels, sms))
                    .then(|| choose(&Limits { row_tiles: panels..=panels, ..limits.clone() }))
                    .filter(|&blocks| engine.fuses(&problem, blocks, sms));
                let blocks = of_panels.unwrap_or_else(|| choose(limits));
                let blocks =
                    if two_passes { blocks } else { engine.with_lent(&problem, options.chunk, limits, sms, blocks) };
                let logit_columns = logit_waves(blocks.rows / TILE, blocks.cols, limits.wide, sms).1;
                let fuses = |blocks: &Blocks| two_passes && engine.fuses(&problem, *blocks, sms);
                if !fuses(&blocks) {
                    return Pass { problem, blocks, logit_columns, fused: false };
                }
                let round = FusedSm90::round(problem.dim);
                let whole = blocks.of_rounds(problem.cols, round, limits.elements / blocks.rows);
                Pass { problem, blocks: Some(whole).filter(fuses).unwrap_or(blocks), logit_columns, fused: true }
            };
            Self { engine, route, images: pass(*problem), texts: two_passes.then(|| pass(problem.mirrored())) }
        };
        let mut limits = engine.limits(problem, options.route);
        let Chunk::Workspace(most) = options.chunk else { return Ok(within(&limits)) };
        let tallest = *limits.row_tiles.end();
        loop {
            limits.row_tiles = 1..=tallest.min(limits.elements / (TILE * TILE)).max(1);
            let design = within(&limits);
            let bytes = Regions::layout(&design, info).0.total();
            if bytes <= most {
                return Ok(design);
            }
            if limits.elements < TILE * TILE {
                return Err(shape("chunk", format!("a workspace of {most} bytes"), format!("{bytes} bytes at least")));
            }
            limits.elements -= limits.elements.div_ceil(16);
        }
    }

    /// Whether sums lie in the memory of the texts' gradient.
    pub(crate) fn lends(&self) -> bool {
        self.texts.is_none() && self.engine.lends(&self.images.problem, self.images.blocks)
    }

    /// The blocks of a call whose texts' gradient cannot lend its memory.
    pub(crate) fn narrowed(&self) -> Blocks {
        Engine::narrowed(self.images.blocks)
    }

    /// How the row side's gradient of a pass comes about.
    pub(crate) fn rows_gradient(&self, pass: &Pass) -> Gradient {
        self.gradients(pass).0
    }

    /// How the texts' gradient comes about in the images' pass, if it does.
    pub(crate) fn cols_gradient(&self) -> Option<Gradient> {
        self.texts.is_none().then(|| self.gradients(&self.images).1)
    }

    /// Both gradients of a pass. Where it gives both, and products write rows as they are, the last ones finish them.
    pub(crate) fn gradients(&self, pass: &Pass) -> (Gradient, Gradient) {
        let finishes = self.engine == Engine::Sm90 && self.texts.is_none() && !pads(&pass.problem);
        let of = |gradient| if finishes && gradient == Gradient::Accumulated { Gradient::Finished } else { gradient };
        let (rows, cols) = self.engine.gradients(&pass.problem, pass.blocks);
        (of(rows), of(cols))
    }

    pub(crate) fn passes(&self) -> impl Iterator<Item = &Pass> {
        std::iter::once(&self.images).chain(&self.texts)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn routes_resolve_by_architecture_and_dtype() {
        let (hopper, ada) = (Arch::parse("sm_90a").unwrap(), Arch::parse("sm_89").unwrap());
        let cases = [
            (hopper, DType::Bf16, Route::Auto, Engine::Sm90),
            (hopper, DType::F16, Route::Portable, Engine::Portable),
            (ada, DType::F16, Route::Chunked, Engine::Portable),
            (hopper, DType::F32, Route::Auto, Engine::Split),
            (hopper, DType::F32, Route::Chunked, Engine::Split),
            (hopper, DType::F32, Route::Portable, Engine::F32),
            (hopper, DType::F32, Route::LowMemory, Engine::F32),
            (ada, DType::F32, Route::Auto, Engine::F32),
            (hopper, DType::F16, Route::Fp8, Engine::Sm90),
            (hopper, DType::F16, Route::Int8, Engine::Int8),
        ];
        for (arch, dtype, route, engine) in cases {
            assert_eq!(resolve(arch, dtype, route).unwrap(), engine, "{arch:?} {dtype} {route}");
        }
        let message = |arch, dtype| resolve(arch, dtype, Route::Fp8).unwrap_err().to_string();
        assert!(message(ada, DType::Bf16).contains("sm_89") && message(hopper, DType::F32).contains("f32"));
    }

    pub(crate) fn h200() -> DeviceInfo {
        DeviceInfo {
            name: "NVIDIA H200".to_owned(),
            ordinal: 0,
            compute_capability: (9, 0),
            sm_count: 132,
            l2_bytes: 60 << 20,
            shared_bytes_optin: 232_448,
            total_bytes: 141 << 30,
            driver_version: 13_000,
        }
    }

    #[test]
    fn low_memory_fuses_where_panels_fill_the_device() {
        let pass = |batch, dim, dtype, route, chunk| {
            Design::new(&h200(), &Problem::square(batch, dim, dtype), &Options { route, chunk }).unwrap().images
        };
        let low = |batch, dim, chunk| pass(batch, dim, DType::Bf16, Route::LowMemory, chunk);
        for (dim, rows) in [(512, 4224), (768, 2816), (1152, 1792), (2048, 1024)] {
            let of = low(131_072, dim, Chunk::Auto);
            assert!(of.fused && of.blocks.rows == rows, "{dim}: {of:?}");
            assert!(of.blocks.cols % FusedSm90::round(dim) == 0 && of.blocks.area() <= 2816 * 4608, "{dim}: {of:?}");
        }
        let little = low(65_536, 768, Chunk::Workspace(18_000_000));
        assert!(little.fused && little.blocks == Blocks { rows: 2816, cols: 2 * 768 }, "{little:?}");
        let unfused = [
            low(1000, 768, Chunk::Auto),           // too few rows
            low(65_536, 768, Chunk::Rows(1000)),   // the same
            low(65_536, 768, Chunk::Rows(10_000)), // too many
            low(65_536, 20_000, Chunk::Auto),      // a panel does not fit
            low(131_072, 8192, Chunk::Auto),       // too few panels
            low(131_072, 64, Chunk::Auto),         // short products
            low(16_384, 4096, Chunk::Auto),        // one block of columns would be the whole sum
            pass(65_536, 768, DType::F32, Route::LowMemory, Chunk::Auto),
            pass(65_536, 768, DType::F16, Route::Chunked, Chunk::Auto),
        ];
        assert!(unfused.iter().all(|of| !of.fused), "{unfused:?}");
        assert!(low(16_384, 4096, Chunk::Auto).blocks.rows >= 2048, "as without fused launches");
    }

    #[test]
    fn last_products_finish_gradients_where_there_is_one_pass() {
        let design = |batch, dim, dtype, route| {
            let chunk = Chunk::Auto;
            Design::new(&h200(), &Problem::square(batch, dim, dtype), &Options { route, chunk }).unwrap()
        };
        let of = |design: Design| design.gradients(&design.images);
        use Gradient::{Accumulated, Direct, Finished, InPlace};
        let auto = |batch, dim, dtype| of(design(batch, dim, dtype, Route::Auto));
        assert_eq!(auto(8192, 768, DType::Bf16), (Direct, Direct));
        assert_eq!(auto(16_384, 768, DType::F16), (Direct, Finished));
        assert_eq!(auto(65_536, 768, DType::Bf16), (Finished, Finished));
        assert_eq!(auto(65_536, 100, DType::Bf16), (Accumulated, Accumulated), "rows are padded");
        assert_eq!(of(design(65_536, 768, DType::Bf16, Route::LowMemory)).0, Accumulated);
        assert_eq!(of(design(65_536, 768, DType::Bf16, Route::Portable)), (Accumulated, Accumulated));
        assert_eq!(of(design(65_536, 768, DType::F32, Route::Portable)), (InPlace, InPlace));
    }

    #[test]
    fn int8_has_larger_blocks_where_there_are_many_texts() {
        let design = |batch, route| {
            let problem = Problem::square(batch, 768, DType::Bf16);
            Design::new(&h200(), &problem, &Options { route, chunk: Chunk::Auto }).unwrap()
        };
        assert_eq!(design(65_536, Route::Int8).images.blocks, Blocks { rows: 8448, cols: 16_384 });
        for batch in [8192, 16_384, 32_768] {
            let of = |route| Regions::layout(&design(batch, route), &h200()).1.g.bytes();
            assert!(of(Route::Int8) <= 2 * 5632 * 16_384, "{batch}: {} bytes of G", of(Route::Int8));
        }
    }

    #[test]
    fn a_workspace_that_is_given_is_kept_to() {
        for route in [Route::Auto, Route::Portable, Route::LowMemory] {
            for (batch, dim, dtype) in [(8192, 768, DType::Bf16), (20_000, 100, DType::F16), (5000, 65, DType::F32)] {
                let problem = Problem::square(batch, dim, dtype);
                let bytes = |chunk| {
                    let design = Design::new(&h200(), &problem, &Options { route, chunk })?;
                    Ok(Regions::layout(&design, &h200()).0.total())
                };
                let auto: usize = bytes(Chunk::Auto).unwrap();
                for most in [auto, auto / 5 * 4] {
                    let taken = bytes(Chunk::Workspace(most)).unwrap();
                    assert!(taken <= most && taken > most / 4, "{route} {batch} {dim} {dtype}: {taken} of {most}");
                }
                let refused = |most: usize| -> String {
                    let result: Result<usize> = bytes(Chunk::Workspace(most));
                    result.unwrap_err().to_string()
                };
                let message = refused(1000);
                assert!(message.contains("1000 bytes") && message.contains("bytes at least"), "{message}");
                // What the message names is just enough.
                let words: Vec<&str> = message.split_whitespace().collect();
                let least = words[words.iter().position(|word| *word == "least").unwrap() - 3].parse().unwrap();
                assert_eq!(bytes(Chunk::Workspace(least)).unwrap(), least);
                assert!(refused(least - 1).contains(&least.to_string()));
            }
        }
    }
}
