//! How the N × M matrix of pairs is cut into blocks. Pure arithmetic.

use std::cmp::Reverse;
use std::ops::{Range, RangeInclusive};

use crate::kernels::gradient_int8::{self, ADDITIONS, CLUSTER};
use crate::problem::{Chunk, Problem};

/// Rows of tiles, and columns of all but [`WIDE`] ones.
pub(crate) const TILE: usize = 128;

/// Columns of a tile of Hopper's logit product: always without gradients, and with them where wide tiles leave more of the last wave idle, in low memory,
/// and with 8-bit operands for few texts.
pub(crate) const NARROW: usize = TILE;
/// Columns of a wide tile. Operands and G together are what bounds the product, and it moves a sixth less of them.
pub(crate) const WIDE: usize = 192;
/// What a wide tile takes, in sixteenths of a narrow one (in whole steps on an H200).
const WIDE_COST: usize = 22;

/// One block of pairs: image rows `row..row + rows` against text rows `col..col + cols`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) col: usize,
    pub(crate) cols: usize,
}

/// The block size, and the order of blocks: all columns of one row chunk, then the next chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// What bounds a block.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Elements, at most (one tile column at least).
    pub(crate) elements: usize,
    /// Columns, at most.
    pub(crate) cols: usize,
    /// Tile rows that are chosen from, where [`Chunk`] does not name them.
    pub(crate) row_tiles: RangeInclusive<usize>,
    /// Whether tiles of the logit product may be [`WIDE`].
    pub(crate) wide: bool,
    /// Whether all products are of 8-bit integers.
    pub(crate) int8: bool,
    /// Whether the f32 sums that blocks read and write count.
    pub(crate) sums: bool,
}

/// What the start and the end of a launch cost, as so many features of a tile's product (about 7 µs on an H200).
const LAUNCH: usize = 1200;
/// Elements of f32 sums that are read and written in the time of a feature of a wave of tiles, where 16-bit products are added up (H200: with more rows or columns
/// of a block a step gains 1 to 2% more than its launches' ends say).
const SUMS: usize = 7680;

/// The same where all products are of 8-bit integers, in features of a wave of their gradient products' wide tiles, 128 of which take 1,300 clocks: what a wave of the logit
/// product takes at least, which its epilogue decides, and how many of its features are one of those (H200).
const INT8_LOGITS: usize = 700;
const INT8_LOGIT_FEATURES: usize = 2;

/// What the waves of a block's logit product cost, in sixteenths of a wave of narrow tiles, by tiles of so many columns. `rows`: tile rows.
fn waves_of(rows: usize, cols: usize, columns: usize, sms: usize) -> usize {
    (rows * cols.div_ceil(columns)).div_ceil(sms) * if columns == WIDE { WIDE_COST } else { 16 }
}

/// The same by the tiles for which it is least, and their columns.
pub(crate) fn logit_waves(rows: usize, cols: usize, wide: bool, sms: usize) -> (usize, usize) {
    let of = |columns| (waves_of(rows, cols, columns, sms), columns);
    if wide { of(NARROW).min(of(WIDE)) } else { of(NARROW) }
}

impl Blocks {
    /// The cheapest blocks within the limits. Every product of a block is a grid of tiles that `sms` SMs work off in waves, each as long as the
    /// product's sum; launches cost their ends. Measured on an H200, this orders block shapes rightly from 4096 × 4096 to one block of all pairs.
    /// `both`: a block gives both gradients, not only that of its rows.
    pub(crate) fn choose(problem: &Problem, chunk: Chunk, limits: &Limits, both: bool, sms: usize) -> Self {
        let (rows, cols) = (problem.rows.next_multiple_of(TILE), problem.cols.next_multiple_of(TILE));
        Self::cheapest(problem, chunk, limits, both, sms, |_| true).map_or(Self { rows, cols }, |(_, blocks)| blocks)
    }

