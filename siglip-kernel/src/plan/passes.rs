//! A pass over all pairs: the order of its blocks, and where their G and their sums lie meanwhile.

use std::ops::Range;

use super::{Plan, Sums};
use crate::blocks::{Blocks, TILE};
use crate::design::{Design, Engine as Kind, Gradient, Pass};
use crate::engines::{At, Call, Engine};
use crate::error::Result;
use crate::kernels::{FusedSm90, PositivePairs};
use crate::loan::Loan;
use crate::problem::Problem;
use crate::workspace::pads;

/// A gradient whose memory holds something else until it is written.
#[derive(Clone, Copy)]
pub(super) struct Spare {
    pub(super) gradient: At,
    pub(super) rows: usize,
    /// Whether all of it is free throughout a pass; else the rows that the pass has yet to write.
    pub(super) fixed: bool,
}

/// Rounds of G that a fused launch passes round, where nobody else reads it: few, so that they stay in L2.
const RING: usize = 3;
/// Columns of a fused launch, at most: what one f32 sum is asked to hold.
const RING_COLUMNS: usize = 36_864;

/// Alignment in bytes of what tensor maps describe: 16 is asked for, whole lines of L2 are better.
const MAP_ALIGNMENT: u64 = 128;

impl Pass {
    /// Columns of a round of fused launches.
    fn round(&self) -> usize {
        FusedSm90::round(self.problem.dim)
    }

    /// Groups that fused launches make of the columns of a chunk of `rows` rows whose first and largest block has `cols`: as many as its panels leave room for.
    fn groups(&self, rows: usize, cols: usize) -> usize {
        let most = if self.fused { self.blocks.rows / TILE / rows.div_ceil(TILE) } else { 1 };
        let rounds = cols.div_ceil(self.round());
        rounds.div_ceil(rounds.div_ceil(most))
    }

    /// Where fused launches pass G round, from `g` on, for blocks of `rows` rows.
    fn ring(&self, g: At, rows: usize, groups: usize) -> At {
        let round = self.round() * groups;
        let rounds = self.blocks.area() / rows.next_multiple_of(TILE) / round;
        At { row_stride: rounds.min(RING) * round, ..g }
    }
}

impl Design {
    /// Texts from the first on whose gradient is summed in the images' pass: all, unless texts have a pass of their own. Then as many as the 16-bit gradient
    /// has room for f32 sums of, half, or somewhat fewer: a last chunk of the texts' pass that would be more than half as tall as the others is as tall, as
    /// it takes as long. `row_stride`: of that gradient.
    pub(super) fn summed_texts(&self, row_stride: usize) -> usize {
        let Design { engine, images: Pass { problem, blocks, .. }, texts, .. } = *self;
        let Some(texts) = texts else { return problem.cols };
        // What lies between rows is the caller's; a row must fit where the first ones are put aside.
        let room = engine == Kind::Sm90 && row_stride == problem.dim && problem.dim <= blocks.area();
        let sums = !pads(&problem) && engine.gradients(&problem, blocks).1 == Gradient::Accumulated;
        let half = problem.cols / 2 / TILE * TILE;
        let rest = (problem.cols - half) % texts.blocks.rows;
        let filled = if texts.fused && rest > texts.blocks.rows / 2 { texts.blocks.rows - rest } else { 0 };
        // No block reaches over both parts: one that did would be the images' whole sum, which the design has it finish at once.
        let holds = |summed: &usize| room && sums && blocks.cols <= *summed;
        [half.saturating_sub(filled / TILE * TILE), half].into_iter().find(holds).unwrap_or(0)
    }
}

