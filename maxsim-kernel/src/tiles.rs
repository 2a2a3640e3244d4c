//! How queries are cut into tiles of 64 rows, and the work into shares of the launch's blocks. Pure arithmetic.

use crate::problem::{Pairing, Problem, Spans};

/// Rows of a query tile (`TILE_ROWS` of `cuda/items.cuh`).
pub(crate) const TILE_ROWS: usize = 64;
/// Tokens that a document costs beside its own, in a division of the work.
pub(crate) const ENTRY_COST: usize = 16;

/// `QueryTile` of `cuda/items.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueryTile {
    pub(crate) row: u64,
    pub(crate) rows: u32,
    pub(crate) query: u32,
    pub(crate) queries: u32,
    pub(crate) segment: u32,
}

// SAFETY: plain integers without padding.
unsafe impl kernel_core::cudarc::driver::DeviceRepr for QueryTile {}

/// The tiles of a cross, whole queries together where they fit; and the first segment of each query, and the end.
pub(crate) fn query_tiles(queries: &Spans) -> (Vec<QueryTile>, Vec<u32>) {
    let (mut tiles, mut segments) = (Vec::new(), vec![0]);
    let (mut segment, mut row) = (0u32, 0u64);
    let mut open: Option<QueryTile> = None;
    for query in 0..queries.count() {
        let length = queries.length(query);
        if length > TILE_ROWS {
            tiles.extend(open.take());
            for from in (0..length).step_by(TILE_ROWS) {
                tiles.push(QueryTile {
                    row: row + from as u64,
                    rows: TILE_ROWS.min(length - from) as u32,
                    query: query as u32,
                    queries: 1,
                    segment,
                });
                segment += 1;
            }
        } else {
            let full = |tile: &QueryTile| tile.rows as usize + length > TILE_ROWS || tile.queries as usize == TILE_ROWS;
            if open.as_ref().is_some_and(full) {
                tiles.extend(open.take());
            }
            let tile = open.get_or_insert(QueryTile { row, query: query as u32, segment, ..QueryTile::default() });
            tile.rows += length as u32;
            tile.queries += 1;
            segment += 1;
        }
        row += length as u64;
        segments.push(segment);
    }
    tiles.extend(open);
    (tiles, segments)
}

/// The units of work of one launch and their division.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Division {
    /// Query tiles that a block handles at once.
    pub(crate) tiles: usize,
    /// What a token of a document costs in a row block of a cross, and in the last one.
    pub(crate) row_block_cost: usize,
    pub(crate) last_block_cost: usize,
    /// Of a query outside of a cross, in blocks of `tiles` tiles.
    pub(crate) parts: usize,
    /// Of a cross, in blocks of `tiles` tiles.
    pub(crate) row_blocks: usize,
    /// Whether every query is one segment, so that sums are scores.
    pub(crate) whole: bool,
    /// Rows of the sums: segments in a cross, parts of a slot else.
    pub(crate) segments: usize,
    /// Entries (documents in a cross, else slots) where chunks begin, and the end.
    pub(crate) chunk_starts: Vec<u32>,
    /// Blocks of the launch.
    pub(crate) blocks: usize,
    /// Units of each block, per chunk.
    pub(crate) starts: Vec<u32>,
    /// Whether documents are streamed past few query rows, unless a call brings rows with gaps.
    pub(crate) streamed: bool,
    /// Cross only.
    pub(crate) query_tiles: Vec<QueryTile>,
    pub(crate) query_segments: Vec<u32>,
}

/// A division that needs no table, of units that all cost the same but for those of a cross's last row block: the fields of `Items` of
/// `cuda/items.cuh`. The row blocks but the last one are shared among `first_blocks` blocks, the others among the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Even {
    pub(crate) first_units: u32,
    pub(crate) first_blocks: u32,
    pub(crate) shares: [u32; 2],
    pub(crate) rests: [u32; 2],
}