    /// The same among those that `fit` alone, with what they cost.
    pub(crate) fn cheapest(
        problem: &Problem,
        chunk: Chunk,
        limits: &Limits,
        both: bool,
        sms: usize,
        fit: impl Fn(Self) -> bool,
    ) -> Option<(u128, Self)> {
        let (all_rows, all_cols) = (problem.rows.div_ceil(TILE), problem.cols.next_multiple_of(TILE));
        let width = problem.dim.div_ceil(TILE);
        // In 128 bits: the cost of the largest problems does not fit 64.
        let cost = |rows: usize, cols: usize| {
            let launch = |tiles: usize, sum: usize| (tiles.div_ceil(sms) * sum + LAUNCH) as u128;
            // `columns`: of a tile, on route int8.
            let gradient = |rows: usize, sum: usize, columns: usize| {
                if !limits.int8 {
                    return launch(rows * width, sum);
                }
                let rows = rows.next_multiple_of(CLUSTER);
                launch(rows * problem.dim.div_ceil(columns), sum * (columns + ADDITIONS) / (WIDE + ADDITIONS))
            };
            let logits_sum = match limits.int8 {
                true => INT8_LOGITS.max(problem.dim / INT8_LOGIT_FEATURES),
                false => problem.dim,
            };
            // All blocks of a pass have the tiles that its full ones are best off with.
            let (_, columns) = logit_waves(rows, cols, limits.wide, sms);
            let of_gradient = |rows| gradient_int8::columns([rows, problem.dim], sms);
            let of_gradients = if limits.int8 { [of_gradient(rows * TILE), of_gradient(cols)] } else { [NARROW; 2] };
            let block = |rows: usize, cols: usize| {
                let logits = waves_of(rows, cols, columns, sms);
                let cols_gradient = if both { gradient(cols.div_ceil(TILE), rows * TILE, of_gradients[1]) } else { 0 };
                (logits * logits_sum / 16 + LAUNCH) as u128 + gradient(rows, cols, of_gradients[0]) + cols_gradient
            };
            let (rows_left, cols_left) = (all_rows % rows, all_cols % cols);
            let of_chunk = |rows: usize| {
                let rest = if cols_left > 0 { block(rows, cols_left) } else { 0 };
                (all_cols / cols) as u128 * block(rows, cols) + rest
            };
            let (chunks, parts) = (all_rows.div_ceil(rows), all_cols.div_ceil(cols));
            let of_rows = if parts > 1 { (all_rows * TILE) as u128 * parts as u128 } else { 0 };
            let of_cols = if both && chunks > 1 { all_cols as u128 * chunks as u128 } else { 0 };
            let sums = if limits.sums { (of_rows + of_cols) * problem.dim as u128 / SUMS as u128 } else { 0 };
            (all_rows / rows) as u128 * of_chunk(rows) + if rows_left > 0 { of_chunk(rows_left) } else { 0 } + sums
        };
        let row_tiles = match chunk {
            Chunk::Rows(rows) => {
                let tiles = rows.clamp(1, problem.rows).div_ceil(TILE);
                tiles..=tiles
            }
            Chunk::Auto | Chunk::Workspace(_) => {
                let most = all_rows.min(*limits.row_tiles.end());
                all_rows.min(*limits.row_tiles.start())..=most
            }
        };
        row_tiles
            .flat_map(|rows| {
                let most = (limits.elements / (rows * TILE)).min(limits.cols) / TILE * TILE;
                let parts = all_cols.div_ceil(most.max(TILE));
                // Equal parts rather than full ones and a remainder, in whole tiles of either width.
                (parts..parts + 4).flat_map(move |parts| {
                    let part = all_cols.div_ceil(parts);
                    let in_wide = part.next_multiple_of(WIDE);
                    let wide = limits.wide && parts > 1 && in_wide <= most;
                    [Some(part.next_multiple_of(TILE)), wide.then_some(in_wide)]
                        .into_iter()
                        .flatten()
                        .map(move |cols| (rows, cols))
                })
            })
            // Of two alike the taller one: the texts' sums, which no cache holds, are added to less often.
            .filter(|&(rows, cols)| fit(Self { rows: rows * TILE, cols }))
            .map(|(rows, cols)| ((cost(rows, cols), rows * cols, Reverse(rows)), Self { rows: rows * TILE, cols }))
            .min_by_key(|&(order, _)| order)
            .map(|((cost, ..), blocks)| (cost, blocks))
    }

    /// Elements of a block, whole tiles.
    pub(crate) fn area(&self) -> usize {
        self.rows * self.cols
    }

