//! The memory of the texts' gradient, which holds f32 sums until it is written: what of them, for which blocks, and where. G may be larger by as much.

use std::ops::Range;

use crate::blocks::{Blocks, Limits, TILE};
use crate::design::{Design, Engine, Gradient, Pass};
use crate::engines::{At, Call};
use crate::problem::{Chunk, Problem};
use crate::workspace::pads;

impl Engine {
    /// Whether, in a pass that gives both gradients, f32 sums lie in the memory of the texts' gradient until that is written, in the last row chunk: those of the
    /// chunk's images, which in the last, shorter chunk lie behind its G; and those of the second block of texts, the last to be overwritten. Where that
    /// memory is not in one piece, narrower blocks leave room for both behind G.
    pub(crate) fn lends(self, problem: &Problem, blocks: Blocks) -> bool {
        let Blocks { rows, cols } = blocks;
        let last = problem.rows % rows;
        // The last product of the second block writes whole tiles, half a tile of zeros behind its rows, while it reads the sums at the end.
        let with_tail = cols + cols.next_multiple_of(TILE);
        self == Engine::Sm90
            && !pads(problem)
            && self.gradients(problem, blocks) == (Gradient::Accumulated, Gradient::Accumulated)
            && last > 0
            && problem.cols >= 2 * cols + with_tail.max(2 * rows)
            && last.next_multiple_of(TILE) * (cols + 2 * problem.dim) <= blocks.area()
            && 2 * problem.dim * (rows + cols) <= rows * (cols - Self::narrowed(blocks).cols)
    }

    /// Blocks of half as many columns.
    pub(crate) fn narrowed(blocks: Blocks) -> Blocks {
        Blocks { cols: (blocks.cols / 2).next_multiple_of(TILE), ..blocks }
    }

    /// Larger blocks than `blocks` if they are cheaper, where sums that lie in lent memory leave G theirs.
    pub(crate) fn with_lent(
        self,
        problem: &Problem,
        chunk: Chunk,
        limits: &Limits,
        sms: usize,
        blocks: Blocks,
    ) -> Blocks {
        // Only where memory bounds a block: for larger problems all of this is saved.
        if self != Engine::Sm90 || limits.elements > Self::SM90 {
            return blocks;
        }
        let within = |elements: usize, fit: &dyn Fn(Blocks) -> bool| {
            let row_tiles = *limits.row_tiles.start()..=*limits.row_tiles.end() * 11 / 8;
            Blocks::cheapest(problem, chunk, &Limits { elements, row_tiles, ..limits.clone() }, true, sms, fit)
        };
        let room = |of: Blocks| limits.elements + 2 * problem.dim * (of.rows + of.cols);
        let lent = within(limits.elements * 11 / 8, &|of| self.lends(problem, of) && of.area() <= room(of));
        let plain = within(limits.elements, &|of| of == blocks);
        match (lent, plain) {
            (Some((cost, lent)), Some((plain, _))) if cost < plain => lent,
            _ => blocks,
        }
    }
}

/// Where a row chunk's sums lie while the texts' gradient lends its memory.
pub(crate) struct Loan {
    pub(crate) blocks: Blocks,
    pub(crate) g: At,
    pub(crate) d_img: At,
    /// Texts of the second block, whose sums are lent memory.
    pub(crate) second: Range<usize>,
    of_second: At,
    /// Of all the others.
    of_texts: At,
}

impl Loan {
    /// For the chunk that begins at `row`. `g`, `of_texts`: of the workspace.
    pub(crate) fn new(call: &Call<'_>, design: &Design, (g, of_texts): (At, At), row: usize) -> Self {
        let Pass { problem, blocks, .. } = design.images;
        let sums = |address: u64| At { address, row_stride: problem.dim };
        let bytes = |rows: usize, cols: usize, element: usize| (rows * cols * element) as u64;
        let (element, f32s) = (problem.dtype.size_bytes(), size_of::<f32>());
        let second = blocks.cols..2 * blocks.cols;
        if call.to_txt.row_stride != problem.dim {
            // What lies between rows is the caller's.
            let narrow = design.narrowed();
            let behind = g.address + bytes(blocks.rows, narrow.cols, element);
            let of_second = sums(behind + bytes(blocks.rows, problem.dim, f32s));
            let g = At { row_stride: narrow.cols, ..g };
            return Self { blocks: narrow, g, d_img: sums(behind), second, of_second, of_texts };
        }
        let rows = problem.rows - row;
        let d_img = if rows > blocks.rows {
            call.to_txt.address
        } else {
            // The last chunk writes the gradient.
            g.address + bytes(rows.next_multiple_of(TILE), blocks.cols, element)
        };
        // As much memory as its gradient twice, at the end: when later blocks' gradients are written there, the sums have been read.
        let of_second = sums(call.to_txt.row(problem.cols - 2 * blocks.cols, element));
        Self { blocks, g, d_img: sums(d_img), second, of_second, of_texts }
    }