impl Plan {
    /// Queues one pass over the rows from `first` on, whose gradient goes to `out`, and with it the sums of the columns before `summed`. Gives the number
    /// of slots of sums it writes. Where texts have a pass of their own, `spare` holds blocks of G.
    ///
    /// # Safety
    /// The call's addresses must be live memory of the pass's shapes.
    pub(super) unsafe fn pass(
        &mut self,
        call: &mut Call<'_>,
        texts: bool,
        first: usize,
        summed: usize,
        out: At,
        spare: Spare,
    ) -> Result<usize> {
        let pass = if texts { self.design.texts.unwrap_or(self.design.images) } else { self.design.images };
        let to_rows = self.design.rows_gradient(&pass);
        let bytes = pass.problem.dtype.size_bytes();
        let mut slots = 0;
        let both = self.design.texts.is_none();
        call.first_row = first;
        // SAFETY: the caller's promise.
        unsafe { self.engine(texts).begin(call) }?;
        let (g, sums, sums_of_texts) = (call.g, call.d_img, call.d_txt);
        let (left, right) = (0..summed, summed..pass.problem.cols);
        // Of columns whose G nobody else reads.
        let ring = pass.fused.then(|| pass.blocks.of_rounds(right.len(), pass.round(), RING_COLUMNS));
        for row in (first..pass.problem.rows).step_by(pass.blocks.rows) {
            let rows = pass.blocks.rows.min(pass.problem.rows - row);
            let rows_out = At { address: out.row(row, bytes), ..out };
            if to_rows == Gradient::InPlace {
                call.d_img = rows_out;
            }
            let blocks = match ring {
                Some(ring) if left.is_empty() => ring,
                Some(_) => self.fused_blocks(call, &pass, (g, sums), spare, row..row + rows, summed),
                None if both => pass.blocks,
                None => self.widen(call, &pass, g, spare, row + rows, if summed > 0 { summed } else { right.end }),
            };
            call.groups = pass.groups(rows, blocks.cols);
            let loan = (both && self.design.lends()).then(|| Loan::new(call, &self.design, (g, sums_of_texts), row));
            let blocks = loan.as_ref().map_or(blocks, |loan| loan.blocks);
            if let Some(loan) = &loan {
                (call.g, call.d_img) = (loan.g, loan.d_img);
            }
            let second = loan.as_ref().map_or(left.end..left.end, |loan| loan.second.clone());
            let parts = [0..second.start, second.clone(), second.end..left.end];
            for block in parts.into_iter().flat_map(|part| blocks.of_columns(&pass.problem, row, part)) {
                if let Some(loan) = &loan {
                    call.d_txt = loan.d_txt(block.col);
                }
                let engine = self.engine(texts);
                // SAFETY: the caller's promise.
                unsafe {
                    slots = slots.max(engine.logits_and_d_img(call, &block)?);
                    call.scalars.slots = slots as u32;
                    engine.d_txt(call, &block)?;
                }
            }
            if ring.is_some() {
                call.g = pass.ring(g, rows, call.groups);
            }
            for block in ring.unwrap_or(blocks).of_columns(&pass.problem, row, right.clone()) {
                // SAFETY: as above.
                slots = slots.max(unsafe { self.engine(texts).logits_and_d_img(call, &block) }?);
            }
            if !matches!(to_rows, Gradient::Direct | Gradient::Finished) {
                let positives = call.positives_of_images(row, pass.problem.cols);
                let sums = Sums { at: call.d_img, parts: call.groups, part_rows: rows.next_multiple_of(TILE) };
                self.scale(call, sums, rows_out, rows, positives, self.units(&call.int8.txt))?;
            }
        }
        Ok(slots)
    }

    /// Queues the gradients of the first `rows` texts from their sums, which begin where the gradients do: row by row, each gradient where sums of earlier rows
    /// were. The first ones, which would overwrite their own, by way of `g`.
    pub(super) fn narrow(&self, call: &Call<'_>, d_txt: At, rows: usize) -> Result<()> {
        let Pass { problem, blocks, .. } = self.design.images;
        let sums = |row| At { address: d_txt.row(row, size_of::<f32>()), ..d_txt };
        let mut done = rows.min(blocks.area() / problem.dim);
        if done > 0 {
            let aside = At { address: self.workspace.ptr(self.regions.g), row_stride: problem.dim };
            self.scale(call, sums(0), aside, done, PositivePairs::default(), 0)?;
            self.pad(call, aside, d_txt, done)?;
        }
        while done < rows {
            let more = done.min(rows - done);
            let to = At { address: d_txt.row(done, problem.dtype.size_bytes()), ..d_txt };
            self.scale(call, sums(done), to, more, PositivePairs::default(), 0)?;
            done += more;
        }
        Ok(())
    }