    /// The same rows and more columns, when `elements` hold more: equal parts of `cols`.
    pub(crate) fn widened(self, cols: usize, elements: usize) -> Self {
        let all_cols = cols.div_ceil(TILE);
        let most = elements / self.rows / TILE;
        if most * TILE <= self.cols {
            return self;
        }
        Self { cols: all_cols.div_ceil(all_cols.div_ceil(most)) * TILE, ..self }
    }

    /// The same rows, and equal parts of `cols` columns in whole rounds, of at most `most` columns (one round at least).
    pub(crate) fn of_rounds(self, cols: usize, round: usize, most: usize) -> Self {
        let rounds = cols.div_ceil(round).max(1);
        let parts = rounds.div_ceil((most / round).max(1));
        Self { cols: rounds.div_ceil(parts) * round, ..self }
    }

    /// First rows of the row chunks.
    pub(crate) fn chunks(self, problem: &Problem) -> impl Iterator<Item = usize> + use<> {
        (0..problem.rows).step_by(self.rows)
    }

    /// The blocks of the row chunk that begins at `row`, in order.
    pub(crate) fn of_chunk(self, problem: &Problem, row: usize) -> impl Iterator<Item = Block> + use<> {
        self.of_columns(problem, row, 0..problem.cols)
    }

    /// Those of some of its columns, which begin at a tile.
    pub(crate) fn of_columns(
        self,
        problem: &Problem,
        row: usize,
        columns: Range<usize>,
    ) -> impl Iterator<Item = Block> + use<> {
        let (n, end) = (problem.rows, columns.end);
        let block = move |col| Block { row, rows: self.rows.min(n - row), col, cols: self.cols.min(end - col) };
        columns.step_by(self.cols).map(block)
    }

