//! `cuda/column_sums.cu`: sums over the rows of a matrix.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, Gpu, Kernel, KernelArg, LaunchConfig};

use super::load;
use crate::at::At;
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 1024;
const COLUMNS_PER_BLOCK: usize = 32;

/// `ColumnSumsParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct ColumnSumsParams {
    from: u64,
    stride: u64,
    rows: u64,
    to: u64,
    columns: u32,
    accumulate: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for ColumnSumsParams {}

pub(crate) struct ColumnSumsCall {
    pub(crate) from: At,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) to: u64,
    pub(crate) accumulate: bool,
}

pub(crate) struct ColumnSums {
    kernel: Kernel,
}

impl ColumnSums {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, result: DType) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::column_sums(dtype, result))? })
    }

    /// # Safety
    /// The addresses must be live memory of the shapes that the call says.
    pub(crate) unsafe fn launch(&self, stream: &CudaStream, call: &ColumnSumsCall) -> Result<()> {
        let params = ColumnSumsParams {
            from: call.from.address,
            stride: call.from.row_stride as u64,
            rows: call.rows as u64,
            to: call.to,
            columns: call.cols as u32,
            accumulate: u32::from(call.accumulate),
        };
        let config = LaunchConfig::linear(call.cols.div_ceil(COLUMNS_PER_BLOCK) as u32, THREADS);
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[&params]) }?)
    }
}
