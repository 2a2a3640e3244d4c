//! Owned cuBLASLt objects: each is destroyed when dropped, and a failure to do so is ignored, as nothing can be done about it there.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaContext;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::probe::{self, Library};

pub(super) fn failed(call: &'static str) -> impl Fn(CublasError) -> Error {
    move |error| match error.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Error::OutOfMemory { bytes: 0, free: 0, total: 0 },
        status => Error::Cublas { call, status: format!("{status:?}") },
    }
}

pub(super) fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

/// The library's handle for one context.
pub(crate) struct LtHandle {
    handle: sys::cublasLtHandle_t,
    context: Arc<CudaContext>,
}

// SAFETY: cuBLASLt documents its handle as usable from several host threads at once; it is destroyed by the last owner only.
unsafe impl Send for LtHandle {}
// SAFETY: as above.
unsafe impl Sync for LtHandle {}

impl LtHandle {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        probe::ensure(Library::CublasLt)?;
        // The handle belongs to the context that is current when it is made.
        context.bind_to_thread().map_err(Error::driver("cuCtxSetCurrent"))?;
        let handle = result::create_handle().map_err(failed("cublasLtCreate"))?;
        Ok(Self { handle, context: context.clone() })
    }

    pub(super) fn raw(&self) -> sys::cublasLtHandle_t {
        self.handle
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }
}

impl Drop for LtHandle {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made by `create_handle`, destroyed once.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

/// Size and type of one operand, column-major as the library has it.
pub(super) struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    pub(super) fn new(dtype: DType, rows: usize, cols: usize, leading: usize) -> Result<Self> {
        result::create_matrix_layout(data_type(dtype), rows as u64, cols as u64, leading as i64)
            .map(Self)
            .map_err(failed("cublasLtMatrixLayoutCreate"))
    }

    pub(super) fn raw(&self) -> sys::cublasLtMatrixLayout_t {
        self.0
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `create_matrix_layout`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// The operation: f32 arithmetic, f32 scale factors in host memory, and which operands are transposed.
pub(super) struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    pub(super) fn new(transpose_first: bool, transpose_second: bool) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        // COMPUTE_32F, not one of its FAST variants: f32 operands stay f32, 16-bit operands accumulate in f32.
        let operation =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F)
                .map(Self)
                .map_err(failed("cublasLtMatmulDescCreate"))?;
        for (attribute, transpose) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, transpose_first),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, transpose_second),
        ] {
            // cublasOperation_t: N is 0, T is 1.
            let value = i32::from(transpose);
            // SAFETY: the descriptor is alive; the attribute is a 32-bit enum.
            unsafe {
                result::set_matmul_desc_attribute(
                    operation.0,
                    attribute,
                    (&raw const value).cast(),
                    size_of_val(&value),
                )
            }
            .map_err(failed("cublasLtMatmulDescSetAttribute"))?;
        }
        Ok(operation)
    }

    pub(super) fn raw(&self) -> sys::cublasLtMatmulDesc_t {
        self.0
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made by `create_matmul_desc`, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What algorithms may be proposed.
pub(super) struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// `alignments` are those of the library's first and second operand and of the result, in bytes.
    pub(super) fn new(max_workspace: usize, alignments: [usize; 3]) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = result::create_matmul_pref().map(Self).map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, max_workspace as u64)?;
        // Split-K algorithms must sum their parts in f32 in the workspace, in a fixed order: the same bits on every run. That is
        // COMPUTE_TYPE. INPLACE accumulates in C itself, in turns that a counter in the workspace hands out, and OUTPUT_TYPE rounds
        // each part to C's dtype: both would break the promise of f32 accumulation for a 16-bit C, so neither may be proposed.
        // (NONE, without split-K, is always allowed.)
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction)?;
        let [first, second, result] = alignments.map(|bytes| bytes as u32);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, first)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, second)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, result)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, result)?;
        Ok(preference)
    }

    /// `T` must be the attribute's documented type: u64 for bytes of workspace, u32 for the others.
    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<()> {
        let pointer: *const c_void = (&raw const value).cast();
        // SAFETY: the descriptor is alive; `value` outlives the call, which checks its size.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, pointer, size_of::<T>()) }
            .map_err(failed("cublasLtMatmulPreferenceSetAttribute"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `create_matmul_pref`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// Up to `N` algorithms, best first by the library's own estimate. Cost: tens of microseconds on the host.
pub(super) fn heuristics<const N: usize>(
    handle: &LtHandle,
    operation: &Operation,
    [first, second, result]: [&Layout; 3],
    preference: &Preference,
) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>> {
    handle.context.bind_to_thread().map_err(Error::driver("cuCtxSetCurrent"))?;
    let mut results = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; N];
    let mut count = 0;
    // SAFETY: all objects are alive; the array has room for the N results that are asked for.
    let status = unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle.handle,
            operation.0,
            first.0,
            second.0,
            result.0,
            result.0,
            preference.0,
            N as i32,
            results.as_mut_ptr().cast(),
            &raw mut count,
        )
    };
    match status.result() {
        Ok(()) => {}
        // "No algorithm" comes either as this status or as a count of 0.
        Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => return Ok(Vec::new()),
        Err(error) => return Err(failed("cublasLtMatmulAlgoGetHeuristic")(error)),
    }
    let found = results.iter().take(usize::try_from(count).unwrap_or(0));
    // SAFETY: the library wrote the first `count` results.
    Ok(found.map(|result| unsafe { result.assume_init() }).collect())
}
