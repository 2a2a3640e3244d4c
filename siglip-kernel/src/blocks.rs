//! How the N × M matrix of pairs is cut into blocks. Pure arithmetic.

use std::cmp::Reverse;
use std::ops::{Range, RangeInclusive};

use crate::problem::{Chunk, Problem};

/// Rows and columns of tiles are multiples of this.
pub(crate) const TILE: usize = 128;

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
}

/// What the start and the end of a launch cost, as so many features of a tile's product (about 7 µs on an H200).
const LAUNCH: usize = 1200;

impl Blocks {
    /// The cheapest blocks within the limits. Every product of a block is a grid of tiles that `sms` SMs work off in waves, each as long as the
    /// product's sum; launches cost their ends. Measured on an H200, this orders block shapes rightly from 4096 × 4096 to one block of all pairs.
    /// `both`: a block gives both gradients, not only that of its rows.
    pub(crate) fn choose(problem: &Problem, chunk: Chunk, limits: &Limits, both: bool, sms: usize) -> Self {
        let (all_rows, all_cols) = (problem.rows.div_ceil(TILE), problem.cols.div_ceil(TILE));
        let width = problem.dim.div_ceil(TILE);
        // In 128 bits: the cost of the largest problems does not fit 64.
        let cost = |rows: usize, cols: usize| {
            let launch = |tiles: usize, sum: usize| (tiles.div_ceil(sms) * sum + LAUNCH) as u128;
            let block = |rows: usize, cols: usize| {
                let cols_gradient = if both { launch(cols * width, rows * TILE) } else { 0 };
                launch(rows * cols, problem.dim) + launch(rows * width, cols * TILE) + cols_gradient
            };
            let (rows_left, cols_left) = (all_rows % rows, all_cols % cols);
            let of_chunk = |rows: usize| {
                let rest = if cols_left > 0 { block(rows, cols_left) } else { 0 };
                (all_cols / cols) as u128 * block(rows, cols) + rest
            };
            (all_rows / rows) as u128 * of_chunk(rows) + if rows_left > 0 { of_chunk(rows_left) } else { 0 }
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
        let (rows, cols) = row_tiles
            .flat_map(|rows| {
                let most = (limits.elements / (rows * TILE)).min(limits.cols) / TILE;
                let parts = all_cols.div_ceil(most.max(1));
                // Equal parts rather than full ones and a remainder.
                (parts..parts + 4).map(move |parts| (rows, all_cols.div_ceil(parts)))
            })
            // Of two alike the taller one: the texts' sums, which no cache holds, are added to less often.
            .min_by_key(|&(rows, cols)| (cost(rows, cols), rows * cols, Reverse(rows)))
            .unwrap_or((all_rows, all_cols));
        Self { rows: rows * TILE, cols: cols * TILE }
    }

    /// Elements of a block, whole tiles.
    pub(crate) fn area(&self) -> usize {
        self.rows * self.cols
    }

    /// The same rows and more columns, when `elements` hold more.
    pub(crate) fn widened(self, problem: &Problem, elements: usize) -> Self {
        let all_cols = problem.cols.div_ceil(TILE);
        let most = elements / self.rows / TILE;
        if most * TILE <= self.cols {
            return self;
        }
        Self { cols: all_cols.div_ceil(all_cols.div_ceil(most)) * TILE, ..self }
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
        Limits { elements, cols: usize::MAX, row_tiles: 32..=72 }
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
                        assert!(block.row % TILE == 0 && block.col % TILE == 0);
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
        assert_eq!(blocks.widened(&problem, 2816 * 4480), blocks);
        assert_eq!(blocks.widened(&problem, 2816 * 4607), blocks);
        assert_eq!(blocks.widened(&problem, 0), blocks);
        let wide = blocks.widened(&problem, 65536 * 768);
        assert_eq!(wide, Blocks { rows: 2816, cols: 16384 });
        assert_eq!(blocks.widened(&problem, usize::MAX).cols, 65536);
        let columns = |row| wide.of_chunk(&problem, row).map(|block| block.cols).sum::<usize>();
        assert!(wide.chunks(&problem).all(|row| columns(row) == 65536));
    }

    #[test]
    fn the_largest_problem_has_blocks() {
        let most = i32::MAX as usize;
        let blocks = Blocks::choose(&problem(most, most, most), Chunk::Auto, &limits(92 << 20), true, 132);
        assert!(blocks.area() <= 92 << 20 && blocks.area() > 46 << 20, "{blocks:?}");
    }

    #[test]
    fn small_problems_are_one_block() {
        let one = problem(5, 3, 9);
        assert_eq!(Blocks::choose(&one, Chunk::Auto, &limits(1 << 20), true, 132), Blocks { rows: 128, cols: 128 });
        assert_eq!(Blocks::choose(&one, Chunk::Rows(1), &limits(1 << 20), true, 132).iter(&one).count(), 1);
    }
}