impl Even {
    /// Of the `units` and what each costs, of the row blocks but the last one and of the last one, the division whose dearest block is cheapest.
    fn new(units: [usize; 2], costs: [usize; 2], blocks: usize) -> Self {
        let (units, first_blocks) = if units[0] == 0 || costs[0] == costs[1] || blocks < 2 {
            ([0, units[0] + units[1]], 0)
        } else {
            let most =
                |first: usize| (units[0].div_ceil(first) * costs[0]).max(units[1].div_ceil(blocks - first) * costs[1]);
            (units, (1..blocks).min_by_key(|&first| most(first)).unwrap_or(1))
        };
        let parts = [first_blocks.max(1), blocks - first_blocks];
        Self {
            first_units: units[0] as u32,
            first_blocks: first_blocks as u32,
            shares: [0, 1].map(|part| (units[part] / parts[part]) as u32),
            rests: [0, 1].map(|part| (units[part] % parts[part]) as u32),
        }
    }
}

impl Division {
    /// For blocks of `tiles` tiles, at most `most_blocks` of them, and chunks of documents of about `chunk_bytes` at most.
    pub(crate) fn new(problem: &Problem, tiles: usize, most_blocks: usize, chunk_bytes: usize) -> Self {
        if let Pairing::Cross = problem.pairing {
            let (mut query_tiles, query_segments) = query_tiles(&problem.queries);
            let row_blocks = query_tiles.len().div_ceil(tiles);
            let last_tiles = query_tiles.len() - (row_blocks - 1) * tiles;
            query_tiles.resize(row_blocks * tiles, QueryTile::default());
            let segments = query_segments.last().copied().unwrap_or(0) as usize;
            let chunk_starts = chunks(problem, row_blocks, chunk_bytes);
            let widest = chunk_starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(1);
            let mut division = Self {
                tiles,
                row_block_cost: block_cost(tiles),
                last_block_cost: block_cost(last_tiles),
                parts: 1,
                row_blocks,
                whole: segments == problem.queries.count(),
                segments,
                chunk_starts,
                blocks: (row_blocks * widest).min(most_blocks),
                starts: Vec::new(),
                streamed: false,
                query_tiles,
                query_segments,
            };
            division.divide(|doc| problem.docs.length(doc));
            return division;
        }
        let parts = problem.queries.longest().div_ceil(TILE_ROWS * tiles).max(1);
        let slots = problem.scores();
        let mut division = Self {
            tiles,
            row_block_cost: 1,
            last_block_cost: 1,
            parts,
            row_blocks: 1,
            whole: parts * tiles == 1,
            segments: parts * tiles,
            chunk_starts: vec![0, slots as u32],
            blocks: (slots * parts).min(most_blocks),
            starts: Vec::new(),
            streamed: false,
            query_tiles: Vec::new(),
            query_segments: Vec::new(),
        };
        division.divide(|slot| problem.docs.length(problem.pair(slot).1));
        division
    }

    /// `maxsim_schedule` of `cuda/prepare.cu` on the host.
    fn divide(&mut self, length: impl Fn(usize) -> usize) {
        // Of the chunks so far: their cost, and how much of it went to the blocks before each one.
        let (mut due, mut given) = (0u128, vec![0u128; self.blocks + 1]);
        for chunk in self.chunk_starts.windows(2) {
            let mut prefix = vec![0u64];
            for entry in chunk[0]..chunk[1] {
                let cost = length(entry as usize).next_multiple_of(8) + ENTRY_COST;
                prefix.push(prefix[prefix.len() - 1] + cost as u64);
            }
            let (entries, cost) = (prefix.len() - 1, prefix[prefix.len() - 1]);
            let (whole, last) = (u128::from(cost) * self.row_block_cost as u128, self.row_blocks - 1);
            let total = whole * last as u128 + u128::from(cost) * self.last_block_cost as u128;
            due += total;
            let mut least = 0;
            for (block, given) in given.iter_mut().enumerate() {
                // A block that had too much of one chunk gets less of the next.
                let target = (due * block as u128 / self.blocks as u128).saturating_sub(*given).clamp(least, total);
                least = target;
                let row_block = ((target / whole) as usize).min(last);
                let rest = target - whole * row_block as u128;
                let weight = if row_block == last { self.last_block_cost } else { self.row_block_cost } as u128;
                let entry = prefix[..entries].partition_point(|&before| u128::from(before) * weight < rest);
                *given += whole * row_block as u128 + u128::from(prefix[entry]) * weight;
                self.starts.push(((row_block * entries + entry) * self.parts) as u32);
            }
        }
    }

