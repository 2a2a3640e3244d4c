//! `cuda/top_k.cu`: the best documents so far.

use kernel_core::{Gpu, Kernel, KernelArg, LaunchConfig};

use super::{load, overlapped};
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
/// The most documents that are kept of a query.
pub(crate) const MOST: usize = 1024;

/// `TopKParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopKParams {
    pub(crate) scores: u64,
    pub(crate) docs: u32,
    pub(crate) first_doc: u32,
    pub(crate) k: u32,
    pub(crate) fresh: u32,
    pub(crate) kept: u64,
    pub(crate) best_scores: u64,
    pub(crate) best_docs: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for TopKParams {}

pub(crate) struct KeepBest {
    kernel: Kernel,
}

impl KeepBest {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::top_k())? })
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that they say, for `queries` queries.
    pub(crate) unsafe fn launch(&self, gpu: &Gpu, queries: usize, params: &TopKParams) -> Result<()> {
        let config = overlapped(gpu.info(), LaunchConfig::linear(queries as u32, THREADS));
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(gpu.stream(), &config, &[params]) }?)
    }
}