    /// The engine of a pass.
    fn engine(&mut self, texts: bool) -> &mut dyn Engine {
        match &mut self.texts {
            Some(engine) if texts => engine.as_mut(),
            _ => self.images.as_mut(),
        }
    }

    /// Where the rows of a gradient that a pass has not yet written begin, aligned, and the bytes there. They do not depend on where the gradient lies: nor do the
    /// blocks, and so the bits of the result. `written`: rows of the pass that are written when the chunk is done.
    fn free(&self, spare: Spare, written: usize) -> (u64, usize) {
        let Problem { dim, dtype, .. } = self.design.images.problem;
        // What lies between rows is the caller's.
        if spare.gradient.row_stride != dim {
            return (0, 0);
        }
        let from = if spare.fixed { 0 } else { written };
        let bytes = ((spare.rows - from) * dim * dtype.size_bytes()).saturating_sub(MAP_ALIGNMENT as usize);
        (spare.gradient.row(from, dtype.size_bytes()).next_multiple_of(MAP_ALIGNMENT), bytes)
    }

    /// The blocks of a row chunk and, in `call.g`, where they go: into `spare` when that holds wider ones than the workspace's `g` does. Fewer launches, whose
    /// ends are what short ones lose. `widest`: columns that no block exceeds, so that a pass's first block is its largest and opens every slot of the sums.
    fn widen(&self, call: &mut Call<'_>, pass: &Pass, g: At, spare: Spare, written: usize, widest: usize) -> Blocks {
        call.g = g;
        // Blocks of the other engines are not worth it.
        if self.design.engine != Kind::Sm90 || pass.blocks.cols >= pass.problem.cols {
            return pass.blocks;
        }
        let (start, bytes) = self.free(spare, written);
        let elements = bytes / pass.problem.dtype.size_bytes();
        let blocks = pass.blocks.widened(widest, elements.min(pass.blocks.rows * widest.next_multiple_of(TILE)));
        if blocks != pass.blocks {
            call.g = At { address: start, row_stride: blocks.cols };
        }
        blocks
    }

    /// The same of fused launches, in whole rounds, as a part of one takes as long. What is free of a gradient holds G, or the chunk's sums, and G then has their
    /// place too. `workspace`: where both are else, sums behind G.
    fn fused_blocks(
        &self,
        call: &mut Call<'_>,
        pass: &Pass,
        workspace: (At, At),
        spare: Spare,
        rows: Range<usize>,
        widest: usize,
    ) -> Blocks {
        let (g, sums) = workspace;
        let (start, free) = self.free(spare, rows.end);
        let bytes_of_sums = pass.blocks.rows * sums.row_stride * size_of::<f32>();
        let to_the_end = (sums.address - g.address) as usize + bytes_of_sums;
        let row_bytes = rows.len().next_multiple_of(TILE) * pass.problem.dtype.size_bytes();
        let place = |g: u64, bytes: usize, sums: u64| {
            let blocks = pass.blocks.of_rounds(widest, pass.round(), (bytes / row_bytes).min(RING_COLUMNS));
            (blocks, g, sums)
        };
        let (mut blocks, mut g_at, mut sums_at) =
            place(g.address, pass.blocks.area() * pass.problem.dtype.size_bytes(), sums.address);
        let around = if free >= bytes_of_sums { to_the_end } else { 0 };
        for (wider, g, sums) in [place(start, free, sums.address), place(g.address, around, start)] {
            if wider.cols > blocks.cols {
                (blocks, g_at, sums_at) = (wider, g, sums);
            }
        }
        call.g = At { address: g_at, row_stride: blocks.cols };
        call.d_img.address = sums_at;
        blocks
    }