    /// When all documents are as long and there is one chunk.
    pub(crate) fn even(&self, problem: &Problem) -> Even {
        let units = match problem.pairing {
            Pairing::Cross => [(self.row_blocks - 1) * problem.docs.count(), problem.docs.count()],
            _ => [0, problem.scores() * self.parts],
        };
        Even::new(units, [self.row_block_cost, self.last_block_cost], self.blocks)
    }

    pub(crate) fn chunk_count(&self) -> usize {
        self.chunk_starts.len() - 1
    }

    /// Floats of the sums, when they are not the scores themselves.
    pub(crate) fn partials(&self, problem: &Problem) -> usize {
        match (self.whole, &problem.pairing) {
            (true, _) => 0,
            (false, Pairing::Cross) => self.segments * problem.docs.count(),
            (false, _) => self.segments * problem.scores(),
        }
    }
}

/// Cost of a row block with so many tiles, in no unit: on an H200 three consumers took 1.5 times as long as one for the same documents.
fn block_cost(tiles: usize) -> usize {
    tiles + 3
}

/// Runs of documents, about as large as one another, that stay in the cache while every row block meets them; one run when there is one row
/// block.
fn chunks(problem: &Problem, row_blocks: usize, chunk_bytes: usize) -> Vec<u32> {
    let docs = problem.docs.count();
    let most_docs = (i32::MAX as usize / row_blocks).max(1);
    let row_bytes = problem.dim * problem.dtype.size_bytes();
    // Of what is left, cut into equal parts that each fit: where the next chunk ends, to within a document.
    let share = |left: usize| match row_blocks {
        0 | 1 => usize::MAX,
        _ => left.div_ceil(left.div_ceil(chunk_bytes).max(1)).max(1),
    };
    let mut left = problem.docs.rows() * row_bytes;
    let mut starts = vec![0u32];
    let (mut bytes, mut width, mut enough) = (0usize, 0usize, share(left));
    for doc in 0..docs {
        let more = problem.docs.length(doc) * row_bytes;
        if width > 0 && (width == most_docs || more > 0 && bytes >= enough) {
            starts.push(doc as u32);
            left = left.saturating_sub(bytes);
            (bytes, width, enough) = (0, 0, share(left));
        }
        bytes += more;
        width += 1;
    }
    starts.push(docs as u32);
    starts
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_core::DType;

    fn cover(queries: &Spans) {
        let (tiles, segments) = query_tiles(queries);
        let mut at = 0usize;
        let mut next_segment = 0;
        for tile in &tiles {
            assert!(tile.rows as usize <= TILE_ROWS && (1..=TILE_ROWS).contains(&(tile.queries as usize)));
            assert_eq!(tile.row as usize, at, "tiles follow one another");
            assert_eq!(tile.segment, next_segment);
            if tile.queries > 1 {
                let (first, last) = (tile.query as usize, (tile.query + tile.queries) as usize - 1);
                assert_eq!(queries.span(first).start, at);
                assert_eq!(queries.span(last).end, at + tile.rows as usize);
            }
            at += tile.rows as usize;
            next_segment += tile.queries;
        }
        assert_eq!(at, queries.rows());
        assert_eq!(segments.len(), queries.count() + 1);
        assert_eq!(segments.last(), Some(&next_segment));
    }

    #[test]
    fn tiles_cover_every_row_once() {
        for length in [1, 20, 32, 33, 64, 65, 200] {
            cover(&Spans::padded(7, length));
        }
        cover(&Spans::of_lengths([0, 5, 64, 0, 0, 65, 128, 1, 63, 2, 0]));
        cover(&Spans::of_lengths((0..300).map(|i| i % 3)));
        assert_eq!(query_tiles(&Spans::padded(8, 32)).0.len(), 4);
        assert_eq!(query_tiles(&Spans::padded(200, 1)).0.len(), 4);
    }

    #[test]
    fn divisions_hand_out_every_unit_once_and_evenly() {
        let docs = Spans::of_lengths((0..400).map(|i| i * 7 % 301));
        for (queries, tiles) in [(Spans::padded(96, 32), 3), (Spans::padded(1, 32), 1), (Spans::padded(3, 500), 2)] {
            for bytes in [1, 1 << 20, usize::MAX] {
                let problem = Problem::cross(queries.clone(), docs.clone(), 128, DType::Bf16);
                let division = Division::new(&problem, tiles, 132, bytes);
                assert_eq!(division.query_tiles.len(), division.row_blocks * tiles);
                assert_eq!(division.starts.len(), division.chunk_count() * (division.blocks + 1));
                for (chunk, starts) in division.starts.chunks(division.blocks + 1).enumerate() {
                    let width = division.chunk_starts[chunk + 1] - division.chunk_starts[chunk];
                    assert_eq!((starts[0], starts[division.blocks]), (0, width * division.row_blocks as u32));
                    assert!(starts.is_sorted());
                }
                if bytes == usize::MAX && division.last_block_cost == division.row_block_cost {
                    let shares = division.starts.windows(2).map(|pair| {
                        (pair[0]..pair[1]).map(|unit| docs.length(unit as usize % 400) + ENTRY_COST).sum::<usize>()
                    });
                    let mean = (docs.rows() + 400 * ENTRY_COST) * division.row_blocks / division.blocks;
                    assert!(shares.max().unwrap() <= mean + 301 + ENTRY_COST + 8 * 400 / division.blocks);
                }
            }
        }
    }

    #[test]
    fn even_divisions_hand_out_every_unit_once() {
        for (units, costs, blocks) in [
            ([2688, 128], [6, 4], 132),
            ([10_752, 256], [6, 5], 132),
            ([0, 1000], [4, 4], 132),
            ([5, 5], [6, 4], 2),
            ([7, 7], [6, 4], 1),
        ] {
            let even = Even::new(units, costs, blocks);
            // `first_unit` of `cuda/items.cuh`.
            let start = |block: usize| {
                let part = usize::from(block >= even.first_blocks as usize);
                let at = (block - part * even.first_blocks as usize) as u32;
                (part as u32 * even.first_units + at * even.shares[part] + at.min(even.rests[part])) as usize
            };
            assert_eq!((start(0), start(blocks)), (0, units[0] + units[1]));
            let cost = |unit: usize| if unit < units[0] { costs[0] } else { costs[1] };
            let shares: Vec<usize> =
                (0..blocks).map(|block| (start(block)..start(block + 1)).map(cost).sum()).collect();
            let mean = (units[0] * costs[0] + units[1] * costs[1]).div_ceil(blocks);
            assert!(shares.iter().all(|&share| share < mean + 2 * costs[0]), "{units:?} {costs:?}: {shares:?}");
        }
        // 128 queries of 32 tokens and as many documents: whole row blocks' worth for 128 blocks, the last tile for four.
        let even = Even::new([2688, 128], [6, 4], 132);
        assert_eq!((even.first_blocks, even.shares, even.rests), (128, [21, 32], [0, 0]));
    }

    #[test]
    fn chunks_of_equal_documents_are_even() {
        for (docs, length, bytes) in
            [(1000, 300, 30 << 20), (2000, 180, 30 << 20), (10_000, 300, 25 << 20), (7, 1024, 1)]
        {
            let problem = Problem::cross(Spans::padded(64, 32), Spans::padded(docs, length), 128, DType::Bf16);
            let widths: Vec<u32> = chunks(&problem, 11, bytes).windows(2).map(|pair| pair[1] - pair[0]).collect();
            let most = widths.iter().max().unwrap();
            assert_eq!(widths.iter().sum::<u32>() as usize, docs);
            assert!(widths.iter().all(|width| width + 1 >= *most), "{widths:?}");
            assert!((*most as usize - 1) * length * 256 <= bytes, "{widths:?}");
            assert_eq!(chunks(&problem, 1, bytes).len(), 2);
        }
        // Documents without tokens take no chunk of their own.
        let lengths = [300, 0, 0, 300, 300, 0, 0, 0];
        let problem = Problem::cross(Spans::padded(64, 32), Spans::of_lengths(lengths), 128, DType::Bf16);
        assert_eq!(chunks(&problem, 11, 300 * 256), [0, 3, 4, 8]);
    }

    #[test]
    fn long_queries_are_cut_into_parts() {
        let problem = Problem::pairs(Spans::padded(5, 300), Spans::padded(5, 10), 8, DType::F32);
        let division = Division::new(&problem, 2, 100, usize::MAX);
        assert_eq!((division.parts, division.segments, division.whole), (3, 6, false));
        assert_eq!(division.starts.last(), Some(&15));
        assert_eq!(division.partials(&problem), 30);
    }
}
