//! Plain products by cuBLASLt.

use std::collections::HashMap;

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, GemmPlan, GemmSpec, Gpu, MatrixSpec};

use crate::at::At;
use crate::error::Result;

/// What cuBLASLt may use for one product.
pub(crate) const CUBLAS_BYTES: usize = 32 << 20;

/// One matrix of a product: `transposed` says that the product takes the stored matrix transposed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub(crate) at: At,
    pub(crate) dtype: DType,
    pub(crate) transposed: bool,
}

impl Operand {
    pub(crate) fn new(at: At, dtype: DType) -> Self {
        Self { at, dtype, transposed: false }
    }

    pub(crate) fn transposed(at: At, dtype: DType) -> Self {
        Self { at, dtype, transposed: true }
    }

    fn spec(&self) -> MatrixSpec {
        MatrixSpec { dtype: self.dtype, transposed: self.transposed, row_stride: self.at.row_stride }
    }

    /// The largest power of two up to 16 that divides address and row pitch in bytes.
    fn alignment(&self) -> usize {
        let pitch = (self.at.row_stride * self.dtype.size_bytes()) as u64;
        1 << (self.at.address | pitch).trailing_zeros().min(4)
    }
}

type Key = (GemmSpec, [usize; 3]);

/// Plans by shape and alignment. All shapes of a problem are seen in its first call.
pub(crate) struct Gemms {
    gpu: Gpu,
    workspace: u64,
    plans: HashMap<Key, GemmPlan>,
}

impl Gemms {
    /// `workspace`: the address of [`CUBLAS_BYTES`].
    pub(crate) fn new(gpu: &Gpu, workspace: u64) -> Self {
        Self { gpu: gpu.clone(), workspace, plans: HashMap::new() }
    }

    /// Address and bytes of the workspace, which is free between two calls.
    pub(crate) fn workspace(&self) -> (u64, usize) {
        (self.workspace, CUBLAS_BYTES)
    }

    /// c (+)= a · b, with c `[m, n]` and k summed over.
    ///
    /// # Safety
    /// The operands must be live memory of these shapes; c must overlap neither.
    pub(crate) unsafe fn run(
        &mut self,
        stream: &CudaStream,
        [m, n, k]: [usize; 3],
        [a, b, c]: [Operand; 3],
        accumulate: bool,
    ) -> Result<()> {
        let spec = GemmSpec { m, n, k, a: a.spec(), b: b.spec(), c: c.spec() };
        let alignments = [a, b, c].map(|operand| operand.alignment());
        let plan = match self.plans.entry((spec, alignments)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(GemmPlan::with_alignments(&self.gpu, spec, CUBLAS_BYTES, alignments)?)
            }
        };
        let beta = if accumulate { 1.0 } else { 0.0 };
        // SAFETY: the matrices are the caller's promise; calls on one stream share the workspace in turn.
        Ok(unsafe { plan.run(stream, 1.0, a.at.address, b.at.address, beta, c.at.address, self.workspace) }?)
    }
}