    /// Such that the sums of the block of texts from `col` on are where those of all texts would have them.
    pub(crate) fn d_txt(&self, col: usize) -> At {
        let from = |at: At, row: usize| {
            let before = row as u64 * at.row_stride as u64 * size_of::<f32>() as u64;
            At { address: at.address.wrapping_sub(before), ..at }
        };
        if col < self.second.start {
            self.of_texts
        } else if col < self.second.end {
            from(self.of_second, self.second.start)
        } else {
            from(self.of_texts, self.second.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use kernel_core::DType;

    use super::*;
    use crate::design::tests::h200;
    use crate::problem::{Options, Positives, Route};
    use crate::workspace::Regions;

    #[test]
    fn the_texts_gradient_lends_its_memory() {
        let design = |batch, dim, chunk| {
            let problem = Problem::square(batch, dim, DType::Bf16);
            Design::new(&h200(), &problem, &Options { route: Route::Auto, chunk }).unwrap()
        };
        let sums = |design: &Design| {
            let regions = Regions::layout(design, &h200()).1;
            [regions.d_rows, regions.d_txt].map(|region| region.bytes() / design.images.problem.dim / size_of::<f32>())
        };
        let large = design(65_536, 768, Chunk::Auto);
        assert!(large.lends() && large.images.blocks == Blocks { rows: 11_264, cols: 10_944 }, "{:?}", large.images);
        assert_eq!(sums(&large), [0, 65_536 - 10_944]);
        let outputs = 2 * 65_536 * 768 * 2;
        assert!(Regions::layout(&large, &h200()).0.total() + outputs < 620_000_000);
        // What the GPU test of it computes.
        for (rows, cols, dim, bytes, blocks) in [
            (4321, 9000, 96, 5_275_170, (896, 1152)),
            (4321, 9000, 96, 10_550_340, (2304, 1536)),
            (5000, 5000, 136, 5_245_440, (1408, 1024)),
            (4321, 3904, 96, 2_800_000, (768, 960)),
        ] {
            let problem = Problem::block(rows, cols, dim, DType::Bf16, Positives::None);
            let options = Options { route: Route::Auto, chunk: Chunk::Workspace(bytes) };
            let design = Design::new(&h200(), &problem, &options).unwrap();
            assert!(design.lends() && design.images.blocks == Blocks { rows: blocks.0, cols: blocks.1 }, "{design:?}");
        }
        // Blocks as without it: chunks are equally tall, so that the last one has no room behind its G.
        let even = design(32_768, 768, Chunk::Auto);
        assert!(!even.lends() && sums(&even) == [8192, 32_768], "{:?}", even.images);
    }

    #[test]
    fn tails_of_tiles_leave_the_sums_alone() {
        let lends = |rows, cols, dim, blocks: [usize; 2]| {
            let problem = Problem::block(rows, cols, dim, DType::Bf16, Positives::None);
            Engine::Sm90.lends(&problem, Blocks { rows: blocks[0], cols: blocks[1] })
        };
        // Half a tile behind the second block.
        for (rows, cols, dim, blocks) in [(26_008, 28_416, 256, [6784, 7104]), (1500, 3840, 64, [896, 960])] {
            assert!(blocks[1] % TILE == 64 && cols == 4 * blocks[1]);
            assert!(!lends(rows, cols, dim, blocks) && !lends(rows, cols + 63, dim, blocks));
            assert!(lends(rows, cols + 64, dim, blocks));
        }
        // Whole tiles.
        assert!(lends(1500, 4096, 64, [896, 1024]) && !lends(1500, 4095, 64, [896, 1024]));
        for rows in [1500, 4321] {
            for cols in [3840, 3904, 4000] {
                for bytes in (8..=12).map(|step| step * 250_000) {
                    let problem = Problem::block(rows, cols, 96, DType::Bf16, Positives::None);
                    let options = Options { route: Route::Auto, chunk: Chunk::Workspace(bytes) };
                    let Ok(design) = Design::new(&h200(), &problem, &options) else { continue };
                    let Blocks { rows, cols: width } = design.images.blocks;
                    let room = cols.saturating_sub(2 * width);
                    let written = width + width.next_multiple_of(TILE);
                    assert!(!design.lends() || written.max(2 * rows) <= room, "{:?}", design.images);
                }
            }
        }
    }

    #[test]
    fn blocks_grow_with_the_problem() {
        let blocks = |batch, dim| {
            let options = Options { route: Route::Auto, chunk: Chunk::Auto };
            let blocks =
                Design::new(&h200(), &Problem::square(batch, dim, DType::Bf16), &options).unwrap().images.blocks;
            (blocks.rows, blocks.cols)
        };
        let found = [(8192, 768), (16_384, 768), (16_384, 1152), (32_768, 768), (32_768, 1152), (131_072, 768)]
            .map(|(batch, dim)| blocks(batch, dim));
        let expected = [(8192, 8192), (5632, 16_384), (5632, 16_384), (8192, 10_944), (5632, 16_384), (16_896, 16_384)];
        assert_eq!(found, expected);
    }

    #[test]
    fn blocks_grow_no_further_than_the_texts_sums() {
        let g = |batch, dim| {
            let options = Options { route: Route::Auto, chunk: Chunk::Auto };
            let design = Design::new(&h200(), &Problem::square(batch, dim, DType::Bf16), &options).unwrap();
            Regions::layout(&design, &h200()).1.g.bytes()
        };
        for (batch, dim) in [(131_072, 64), (131_072, 256), (131_072, 512), (262_144, 128), (98_304, 768)] {
            let (bytes, sums) = (g(batch, dim), batch * dim * size_of::<f32>());
            // Or what any problem may take, where lent memory takes as much off the sums.
            assert!(bytes <= (sums / 8 * 13).max(Engine::SM90 * 2 * 11 / 8), "{batch} x {dim}: {bytes}");
        }
    }
}