    /// The call of the texts' pass.
    pub(super) fn mirrored<'a>(&self, call: &Call<'a>, d_txt: At) -> Call<'a> {
        let pass = self.design.texts.unwrap_or(self.design.images);
        Call {
            offset: -call.offset,
            img: call.txt,
            txt: call.img,
            g: At { address: self.workspace.ptr(self.regions.g), row_stride: pass.blocks.cols },
            d_img: self.place(self.design.rows_gradient(&pass), self.regions.d_rows, d_txt),
            d_txt: At::default(),
            to_img: d_txt,
            to_txt: At::default(),
            sums: self.workspace.ptr(self.regions.unused_sums),
            ..*call
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::design::tests::h200;
    use crate::problem::{Options, Route};
    use crate::workspace::Regions;
    use kernel_core::DType;

    #[test]
    fn sums_lie_next_to_g() {
        for (batch, dim) in [(65_536, 768), (40_000, 1152), (9000, 520)] {
            let options = Options { route: Route::LowMemory, ..Options::default() };
            let design = Design::new(&h200(), &Problem::square(batch, dim, DType::F16), &options).unwrap();
            let Regions { g, d_rows, .. } = Regions::layout(&design, &h200()).1;
            let between = d_rows.offset() - (g.offset() + g.bytes());
            assert!(between < 1024, "{between} bytes between G and the sums");
        }
    }

    #[test]
    fn texts_are_summed_where_their_gradient_has_room() {
        let low = |batch, dim, dtype| {
            let options = Options { route: Route::LowMemory, ..Options::default() };
            Design::new(&h200(), &Problem::square(batch, dim, dtype), &options).unwrap()
        };
        // Half of the texts and no fewer: a last chunk as tall as the others would leave less than a block of 2,560 columns.
        let few = low(6400, 512, DType::Bf16);
        assert_eq!((few.images.blocks, few.summed_texts(512)), (Blocks { rows: 4224, cols: 2560 }, 3200));
        // 1,024 texts fewer than half: the last chunk of the others is as tall as the first.
        assert_eq!(low(65_536, 768, DType::Bf16).summed_texts(768), 31_744);
        assert_eq!(few.summed_texts(520), 0, "what lies between rows is the caller's");
        assert_eq!(low(6400, 516, DType::Bf16).summed_texts(516), 0, "padded rows");
        assert_eq!(low(1000, 768, DType::Bf16).summed_texts(768), 0, "one block is the images' whole sum");
        let both = Design::new(&h200(), &Problem::square(6400, 512, DType::F16), &Options::default()).unwrap();
        assert_eq!((both.texts, both.summed_texts(520)), (None, 6400), "one pass sums all");
    }

    #[test]
    fn short_chunks_share_the_panels_and_their_memory() {
        let options = Options { route: Route::LowMemory, ..Options::default() };
        let pass = Design::new(&h200(), &Problem::square(65_536, 768, DType::Bf16), &options).unwrap().images;
        assert!(pass.fused && pass.blocks == Blocks { rows: 2816, cols: 6 * 768 });
        let groups = |panels: usize, rounds: usize| pass.groups(panels * TILE - 1, rounds * 768 - 1);
        assert_eq!([groups(22, 44), groups(12, 44), groups(11, 44), groups(6, 21), groups(1, 44)], [1, 1, 2, 3, 22]);
        assert_eq!([groups(1, 1), groups(6, 4)], [1, 2], "no group is without a round");
        for panels in 1..=22 {
            for rounds in 1..50 {
                let groups = pass.groups(panels * TILE, rounds * 768);
                let ring = pass.ring(At::default(), panels * TILE, groups);
                assert!(groups >= 1 && groups * panels <= 22 && (groups - 1) * rounds.div_ceil(groups) < rounds);
                assert!(ring.row_stride >= groups * 2 * 768 && panels * TILE * ring.row_stride <= pass.blocks.area());
            }
        }
    }
}
