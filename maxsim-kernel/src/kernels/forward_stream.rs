//! `cuda/forward_stream.cu`: scores of few query rows on Hopper.

use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig};

use super::{TextsArg, load, overlapped};
use crate::error::Result;
use crate::problem::{Pairing, Problem};
use crate::programs;
use crate::tiles::TILE_ROWS;

/// Rows of a piece of the query rows.
const PIECE_ROWS: usize = 16;
/// Elements of d that a multiply takes.
const STEP: usize = 16;
/// Steps of d, as compiled.
const QUERY_STEPS: [usize; 4] = [3, 4, 6, 8];
const WARPS: usize = 8;
/// Of the ring of a warp, of about so many bytes each: more of them do not help.
const STAGES: usize = 3;
const STAGE_BYTES: usize = 4 * 1024;
/// Tokens of a stage are a multiple of what a warp multiplies at once, at most.
const COLUMNS: usize = 16;
/// `Control` of the kernel.
const CONTROL_BYTES: usize = 13 * 1024;
/// Blocks have whole documents: with fewer than so many each, some would have far more to do than others.
const DOCS_PER_BLOCK: usize = 4;
/// Documents of more than so many times the L2 push everything else out of it all the same, and are read faster if they may.
const KEEP_CACHE: usize = 2;

/// What is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StreamShape {
    /// 16-row pieces of the query rows, rounded up.
    pub(crate) row_pieces: usize,
    /// Steps of d, rounded up.
    pub(crate) query_steps: usize,
}

/// The ring of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ring {
    stage_tokens: usize,
    /// Of dynamic shared memory in all.
    bytes: usize,
}

impl StreamShape {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [2, 4].into_iter().flat_map(|row_pieces| QUERY_STEPS.map(|query_steps| Self { row_pieces, query_steps }))
    }

    /// The one place that says which problems this kernel takes: a cross of many documents without masks and norms, whose query rows fit one
    /// tile, in two bytes an element, d up to 128. `dim`: of the rows as they are read. In a call it is also needed that the documents' rows
    /// follow one another without gaps.
    pub(crate) fn choose(info: &DeviceInfo, problem: &Problem, dim: usize) -> Option<Self> {
        let rows = problem.queries.rows();
        let plain = !problem.query_mask && !problem.doc_mask && !problem.normalize && problem.dtype != DType::F32;
        let few = (1..=TILE_ROWS).contains(&rows) && problem.queries.count() <= TILE_ROWS;
        let many = problem.docs.count() >= DOCS_PER_BLOCK * info.sm_count as usize && problem.docs.rows() > 0;
        if problem.pairing != Pairing::Cross || !plain || !few || !many {
            return None;
        }
        let row_pieces = if rows <= 2 * PIECE_ROWS { 2 } else { 4 };
        let query_steps = QUERY_STEPS.into_iter().find(|steps| steps * STEP >= dim)?;
        Some(Self { row_pieces, query_steps })
    }

    fn ring(self, dim: usize) -> Ring {
        let row_bytes = 2 * dim;
        let stage_tokens = (STAGE_BYTES / row_bytes).min(128) / COLUMNS * COLUMNS;
        let queries = self.row_pieces * PIECE_ROWS * row_bytes;
        Ring { stage_tokens, bytes: CONTROL_BYTES + WARPS * STAGES * stage_tokens * row_bytes + queries }
    }
}

/// `StreamParams` of the kernel; the launcher fills in what is of the ring and of the cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamParams {
    pub(crate) queries: TextsArg,
    pub(crate) docs: TextsArg,
    pub(crate) dim: u32,
    pub(crate) query_rows: u32,
    pub(crate) share: u32,
    pub(crate) rest: u32,
    pub(crate) stage_tokens: u32,
    pub(crate) stages: u32,
    pub(crate) keep_cache: u32,
    pub(crate) firsts: u64,
    pub(crate) scores: u64,
    pub(crate) argmax: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for StreamParams {}

/// With and without the argmax.
pub(crate) struct ForwardStream {
    kernels: [Kernel; 2],
    shape: StreamShape,
}

impl ForwardStream {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, shape: StreamShape) -> Result<Self> {
        let kernel = |argmax| load(gpu, &programs::forward_stream(dtype, shape, argmax));
        Ok(Self { kernels: [kernel(false)?, kernel(true)?], shape })
    }

    /// `rows`: of all documents.
    ///
    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says, the documents' rows one after another.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, blocks: usize, rows: usize, params: StreamParams) -> Result<()> {
        let info = gpu.info();
        let ring = self.shape.ring(params.dim as usize);
        let keep_cache = rows * params.dim as usize * 2 <= KEEP_CACHE * info.l2_bytes;
        let params = StreamParams {
            stage_tokens: ring.stage_tokens as u32,
            stages: STAGES as u32,
            keep_cache: u32::from(keep_cache),
            ..params
        };
        let config = LaunchConfig::linear(blocks as u32, 32 * WARPS as u32).with_shared(ring.bytes as u32);
        let kernel = &self.kernels[usize::from(params.argmax != 0)];
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { kernel.launch(gpu.stream(), &overlapped(info, config), &[&params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::h200;
    use crate::problem::Spans;

    #[test]
    fn few_rows_and_many_documents_are_streamed() {
        let info = h200();
        let shape = |rows: usize, docs: usize, dim: usize| {
            let problem = Problem::cross(Spans::padded(1, rows), Spans::padded(docs, 300), dim, DType::Bf16);
            StreamShape::choose(&info, &problem, dim)
        };
        for dim in (8..=128).step_by(8) {
            for rows in [1, 32, 33, 64] {
                let shape = shape(rows, 1000, dim).unwrap();
                let ring = shape.ring(dim);
                assert!(ring.bytes <= info.shared_bytes_optin, "{ring:?}");
                assert!(ring.stage_tokens.is_multiple_of(COLUMNS) && ring.stage_tokens > 0, "{ring:?}");
                assert!(shape.query_steps * STEP >= dim && shape.row_pieces * PIECE_ROWS >= rows);
            }
        }
        assert_eq!([shape(65, 1000, 128), shape(32, 1000, 136), shape(32, 500, 128)], [None; 3]);
        let without_tokens = Problem::cross(Spans::padded(1, 32), Spans::padded(1000, 0), 128, DType::Bf16);
        assert_eq!(StreamShape::choose(&info, &without_tokens, 128), None);
        assert_eq!(shape(32, 1000, 48), Some(StreamShape { row_pieces: 2, query_steps: 3 }));
        assert_eq!((size_of::<StreamParams>(), std::mem::offset_of!(StreamParams, firsts)), (200, 176));
    }
}
