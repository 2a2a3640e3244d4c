//! `cuda/forward_stream.cu` and `cuda/forward_stream_wide.cu`: scores of few query rows on Hopper.

use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LastMaps, LaunchConfig, TensorMap};

use super::{RowsAt, TextsArg, load, overlapped, row_map};
use crate::error::Result;
use crate::problem::{Pairing, Problem, Spans};
use crate::programs;
use crate::tiles::TILE_ROWS;

/// Rows of a piece of the query rows.
const PIECE_ROWS: usize = 16;
/// Elements of d that a multiply takes.
const STEP: usize = 16;
/// Steps of d, as compiled; more are multiplied from shared memory.
const QUERY_STEPS: [usize; 4] = [3, 4, 6, 8];
/// Most stages of a warp's ring, of about so many bytes each, and most bytes of all rings: more of them under way are read no faster, or more slowly.
const STAGES: usize = 3;
const STAGE_BYTES: usize = 4 * 1024;
const RING_BYTES: usize = 136 * 1024;
/// Tokens of a stage are a multiple of what a warp multiplies at once, at most.
const COLUMNS: usize = 16;
/// `Control` of the kernel.
const CONTROL_BYTES: usize = 20 * 1024;
/// The kernel of wide rows: its `Control`; most tokens of a tile; elements of a block of one, and its bytes; most stages of its ring; tokens of a round, about.
const WIDE_CONTROL_BYTES: usize = 12 * 1024;
const WIDE_TILE: usize = 128;
const WIDE_BLOCK: usize = 64;
const WIDE_STAGE_BYTES: usize = WIDE_TILE * 2 * WIDE_BLOCK;
const WIDE_STAGES: usize = 8;
const WIDE_ROUND: usize = 256;
/// Elements of its widest rows.
const MAX_DIM: usize = 1024;
/// Bytes of a `Join` of the kernel, at most.
const JOIN_BYTES: usize = (TILE_ROWS + 1) * 8;
/// Blocks have whole packed documents: with fewer than so many each, some would have far more to do than others.
const DOCS_PER_BLOCK: usize = 4;
/// Documents of more than so many times the L2 push everything else out of it all the same, and are read faster if they may.
const KEEP_CACHE: usize = 2;

/// What is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StreamShape {
    /// 16-row pieces of the query rows, rounded up.
    pub(crate) row_pieces: usize,
    /// Steps of d, rounded up, held in registers, or 0.
    pub(crate) query_steps: usize,
}

/// The ring of a warp, or, of wide rows, of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ring {
    stages: usize,
    stage_tokens: usize,
    /// Of dynamic shared memory in all.
    bytes: usize,
}

impl StreamShape {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let steps = || QUERY_STEPS.into_iter().chain([0]);
        [2, 4].into_iter().flat_map(move |row_pieces| steps().map(move |query_steps| Self { row_pieces, query_steps }))
    }

    /// The one place that says which problems this kernel takes: a cross of many documents without masks and norms, whose query rows fit one
    /// tile, in two bytes an element. `dim`: of the rows as they are read. Unless [`Self::wide`], a call's documents' rows must also follow one
    /// another without gaps.
    pub(crate) fn choose(info: &DeviceInfo, problem: &Problem, dim: usize) -> Option<Self> {
        let (rows, tokens) = (problem.queries.rows(), problem.docs.rows());
        let plain = !problem.query_mask && !problem.doc_mask && !problem.normalize && problem.dtype != DType::F32;
        let few = (1..=TILE_ROWS).contains(&rows) && problem.queries.count() <= TILE_ROWS;
        let many = problem.docs.count() >= DOCS_PER_BLOCK * info.sm_count as usize && tokens > 0;
        if problem.pairing != Pairing::Cross || !plain || !few || !many || dim > MAX_DIM {
            return None;
        }
        let row_pieces = if rows <= 2 * PIECE_ROWS { 2 } else { 4 };
        let query_steps = QUERY_STEPS.into_iter().find(|steps| steps * STEP >= dim).unwrap_or(0);
        Some(Self { row_pieces, query_steps })
    }

    /// Whether query rows are so wide that both sides are multiplied from shared memory.
    pub(crate) fn wide(self) -> bool {
        self.query_steps == 0
    }

    /// Query rows, rounded up.
    pub(crate) fn rows(self) -> usize {
        self.row_pieces * PIECE_ROWS
    }

    /// Most stages of a ring, as compiled.
    pub(crate) fn max_stages(self) -> usize {
        if self.wide() { WIDE_STAGES } else { STAGES }
    }

    /// Warps that stream documents.
    fn warps(self) -> usize {
        match self.row_pieces * self.query_steps {
            0 => 8,
            1..=8 => 15,
            9..=16 => 11,
            _ => 7,
        }
    }

    /// Warps that copy tokens or put documents together.
    fn other_warps(self) -> usize {
        if self.wide() { 2 } else { 1 }
    }

    /// Documents of a round, where blocks have as many: one for each warp, none of which need be put together, which has its price.
    fn round_docs(self, length: usize) -> usize {
        if self.wide() { WIDE_ROUND.div_ceil(length.max(1)) } else { self.warps() }
    }

    fn ring(self, info: &DeviceInfo, dim: usize) -> Ring {
        if self.wide() {
            let fixed = WIDE_CONTROL_BYTES + self.rows() * 2 * dim.next_multiple_of(WIDE_BLOCK);
            let stages = (info.shared_bytes_optin.saturating_sub(fixed) / WIDE_STAGE_BYTES).min(WIDE_STAGES);
            return Ring { stages, stage_tokens: WIDE_TILE, bytes: fixed + stages * WIDE_STAGE_BYTES };
        }
        let row_bytes = 2 * dim;
        let stage_tokens = (STAGE_BYTES / row_bytes).min(128) / COLUMNS * COLUMNS;
        let stage_bytes = self.warps() * stage_tokens * row_bytes;
        let stages = (RING_BYTES / stage_bytes).min(STAGES);
        Ring { stages, stage_tokens, bytes: CONTROL_BYTES + stages * stage_bytes + self.rows() * row_bytes }
    }
}