    /// The blocks of `problem`, in order.
    pub(crate) fn iter(self, problem: &Problem) -> impl Iterator<Item = Block> + use<> {
        let problem = *problem;
        self.chunks(&problem).flat_map(move |row| self.of_chunk(&problem, row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Positives;
    use kernel_core::DType;

    fn limits(elements: usize) -> Limits {
        Limits { elements, cols: usize::MAX, row_tiles: 32..=72, wide: true, int8: false, sums: false }
    }

    fn problem(rows: usize, cols: usize, dim: usize) -> Problem {
        Problem::block(rows, cols, dim, DType::Bf16, Positives::None)
    }

    #[test]
    fn blocks_cover_every_pair_once() {
        for (n, m, dim) in [(1, 1, 8), (127, 129, 8), (1000, 700, 64), (65536, 65536, 768), (20000, 300, 100)] {
            for chunk in [Chunk::Auto, Chunk::Rows(1), Chunk::Rows(300), Chunk::Rows(usize::MAX)] {
                for budget in [1, 1 << 20, 92 << 20] {
                    let problem = problem(n, m, dim);
                    let blocks = Blocks::choose(&problem, chunk, &limits(budget), true, 132);
                    let mut pairs = 0u64;
                    let mut last = None;
                    for block in blocks.iter(&problem) {
                        assert!(
                            block.rows > 0 && block.cols > 0 && block.rows <= blocks.rows && block.cols <= blocks.cols
                        );
                        assert!(block.row % TILE == 0 && block.col % 64 == 0);
                        assert!(last < Some((block.row, block.col)));
                        last = Some((block.row, block.col));
                        pairs += block.rows as u64 * block.cols as u64;
                        if n > 20000 && pairs > 1 << 28 {
                            break;
                        }
                    }
                    if n <= 20000 {
                        assert_eq!(pairs, n as u64 * m as u64, "{n} x {m}, {chunk:?}, {budget}");
                    }
                    assert!(blocks.area() <= budget.max(blocks.rows * TILE), "{blocks:?}");
                }
            }
        }
    }

    #[test]
    fn automatic_chunks_fill_waves() {
        let rows = |dim| Blocks::choose(&problem(65536, 65536, dim), Chunk::Auto, &limits(96 << 20), true, 132).rows;
        for dim in [512, 768, 1024, 1152] {
            let tiles = rows(dim) / TILE * dim.div_ceil(TILE);
            let waste = 1.0 - tiles as f64 / (tiles.div_ceil(132) * 132) as f64;
            assert!(waste < 0.04, "dim {dim}: {} rows leave {waste:.3} of the last wave idle", rows(dim));
        }
    }

    #[test]
    fn blocks_widen_to_what_there_is() {
        let problem = problem(65536, 65536, 768);
        let blocks = Blocks { rows: 2816, cols: 4480 };
        assert_eq!(blocks.widened(65536, 2816 * 4480), blocks);
        assert_eq!(blocks.widened(65536, 2816 * 4607), blocks);
        assert_eq!(blocks.widened(65536, 0), blocks);
        let wide = blocks.widened(65536, 65536 * 768);
        assert_eq!(wide, Blocks { rows: 2816, cols: 16384 });
        assert_eq!(blocks.widened(65536, usize::MAX).cols, 65536);
        let columns = |row| wide.of_chunk(&problem, row).map(|block| block.cols).sum::<usize>();
        assert!(wide.chunks(&problem).all(|row| columns(row) == 65536));
    }

    #[test]
    fn parts_are_whole_rounds() {
        let blocks = Blocks { rows: 2816, cols: 0 };
        let cols = |all, most| blocks.of_rounds(all, 768, most).cols;
        assert_eq!([cols(31_744, 4608), cols(31_744, 6143), cols(31_744, 6144)], [4608, 5376, 5376]);
        assert_eq!([cols(65_536, 36_864), cols(33_792, 36_864), cols(1, 36_864)], [43 * 768, 44 * 768, 768]);
        assert_eq!([cols(3000, 0), cols(0, 4608)], [768; 2], "one round at least");
    }

    #[test]
    fn the_largest_problem_has_blocks() {
        let most = i32::MAX as usize;
        let blocks = Blocks::choose(&problem(most, most, most), Chunk::Auto, &limits(92 << 20), true, 132);
        assert!(blocks.area() <= 92 << 20 && blocks.area() > 46 << 20, "{blocks:?}");
    }

    #[test]
    fn tiles_are_wide_where_that_leaves_less_of_the_waves_idle() {
        let columns = |rows: usize, cols| logit_waves(rows / TILE, cols, true, 132).1;
        assert_eq!([columns(128, 128), columns(1408, 1536), columns(4096, 4096)], [NARROW; 3]);
        assert_eq!([columns(1664, 1536), columns(8192, 8192), columns(5632, 16384)], [WIDE; 3]);
        let chosen = Blocks::choose(&problem(65536, 65536, 768), Chunk::Auto, &limits(5632 * 16384), true, 132);
        assert_eq!(chosen, Blocks { rows: 8192, cols: 57 * WIDE });
    }

    #[test]
    fn blocks_of_8_bit_integers_fill_waves_of_their_own_tiles() {
        let limits = Limits { row_tiles: 32..=88, wide: false, int8: true, ..limits(8448 * 16384) };
        let chosen = |batch, dim| Blocks::choose(&problem(batch, batch, dim), Chunk::Auto, &limits, true, 132);
        assert_eq!(chosen(65536, 768), Blocks { rows: 8448, cols: 16_384 });
        for (batch, dim) in [(65536, 512), (65536, 1024), (131_072, 768), (32_768, 1152)] {
            let Blocks { rows, cols } = chosen(batch, dim);
            for side in [rows, cols] {
                let columns = gradient_int8::columns([side, dim], 132);
                let tiles = (side / TILE).next_multiple_of(CLUSTER) * dim.div_ceil(columns);
                let filled = tiles as f64 / (tiles.div_ceil(132) * 132) as f64;
                assert!(filled > 0.9, "{batch} x {dim}: {rows} x {cols}, {filled:.2} of the waves of {side}");
            }
        }
    }

    #[test]
    fn small_problems_are_one_block() {
        let one = problem(5, 3, 9);
        assert_eq!(Blocks::choose(&one, Chunk::Auto, &limits(1 << 20), true, 132), Blocks { rows: 128, cols: 128 });
        assert_eq!(Blocks::choose(&one, Chunk::Rows(1), &limits(1 << 20), true, 132).iter(&one).count(), 1);
    }
}
