//! The device memory of a plan, sized ahead.

use kernel_core::{Layout, Region};

use crate::gemms::CUBLAS_BYTES;
use crate::problem::{Mode, Problem};
use crate::route::Path;

/// Most bytes of f32 pre-activations that the portable forward holds at a time.
const CHUNK_BYTES: usize = 128 << 20;
/// Chunks are whole tiles of rows.
const CHUNK_ROWS: usize = 128;

/// Rows of a chunk of the portable forward.
pub(crate) fn chunk_rows(problem: &Problem) -> usize {
    let row_bytes = 2 * problem.outputs * size_of::<f32>();
    let rows = (CHUNK_BYTES / row_bytes / CHUNK_ROWS * CHUNK_ROWS).max(CHUNK_ROWS);
    rows.min(problem.rows)
}

/// The regions of a plan's workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions {
    /// f32 pre-activations of a chunk of rows `[chunk, 2N]`, for the portable forward.
    pub(crate) chunk: Region,
    /// `[M, 2N]` for a plan in recompute mode.
    pub(crate) scratch: Region,
    /// `[M, N]`: z, or its gradient, inside of an MLP.
    pub(crate) z: Region,
    pub(crate) cublas: Region,
}

impl Regions {
    /// Pure arithmetic. `mlp`: whether z stays inside.
    pub(crate) fn layout(path: Path, problem: &Problem, mode: Mode, mlp: bool) -> (Layout, Self) {
        let mut layout = Layout::new();
        let when = |needed: bool, bytes: usize| if needed { bytes } else { 0 };
        let matrix = problem.rows.saturating_mul(problem.outputs).saturating_mul(problem.dtype.size_bytes());
        let chunk = chunk_rows(problem) * 2 * problem.outputs * size_of::<f32>();
        let products = mlp || mode != Mode::Inference || path == Path::Portable;
        let regions = Self {
            chunk: layout.take(when(path == Path::Portable, chunk)),
            scratch: layout.take(when(mode == Mode::Recompute, matrix.saturating_mul(2))),
            z: layout.take(when(mlp, matrix)),
            cublas: layout.take(when(products, CUBLAS_BYTES)),
        };
        (layout, regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_core::DType;

    #[test]
    fn only_what_a_mode_needs_is_held() {
        let problem = Problem::new(8192, 4096, 14336, DType::Bf16);
        let bytes = |path, mode, mlp| Regions::layout(path, &problem, mode, mlp).0.total();
        assert_eq!(bytes(Path::Sm90, Mode::Inference, false), 0);
        assert_eq!(bytes(Path::Sm90, Mode::InPlace, false), CUBLAS_BYTES);
        assert_eq!(bytes(Path::Sm90, Mode::Recompute, false), CUBLAS_BYTES + 8192 * 28672 * 2);
        assert_eq!(bytes(Path::Sm90, Mode::Inference, true), CUBLAS_BYTES + 8192 * 14336 * 2);
        assert!(bytes(Path::Portable, Mode::Inference, false) <= CUBLAS_BYTES + CHUNK_BYTES);
    }

    #[test]
    fn chunks_are_whole_tiles_within_the_budget() {
        assert_eq!(chunk_rows(&Problem::new(8192, 4096, 14336, DType::Bf16)), 1152);
        assert_eq!(chunk_rows(&Problem::new(5, 4096, 14336, DType::Bf16)), 5);
        assert_eq!(chunk_rows(&Problem::new(1 << 20, 8, 1 << 29, DType::Bf16)), 128);
    }
}
