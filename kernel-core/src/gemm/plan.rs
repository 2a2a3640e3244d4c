//! A matrix product with its algorithm chosen ahead of time.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::CudaStream;

use super::descriptor::{Layout, LtHandle, Operation, Preference, failed, heuristics};
use super::spec::GemmSpec;
use crate::error::{Error, Result};
use crate::extent::aligned;
use crate::gpu::{Gpu, same_context};

/// Algorithms asked for; the library orders them by its own estimate.
const CANDIDATES: usize = 8;

/// cuBLASLt wants its workspace aligned to this many bytes.
const WORKSPACE_ALIGNMENT: usize = 256;

/// One algorithm that a plan can use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmCandidate {
    /// Workspace that it needs, in bytes.
    pub workspace_bytes: usize,
    /// The library's estimate of how many waves of blocks it runs; 1.0 fills the device exactly once.
    pub waves: f32,
}

/// C = alpha · op(A) · op(B) + beta · C with its descriptors and algorithm, made once and run many times.
///
/// The library is column-major, where a row-major matrix is its own transpose: Cᵀ = op(B)ᵀ · op(A)ᵀ, so B goes first and A second,
/// and no data moves.
///
/// [`run`](GemmPlan::run) neither allocates nor waits; it may be called from several threads at once, with workspaces of their own.
/// A plan gives the same bits on every run: the algorithm is fixed, and only reductions in a fixed order are allowed.
pub struct GemmPlan {
    handle: Arc<LtHandle>,
    spec: GemmSpec,
    alignments: [usize; 3],
    operation: Operation,
    a: Layout,
    b: Layout,
    c: Layout,
    candidates: Vec<sys::cublasLtMatmulHeuristicResult_t>,
    selected: usize,
}

// SAFETY: the descriptors are plain host memory that nothing changes after `new`.
unsafe impl Send for GemmPlan {}
// SAFETY: as above; the library only reads them while it runs, and its handle is thread-safe.
unsafe impl Sync for GemmPlan {}

impl std::fmt::Debug for GemmPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GemmPlan")
            .field("spec", &self.spec)
            .field("alignments", &self.alignments)
            .field("selected", &self.selected)
            .field("candidates", &self.candidates().collect::<Vec<_>>())
            .finish()
    }
}

impl GemmPlan {
    /// Chooses an algorithm that needs at most `max_workspace` bytes. Assumes [`GemmSpec::default_alignments`].
    ///
    /// # Errors
    /// Those of [`GemmSpec::check`], [`Error::MissingLibrary`] without cuBLASLt, [`Error::Unsupported`] when the library has no
    /// algorithm, [`Error::Cublas`], [`Error::Driver`].
    pub fn new(gpu: &Gpu, spec: GemmSpec, max_workspace: usize) -> Result<Self> {
        Self::with_alignments(gpu, spec, max_workspace, spec.default_alignments())
    }

    /// The same for given alignments in bytes of A, B and C (powers of two): less for a matrix that starts in the middle of a row,
    /// up to 256 for whole allocations.
    ///
    /// # Errors
    /// As [`GemmPlan::new`], and [`Error::Shape`] for an alignment that is not a power of two of at most 256, or is smaller than an
    /// element.
    pub fn with_alignments(gpu: &Gpu, spec: GemmSpec, max_workspace: usize, alignments: [usize; 3]) -> Result<Self> {
        spec.check()?;
        for (alignment, matrix) in alignments.into_iter().zip([spec.a, spec.b, spec.c]) {
            let least = matrix.dtype.size_bytes();
            if !alignment.is_power_of_two() || !(least..=256).contains(&alignment) {
                return Err(Error::Shape {
                    what: "gemm alignment",
                    found: format!("{alignment} bytes"),
                    expected: format!("a power of two from {least} to 256 bytes"),
                });
            }
        }
        let handle = gpu.cublaslt()?;
        let operation = Operation::new(spec.b.transposed, spec.a.transposed)?;
        let (a_rows, a_cols) = spec.stored_a();
        let (b_rows, b_cols) = spec.stored_b();
        // A stored row is a column of the library's matrix.
        let a = Layout::new(spec.a.dtype, a_cols, a_rows, spec.a.row_stride)?;
        let b = Layout::new(spec.b.dtype, b_cols, b_rows, spec.b.row_stride)?;
        let c = Layout::new(spec.c.dtype, spec.n, spec.m, spec.c.row_stride)?;
        let [a_alignment, b_alignment, c_alignment] = alignments;
        let preference = Preference::new(max_workspace, [b_alignment, a_alignment, c_alignment])?;
        let mut candidates = heuristics::<CANDIDATES>(&handle, &operation, [&b, &a, &c], &preference)?;
        candidates.retain(|candidate| {
            candidate.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && candidate.workspaceSize <= max_workspace
        });
        if candidates.is_empty() {
            return Err(Error::Unsupported {
                what: format!("{spec:?}: cuBLASLt has no algorithm for it within {max_workspace} bytes of workspace"),
            });
        }
        Ok(Self { handle, spec, alignments, operation, a, b, c, candidates, selected: 0 })
    }

