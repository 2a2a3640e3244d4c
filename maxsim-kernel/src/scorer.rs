//! The scoring kernels of a plan's route.

use kernel_core::cudarc::driver::{CudaSlice, DevicePtr};
use kernel_core::{DeviceInfo, Gpu, TensorMap};

use crate::error::Result;
use crate::kernels::{
    ForwardParams, ForwardPortable, ForwardSm90, HopperParams, PadParams, Prepare, RowsAt, Settle, SettleParams, Shape,
    TextsArg, maps,
};
use crate::problem::{Pairing, Problem, Route};
use crate::tiles::{Division, TILE_ROWS, query_tiles};

/// Elements that rows are padded to a multiple of for the copy engine: 16 bytes.
const ROW_ELEMENTS: usize = 8;
/// How much of the L2 cache a chunk of documents may fill while all queries meet it.
const L2_SHARE: usize = 2;

/// Kernels come with and without the argmax.
pub(crate) enum Scorer {
    Portable([ForwardPortable; 2]),
    Hopper(Box<Hopper>),
}

pub(crate) struct Hopper {
    shape: Shape,
    kernels: [ForwardSm90; 2],
    settle: Settle,
    /// The call that last met a NaN maximum, in device memory; calls are numbered from 1.
    nan_epoch: CudaSlice<u32>,
    epoch: u32,
    /// Of the last call; callers mostly come back with the same memory.
    maps: Option<([RowsAt; 2], [TensorMap; 3])>,
}

impl Scorer {
    pub(crate) fn new(gpu: &Gpu, route: Route, problem: &Problem) -> Result<Self> {
        let dtype = problem.dtype;
        if route != Route::Hopper {
            let kernel = |argmax| ForwardPortable::new(gpu, dtype, argmax);
            return Ok(Self::Portable([kernel(false)?, kernel(true)?]));
        }
        let shape = Shape::choose(problem);
        let kernel = |argmax| ForwardSm90::new(gpu, dtype, shape, argmax);
        Ok(Self::Hopper(Box::new(Hopper {
            shape,
            kernels: [kernel(false)?, kernel(true)?],
            settle: Settle::new(gpu, dtype)?,
            nan_epoch: gpu.alloc(1)?,
            epoch: 0,
            maps: None,
        })))
    }

    pub(crate) fn route(&self) -> Route {
        match self {
            Self::Portable(_) => Route::Portable,
            Self::Hopper(_) => Route::Hopper,
        }
    }

    /// How the work of `problem` is cut on this route.
    pub(crate) fn division(route: Route, info: &DeviceInfo, problem: &Problem) -> Division {
        let chunk_bytes = info.l2_bytes / L2_SHARE;
        if route != Route::Hopper {
            return Division::new(problem, ForwardPortable::TILES, ForwardPortable::most_blocks(info), chunk_bytes);
        }
        let tiles = match problem.pairing {
            Pairing::Cross => query_tiles(&problem.queries).0.len(),
            _ => problem.queries.longest().div_ceil(TILE_ROWS),
        };
        let held = Shape::choose(problem).tiles_of_block(info, problem.dim, tiles.max(1));
        Division::new(problem, held, info.sm_count as usize, chunk_bytes)
    }

    /// Elements of a padded row, where the route copies rows to where they are aligned.
    pub(crate) fn padded_dim(route: Route, problem: &Problem) -> Option<usize> {
        let padded = problem.dim.next_multiple_of(ROW_ELEMENTS);
        (route == Route::Hopper && padded != problem.dim).then_some(padded)
    }

    /// Bytes that every input row must begin at a multiple of.
    pub(crate) fn alignment(&self, problem: &Problem) -> usize {
        let direct = self.route() == Route::Hopper && Self::padded_dim(Route::Hopper, problem).is_none();
        if direct { 16 } else { 1 }
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says; `padded` of padded rows, where there are any.
    pub(crate) unsafe fn launch(
        &mut self,
        gpu: &Gpu,
        problem: &Problem,
        division: &Division,
        prepare: &Prepare,
        padded: [u64; 2],
        params: ForwardParams,
    ) -> Result<()> {
        let with_argmax = usize::from(params.argmax != 0);
        match self {
            // SAFETY: the caller's promise.
            Self::Portable(kernels) => unsafe { kernels[with_argmax].launch(gpu, division.blocks, &params) },
            // SAFETY: the caller's promise.
            Self::Hopper(hopper) => unsafe { hopper.launch(gpu, problem, division, prepare, padded, params) },
        }
    }
}

impl Hopper {
    /// # Safety
    /// As [`Scorer::launch`].
    unsafe fn launch(
        &mut self,
        gpu: &Gpu,
        problem: &Problem,
        division: &Division,
        prepare: &Prepare,
        padded: [u64; 2],
        mut params: ForwardParams,
    ) -> Result<()> {
        let (stream, info) = (gpu.stream(), gpu.info());
        let dim = Scorer::padded_dim(Route::Hopper, problem);
        let pad = |texts: &mut TextsArg, to: u64, rows: usize| -> Result<RowsAt> {
            if let Some(dim) = dim {
                let params = PadParams {
                    from: texts.rows,
                    to,
                    from_stride: texts.row_stride,
                    to_stride: dim as u64,
                    rows: rows as u64,
                    dim: problem.dim as u32,
                    padded: dim as u32,
                };
                // SAFETY: `from` is a checked input, `to` a region of `rows` padded rows.
                unsafe { prepare.pad(stream, info, &params) }?;
                (texts.rows, texts.row_stride) = (to, dim as u64);
            }
            Ok(RowsAt { address: texts.rows, row_stride: texts.row_stride as usize, rows })
        };
        let at = [
            pad(&mut params.queries, padded[0], problem.queries.matrix_rows())?,
            pad(&mut params.docs, padded[1], problem.docs.matrix_rows())?,
        ];
        let maps = match self.maps {
            Some((of, maps)) if of == at => maps,
            _ => maps(problem.dtype, dim.unwrap_or(problem.dim), self.shape, at[0], at[1])?,
        };
        self.maps = Some((at, maps));
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        let nan_epoch = {
            let (address, _guard) = self.nan_epoch.device_ptr(stream);
            address
        };
        let with_argmax = params.argmax != 0;
        let hopper = HopperParams {
            items: params.items,
            queries: params.queries,
            docs: params.docs,
            dim: problem.dim as u32,
            sums: params.sums,
            argmax: params.argmax,
            warpgroups: 0,
            tiles: division.tiles as u32,
            slots: 0,
            epoch: self.epoch,
            nan_epoch,
        };
        let kernel = &self.kernels[usize::from(with_argmax)];
        // SAFETY: the maps are of the rows that the caller promises; so are the addresses.
        unsafe { kernel.launch(stream, info, division.blocks, &maps, &hopper) }?;
        if with_argmax {
            let settle = SettleParams {
                items: params.items,
                queries: params.queries,
                docs: params.docs,
                dim: problem.dim as u32,
                slots: problem.scores().min(u32::MAX as usize) as u32,
                argmax: params.argmax,
                epoch: self.epoch,
                nan_epoch,
            };
            // SAFETY: as above.
            unsafe { self.settle.launch(stream, info, &settle) }?;
        }
        Ok(())
    }
}
