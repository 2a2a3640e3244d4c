//! How the N × M matrix of pairs is cut into blocks. Pure arithmetic.

use std::ops::RangeInclusive;

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
    /// Elements, at most (one row chunk of one tile column at least).
    pub(crate) elements: usize,
    /// Columns, at most.
    pub(crate) cols: usize,
    /// Tile rows that `Chunk::Auto` chooses from.
    pub(crate) row_tiles: RangeInclusive<usize>,
}

impl Blocks {
    /// `Auto` rows: the gradient of a row chunk is a matrix of (rows / 128) · ceil(dim / 128) tiles, which `sms` SMs work off in waves; of the
    /// sizes allowed the one is taken whose waves over all chunks are fewest (measured on an H200: 4,224 to 11,264 rows
    /// differ by under 3% when waves are full, and lose up to 20% when they are not).
    pub(crate) fn choose(problem: &Problem, chunk: Chunk, limits: &Limits, sms: usize) -> Self {
        let all_rows = problem.rows.div_ceil(TILE);
        let row_tiles = match chunk {
            Chunk::Rows(rows) => rows.clamp(1, problem.rows).div_ceil(TILE),
            Chunk::Auto if all_rows <= *limits.row_tiles.end() => all_rows,
            Chunk::Auto => {
                let width = problem.dim.div_ceil(TILE);
                let waves = |tiles: usize| (tiles * width).div_ceil(sms);
                let cost = |tiles: usize| all_rows / tiles * waves(tiles) + waves(all_rows % tiles);
                limits.row_tiles.clone().rev().min_by_key(|tiles| cost(*tiles)).unwrap_or(all_rows)
            }
        };
        let rows = row_tiles * TILE;
        let all_cols = problem.cols.div_ceil(TILE);
        let most = ((limits.elements / rows).min(limits.cols) / TILE).max(1);
        // Equal parts rather than full ones and a remainder.
        let col_tiles = all_cols.div_ceil(all_cols.div_ceil(most));
        Self { rows, cols: col_tiles * TILE }
    }

    /// Elements of a block, whole tiles.
    pub(crate) fn area(&self) -> usize {
        self.rows * self.cols
    }

    /// The blocks of `problem`, in order.
    pub(crate) fn iter(self, problem: &Problem) -> impl Iterator<Item = Block> + use<> {
        let Problem { rows: n, cols: m, .. } = *problem;
        (0..n).step_by(self.rows).flat_map(move |row| {
            (0..m).step_by(self.cols).map(move |col| Block {
                row,
                rows: self.rows.min(n - row),
                col,
                cols: self.cols.min(m - col),
            })
        })
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
                    let blocks = Blocks::choose(&problem, chunk, &limits(budget), 132);
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
        let rows = |dim| Blocks::choose(&problem(65536, 65536, dim), Chunk::Auto, &limits(96 << 20), 132).rows;
        for dim in [512, 768, 1024, 1152] {
            let tiles = rows(dim) / TILE * dim.div_ceil(TILE);
            let waste = 1.0 - tiles as f64 / (tiles.div_ceil(132) * 132) as f64;
            assert!(waste < 0.04, "dim {dim}: {} rows leave {waste:.3} of the last wave idle", rows(dim));
        }
    }

    #[test]
    fn small_problems_are_one_block() {
        let one = problem(5, 3, 9);
        assert_eq!(Blocks::choose(&one, Chunk::Auto, &limits(1 << 20), 132), Blocks { rows: 128, cols: 128 });
        assert_eq!(Blocks::choose(&one, Chunk::Rows(1), &limits(1 << 20), 132).iter(&one).count(), 1);
    }
}
