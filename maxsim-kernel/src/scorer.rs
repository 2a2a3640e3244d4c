//! The scoring kernels of a plan's route.

use kernel_core::{DeviceInfo, Gpu};

use crate::error::Result;
use crate::kernels::{ForwardParams, ForwardPortable, Prepare};
use crate::problem::{Problem, Route};
use crate::tiles::Division;

/// Each with and without the argmax.
pub(crate) enum Scorer {
    Portable([ForwardPortable; 2]),
}

impl Scorer {
    pub(crate) fn new(gpu: &Gpu, _route: Route, problem: &Problem) -> Result<Self> {
        let kernel = |argmax| ForwardPortable::new(gpu, problem.dtype, argmax);
        Ok(Self::Portable([kernel(false)?, kernel(true)?]))
    }

    pub(crate) fn route(&self) -> Route {
        match self {
            Self::Portable(_) => Route::Portable,
        }
    }

    /// How the work of `problem` is cut on this route.
    pub(crate) fn division(_route: Route, info: &DeviceInfo, problem: &Problem) -> Division {
        Division::new(problem, ForwardPortable::TILES, ForwardPortable::most_blocks(info), info.l2_bytes / 2)
    }

    /// Elements of a padded row, where the route copies rows to where they are aligned.
    pub(crate) fn padded_dim(_route: Route, _problem: &Problem) -> Option<usize> {
        None
    }

    /// Bytes that every input row must begin at a multiple of.
    pub(crate) fn alignment(&self, _problem: &Problem) -> usize {
        1
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says; `padded` of padded rows, where there are any.
    pub(crate) unsafe fn launch(
        &self,
        gpu: &Gpu,
        _problem: &Problem,
        division: &Division,
        _prepare: &Prepare,
        _padded: [u64; 2],
        params: ForwardParams,
    ) -> Result<()> {
        let with_argmax = usize::from(params.argmax != 0);
        match self {
            // SAFETY: the caller's promise.
            Self::Portable(kernels) => unsafe { kernels[with_argmax].launch(gpu.stream(), division.blocks, &params) },
        }
    }
}