    /// What is computed.
    pub fn spec(&self) -> &GemmSpec {
        &self.spec
    }

    /// Workspace that [`run`](GemmPlan::run) needs with the selected algorithm, in bytes; may be 0.
    pub fn workspace_bytes(&self) -> usize {
        self.candidates[self.selected].workspaceSize
    }

    /// The algorithms to choose from, best first by the library's estimate; at most 8, at least 1.
    pub fn candidates(&self) -> impl ExactSizeIterator<Item = GemmCandidate> + '_ {
        self.candidates
            .iter()
            .map(|result| GemmCandidate { workspace_bytes: result.workspaceSize, waves: result.wavesCount })
    }

    /// Which candidate runs; 0 unless [`select`](GemmPlan::select) changed it.
    pub fn selected(&self) -> usize {
        self.selected
    }

    /// Makes [`run`](GemmPlan::run) use another candidate. Results may differ in rounding between candidates.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no such candidate.
    pub fn select(&mut self, index: usize) -> Result<()> {
        if index >= self.candidates.len() {
            return Err(Error::Shape {
                what: "gemm candidate",
                found: index.to_string(),
                expected: format!("an index below {}", self.candidates.len()),
            });
        }
        self.selected = index;
        Ok(())
    }

    /// Queues the product on `stream`: `a`, `b` and `c` are device addresses of the stored matrices. With `beta` 0, C is not read and
    /// may hold anything. `workspace` is the address of [`workspace_bytes`](GemmPlan::workspace_bytes) bytes, a multiple of 256; it is
    /// not looked at when none are needed.
    ///
    /// # Errors
    /// [`Error::Misaligned`], [`Error::WrongDevice`] for a stream of another context, [`Error::Shape`] for a null workspace,
    /// [`Error::Cublas`].
    ///
    /// # Safety
    /// The addresses must point to the matrices that the spec describes, in memory of the plan's context that lives, and that no other
    /// work uses in conflict, until the product has run. C must not overlap A or B, and no two runs may share a workspace at once.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn run(
        &self,
        stream: &CudaStream,
        alpha: f32,
        a: u64,
        b: u64,
        beta: f32,
        c: u64,
        workspace: u64,
    ) -> Result<()> {
        let [a_alignment, b_alignment, c_alignment] = self.alignments;
        aligned("gemm A", a, a_alignment)?;
        aligned("gemm B", b, b_alignment)?;
        aligned("gemm C", c, c_alignment)?;
        let chosen = &self.candidates[self.selected];
        let workspace = if chosen.workspaceSize == 0 {
            0
        } else if workspace == 0 {
            return Err(Error::Shape {
                what: "gemm workspace",
                found: "a null pointer".to_owned(),
                expected: format!("{} bytes of device memory", chosen.workspaceSize),
            });
        } else {
            aligned("gemm workspace", workspace, WORKSPACE_ALIGNMENT)?;
            workspace
        };
        same_context("stream", stream.context(), self.handle.context())?;
        // The stream's own context object: it also holds the errors that guards of views could not return.
        stream.context().bind_to_thread().map_err(Error::driver("cuCtxSetCurrent"))?;
        // SAFETY: the descriptors are alive and agree with the addresses, as the caller promises; the scale factors are read before
        // the call returns (host pointer mode).
        unsafe {
            result::matmul(
                self.handle.raw(),
                self.operation.raw(),
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                b as *const c_void,
                self.b.raw(),
                a as *const c_void,
                self.a.raw(),
                c as *const c_void,
                self.c.raw(),
                c as *mut c_void,
                self.c.raw(),
                &raw const chosen.algo,
                workspace as *mut c_void,
                chosen.workspaceSize,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed("cublasLtMatmul"))
    }
}