/// How padded documents are shared among blocks: see the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rounds {
    rounds: usize,
    /// Whole documents of a block, and of those in a round.
    share: usize,
    round_docs: usize,
    /// Documents that are cut between blocks, and so many rows of them for each block.
    cut: usize,
    cut_rows: usize,
}

impl Rounds {
    /// For padded documents, so many of which make a good round.
    fn new(count: usize, length: usize, blocks: usize, round_docs: usize) -> Self {
        let (share, cut) = (count / blocks, count % blocks);
        let round_docs = round_docs.min(share);
        let cut_rows = (cut * length).div_ceil(8).div_ceil(blocks) * 8;
        Self { rounds: 1 + share.div_ceil(round_docs.max(1)), share, round_docs, cut, cut_rows }
    }
}

/// Tokens of the tiles that fill so many of a round.
fn even_tile(tokens: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(WIDE_TILE).max(1)).max(1)
}

/// Bytes of device memory where documents that are cut between so many blocks are put together: zeros before and after each launch.
pub(crate) fn join_bytes(docs: &Spans, blocks: usize) -> usize {
    match docs {
        Spans::Padded { count, .. } => count % blocks * JOIN_BYTES,
        Spans::Packed(_) => 0,
    }
}

/// `StreamParams` of the kernel; the launcher fills in what is of rounds, of the ring and of the cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamParams {
    pub(crate) queries: TextsArg,
    pub(crate) docs: TextsArg,
    pub(crate) dim: u32,
    pub(crate) query_rows: u32,
    pub(crate) rounds: u32,
    pub(crate) share: u32,
    pub(crate) round_docs: u32,
    pub(crate) cut: u32,
    pub(crate) cut_rows: u32,
    pub(crate) stages: u32,
    pub(crate) stage_tokens: u32,
    pub(crate) keep_cache: u32,
    pub(crate) firsts: u64,
    pub(crate) scores: u64,
    pub(crate) argmax: u64,
    pub(crate) joins: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for StreamParams {}

/// With and without the argmax.
pub(crate) struct ForwardStream {
    kernels: [Kernel; 2],
    dtype: DType,
    shape: StreamShape,
    /// Of wide rows: of the queries, and of the documents in tiles of so many tokens.
    maps: LastMaps<([RowsAt; 2], u32), [TensorMap; 2]>,
}

