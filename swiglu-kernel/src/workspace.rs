//! The device memory of a plan, sized ahead.

use kernel_core::{DType, Layout, Region};

use crate::gemms::CUBLAS_BYTES;
use crate::kernels::input_gradient_sm90::progress_bytes;
use crate::kernels::weight_gradient_sm90::ARRIVED_BYTES;
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

/// Bytes of pre-activations, at most unless 128 features are more, that a backward holds which computes them again.
const SLICE_BYTES: usize = 128 << 20;
/// Slices are whole tiles of features.
const SLICE_OUTPUTS: usize = 128;

/// Features of a slice of a backward that computes the pre-activations again: all N, or equal parts of as much as fits. The gated MLP keeps N
/// features of z anyway and takes them whole, as does decoding, which has few rows, and a layer whose dx, summed in f32, takes more than slices save.
pub(crate) fn slice_outputs(path: Path, problem: &Problem, mlp: bool) -> usize {
    let Problem { rows, inputs, outputs, dtype, .. } = *problem;
    if mlp || !matches!(path, Path::Sm90 | Path::Portable) {
        return outputs;
    }
    let most = (SLICE_BYTES / (2 * rows * dtype.size_bytes()) / SLICE_OUTPUTS * SLICE_OUTPUTS).max(SLICE_OUTPUTS);
    let slices = outputs.div_ceil(most);
    let slice = outputs.div_ceil(slices).next_multiple_of(SLICE_OUTPUTS).min(outputs);
    if dtype != DType::F32 && slice + inputs >= outputs { outputs } else { slice }
}

/// The regions of a plan's workspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions {
    /// f32 pre-activations of a chunk of rows `[chunk, 2N]`, for the portable forward.
    pub(crate) chunk: Region,
    /// `[M, 2N]`, or of a slice of the N features, for a plan in recompute mode.
    pub(crate) scratch: Region,
    /// f32 `[M, K]`: dx, while it is summed over slices and its own dtype is narrower.
    pub(crate) dx: Region,
    /// `[M, N]`: z, or its gradient, inside of an MLP.
    pub(crate) z: Region,
    pub(crate) cublas: Region,
    /// Counters of the launch that makes dx with the gate's derivative.
    pub(crate) progress: Region,
    /// Counters of the launch that makes dW in parts.
    pub(crate) arrived: Region,
}

impl Regions {
    /// Pure arithmetic. `mlp`: whether z stays inside.
    pub(crate) fn layout(path: Path, problem: &Problem, mode: Mode, mlp: bool) -> (Layout, Self) {
        let mut layout = Layout::new();
        let when = |needed: bool, bytes: usize| if needed { bytes } else { 0 };
        let matrix = problem.rows.saturating_mul(problem.outputs).saturating_mul(problem.dtype.size_bytes());
        let slice = Problem { outputs: slice_outputs(path, problem, mlp), ..*problem };
        let sliced = mode == Mode::Recompute && slice.outputs < problem.outputs;
        let chunk = chunk_rows(problem) * 2 * problem.outputs * size_of::<f32>();
        // Slices divide their rows otherwise: of fewer columns, more fit.
        let chunk = if sliced { chunk.max(CHUNK_BYTES) } else { chunk };
        let scratch = problem.rows.saturating_mul(2 * slice.outputs).saturating_mul(problem.dtype.size_bytes());
        let dx = problem.rows.saturating_mul(problem.inputs).saturating_mul(size_of::<f32>());
        let products = mlp || mode != Mode::Inference || path == Path::Portable;
        let regions = Self {
            chunk: layout.take(when(path == Path::Portable, chunk)),
            scratch: layout.take(when(mode == Mode::Recompute, scratch)),
            dx: layout.take(when(sliced && problem.dtype != DType::F32, dx)),
            z: layout.take(when(mlp, matrix)),
            cublas: layout.take(when(products, CUBLAS_BYTES)),
            progress: layout.take(when(path == Path::Sm90 && mode != Mode::Inference && !mlp, progress_bytes(problem))),
            arrived: layout.take(when(path == Path::Sm90 && mode != Mode::Inference, ARRIVED_BYTES)),
        };
        (layout, regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_mode_needs_is_held() {
        let problem = Problem::new(8192, 4096, 14336, DType::Bf16);
        let bytes = |path, mode, mlp| Regions::layout(path, &problem, mode, mlp).0.total();
        assert_eq!(bytes(Path::Sm90, Mode::Inference, false), 0);
        let counters = progress_bytes(&problem).next_multiple_of(1024) + ARRIVED_BYTES;
        assert_eq!(bytes(Path::Sm90, Mode::InPlace, false), CUBLAS_BYTES + counters);
        assert_eq!(bytes(Path::Sm90, Mode::Recompute, true), CUBLAS_BYTES + ARRIVED_BYTES + 3 * 8192 * 14336 * 2);
        let recompute = CUBLAS_BYTES + counters + 8192 * 2 * 3584 * 2 + 8192 * 4096 * 4;
        assert_eq!(bytes(Path::Sm90, Mode::Recompute, false), recompute);
        assert_eq!(bytes(Path::Sm90, Mode::Inference, true), CUBLAS_BYTES + 8192 * 14336 * 2);
        assert!(bytes(Path::Portable, Mode::Inference, false) <= CUBLAS_BYTES + CHUNK_BYTES);
    }

    #[test]
    fn slices_are_equal_parts_within_the_budget() {
        let slice = |rows, outputs| slice_outputs(Path::Sm90, &Problem::new(rows, 8, outputs, DType::Bf16), false);
        assert_eq!((slice(8192, 14336), slice(8192, 11008)), (3584, 3712));
        assert_eq!((slice(4096, 4096), slice(4096, 4104)), (4096, 4104));
        assert_eq!((slice(1 << 20, 1000), slice(1 << 20, 100)), (128, 100));
        assert_eq!(slice_outputs(Path::Sm90, &Problem::new(1 << 20, 8, 1000, DType::Bf16), true), 1000);
        // dx in f32 would be more than slices of half of N save.
        assert_eq!(slice_outputs(Path::Sm90, &Problem::new(8192, 8192, 8192, DType::Bf16), false), 8192);
        assert_eq!(slice_outputs(Path::Portable, &Problem::new(8192, 8192, 8192, DType::F32), false), 2048);
        // What the portable forward of any slice takes fits the region.
        let problem = Problem::new(16_500, 40, 2200, DType::Bf16);
        let (_, regions) = Regions::layout(Path::Portable, &problem, Mode::Recompute, false);
        for outputs in [1152, 2200 - 1152] {
            let slice = Problem { outputs, ..problem };
            assert!(chunk_rows(&slice) * 2 * outputs * size_of::<f32>() <= regions.chunk.bytes());
        }
    }

    #[test]
    fn chunks_are_whole_tiles_within_the_budget() {
        assert_eq!(chunk_rows(&Problem::new(8192, 4096, 14336, DType::Bf16)), 1152);
        assert_eq!(chunk_rows(&Problem::new(5, 4096, 14336, DType::Bf16)), 5);
        assert_eq!(chunk_rows(&Problem::new(1 << 20, 8, 1 << 29, DType::Bf16)), 128);
    }
}