impl ForwardStream {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, shape: StreamShape) -> Result<Self> {
        let kernel = |argmax| load(gpu, &programs::forward_stream(dtype, shape, argmax));
        Ok(Self { kernels: [kernel(false)?, kernel(true)?], dtype, shape, maps: LastMaps::new() })
    }

    /// Whether documents may lie there.
    pub(crate) fn takes(&self, docs: RowsAt, dim: usize) -> bool {
        self.shape.wide() || docs.row_stride == dim
    }

    /// `at`: queries and documents.
    ///
    /// # Safety
    /// The addresses in `params` and `at` must be live memory of the sizes that `docs` and [`join_bytes`] say, the documents where [`Self::takes`] allows.
    pub(crate) unsafe fn launch(
        &mut self,
        gpu: &Gpu,
        blocks: usize,
        docs: &Spans,
        at: [RowsAt; 2],
        mut params: StreamParams,
    ) -> Result<()> {
        let (info, dim) = (gpu.info(), params.dim as usize);
        let ring = self.shape.ring(info, dim);
        (params.stages, params.stage_tokens) = (ring.stages as u32, ring.stage_tokens as u32);
        params.keep_cache = u32::from(docs.rows() * dim * 2 <= KEEP_CACHE * info.l2_bytes);
        params.rounds = 1;
        if let Spans::Padded { count, length } = *docs {
            let rounds = Rounds::new(count, length, blocks, self.shape.round_docs(length));
            (params.rounds, params.share) = (rounds.rounds as u32, rounds.share as u32);
            params.round_docs = rounds.round_docs as u32;
            if self.shape.wide() {
                params.stage_tokens = even_tile(rounds.round_docs * length) as u32;
            }
            (params.cut, params.cut_rows) = (rounds.cut as u32, rounds.cut_rows as u32);
        }
        let threads = 32 * (self.shape.warps() + self.shape.other_warps()) as u32;
        let config = overlapped(info, LaunchConfig::linear(blocks as u32, threads).with_shared(ring.bytes as u32));
        let (kernel, stream) = (&self.kernels[usize::from(params.argmax != 0)], gpu.stream());
        if !self.shape.wide() {
            // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
            return Ok(unsafe { kernel.launch(stream, &config, &[&params]) }?);
        }
        let map = |at: RowsAt, tokens: usize| row_map(self.dtype, dim, at, tokens, false);
        let [queries, tiles] = self.maps.of((at, params.stage_tokens), || -> Result<_> {
            Ok([map(at[0], self.shape.rows())?, map(at[1], params.stage_tokens as usize)?])
        })?;
        // SAFETY: the arguments match the kernel's parameters; the maps are of the memory that the caller promises.
        Ok(unsafe { kernel.launch(stream, &config, &[&queries, &tiles, &params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::h200;

    #[test]
    fn few_rows_and_many_documents_are_streamed() {
        let info = h200();
        let shape = |rows: usize, docs: usize, dim: usize| {
            let problem = Problem::cross(Spans::padded(1, rows), Spans::padded(docs, 300), dim, DType::Bf16);
            StreamShape::choose(&info, &problem, dim)
        };
        for dim in (8..=1024).step_by(8) {
            for rows in [1, 32, 33, 64] {
                let shape = shape(rows, 1000, dim).unwrap();
                let ring = shape.ring(&info, dim);
                assert!(ring.bytes <= info.shared_bytes_optin && shape.rows() >= rows, "{ring:?}");
                if dim <= 128 {
                    assert!(
                        ring.stage_tokens.is_multiple_of(COLUMNS) && ring.stage_tokens > 0 && ring.stages > 1,
                        "{ring:?}"
                    );
                    assert!(shape.query_steps * STEP >= dim);
                } else {
                    assert!(shape.wide() && (5..=WIDE_STAGES).contains(&ring.stages), "{ring:?}");
                }
            }
        }
        assert_eq!([shape(65, 1000, 128), shape(32, 1000, 1032), shape(32, 500, 128)], [None; 3]);
        let without_tokens = Problem::cross(Spans::padded(1, 32), Spans::padded(1000, 0), 128, DType::Bf16);
        assert_eq!(StreamShape::choose(&info, &without_tokens, 128), None);
        assert_eq!(shape(32, 1000, 48), Some(StreamShape { row_pieces: 2, query_steps: 3 }));
        assert_eq!((size_of::<StreamParams>(), std::mem::offset_of!(StreamParams, firsts)), (216, 184));
        let wide = shape(32, 1000, 512).unwrap();
        assert_eq!([1, 100, 300].map(|length| wide.round_docs(length)), [256, 3, 1]);
        assert_eq!([1, 128, 300, 1025].map(even_tile), [1, 128, 100, 114]);
    }

    #[test]
    fn rounds_have_every_document_once() {
        for (count, length, blocks, good) in [
            (1000, 300, 132, 11),
            (1000, 1024, 132, 15),
            (10_000, 300, 132, 15),
            (528, 1, 132, 7),
            (531, 20_000, 132, 7),
            (1000, 300, 132, 1),
        ] {
            let Rounds { rounds, share, round_docs, cut, cut_rows } = Rounds::new(count, length, blocks, good);
            assert_eq!(
                (blocks * share + cut, join_bytes(&Spans::padded(count, length), blocks)),
                (count, cut * JOIN_BYTES)
            );
            assert!(
                cut < blocks
                    && cut_rows * blocks >= cut * length
                    && cut_rows * blocks < cut * length + 8 * (blocks + 1)
            );
            // Rounds of whole documents, all but the last one of `round_docs`, which is not empty.
            assert!((rounds - 1) * round_docs >= share && (rounds - 2) * round_docs < share);
            assert_eq!(round_docs, good.min(share));
        }
    }
}
