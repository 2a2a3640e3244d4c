//! The scoring kernels of a plan's route.

use kernel_core::cudarc::driver::{CudaSlice, DevicePtr};
use kernel_core::{DType, DeviceInfo, Gpu, LastMaps, TensorMap, Variant};

use crate::error::Result;
use crate::kernels::{
    ForwardMma, ForwardParams, ForwardPortable, ForwardSm90, ForwardStream, HopperParams, PadParams, Prepare, RowsAt,
    Settle, SettleParams, Shape, StreamParams, StreamShape, TextsArg, maps,
};
use crate::problem::{Pairing, Problem, Route};
use crate::programs;
use crate::tiles::{Division, TILE_ROWS, query_tiles};

/// Elements that rows are padded to a multiple of for tensor cores: 16 bytes.
const ROW_ELEMENTS: usize = 8;
/// How much of the L2 cache a chunk of documents may fill while all queries meet it.
const L2_SHARE: usize = 2;

/// Addresses of a plan's own memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scratch {
    /// Padded rows of queries and documents, where there are any.
    pub(crate) padded: [u64; 2],
    /// Of [`StreamParams`].
    pub(crate) block_firsts: u64,
    pub(crate) joins: u64,
}

/// Kernels come with and without the argmax.
pub(crate) enum Scorer {
    Portable(Portable),
    Hopper(Box<Hopper>),
}

/// f32, and rows that do not begin at multiples of 16 bytes, are multiplied on the CUDA cores.
pub(crate) struct Portable {
    plain: [ForwardPortable; 2],
    tensor: Option<[ForwardMma; 2]>,
}

pub(crate) struct Hopper {
    shape: Shape,
    kernels: [ForwardSm90; 2],
    settle: Settle,
    /// Of few query rows.
    stream: Option<ForwardStream>,
    /// The call that last met a NaN maximum, in device memory; calls are numbered from 1.
    nan_epoch: CudaSlice<u32>,
    epoch: u32,
    maps: LastMaps<[RowsAt; 2], [TensorMap; 5]>,
}

/// Which kernels a problem takes.
enum Choice {
    /// `tensor`: rows at multiples of 16 bytes on tensor cores.
    Portable {
        tensor: bool,
    },
    Hopper {
        shape: Shape,
        stream: Option<StreamShape>,
    },
}

impl Choice {
    /// `streamed`: as the division says.
    fn new(info: &DeviceInfo, route: Route, problem: &Problem, streamed: bool) -> Self {
        if route != Route::Hopper {
            return Self::Portable { tensor: problem.dtype != DType::F32 };
        }
        let stream = if streamed { Scorer::stream(info, problem) } else { None };
        Self::Hopper { shape: Shape::choose(problem), stream }
    }
}

impl Scorer {
    /// What [`Scorer::new`] loads, those that take the longest to compile first. `streamed`: as the division says.
    pub(crate) fn variants(info: &DeviceInfo, route: Route, problem: &Problem, streamed: bool) -> Vec<Variant> {
        const ARGMAX: [bool; 2] = [true, false];
        let dtype = problem.dtype;
        match Choice::new(info, route, problem, streamed) {
            Choice::Portable { tensor } => {
                let plain = ARGMAX.map(|argmax| programs::forward_portable(dtype, argmax));
                let tensor = tensor.then(|| ARGMAX.map(|argmax| ForwardMma::variant(dtype, problem.dim, argmax)));
                tensor.into_iter().flatten().chain(plain).collect()
            }
            Choice::Hopper { shape, stream } => {
                let forward = ARGMAX.map(|argmax| programs::forward_sm90(dtype, shape, argmax));
                let stream = stream.map(|stream| ARGMAX.map(|argmax| programs::forward_stream(dtype, stream, argmax)));
                forward.into_iter().chain(stream.into_iter().flatten()).chain([programs::settle(dtype)]).collect()
            }
        }
    }

    pub(crate) fn new(gpu: &Gpu, route: Route, problem: &Problem, streamed: bool) -> Result<Self> {
        let dtype = problem.dtype;
        match Choice::new(gpu.info(), route, problem, streamed) {
            Choice::Portable { tensor } => {
                let plain = |argmax| ForwardPortable::new(gpu, dtype, argmax);
                let kernel = |argmax| ForwardMma::new(gpu, dtype, problem.dim, argmax);
                let tensor = if tensor { Some([kernel(false)?, kernel(true)?]) } else { None };
                Ok(Self::Portable(Portable { plain: [plain(false)?, plain(true)?], tensor }))
            }
            Choice::Hopper { shape, stream } => {
                let kernel = |argmax| ForwardSm90::new(gpu, dtype, shape, argmax);
                Ok(Self::Hopper(Box::new(Hopper {
                    shape,
                    kernels: [kernel(false)?, kernel(true)?],
                    settle: Settle::new(gpu, dtype)?,
                    stream: stream.map(|stream| ForwardStream::new(gpu, dtype, stream)).transpose()?,
                    nan_epoch: gpu.alloc(1)?,
                    epoch: 0,
                    maps: LastMaps::new(),
                })))
            }
        }
    }

    pub(crate) fn route(&self) -> Route {
        match self {
            Self::Portable(_) => Route::Portable,
            Self::Hopper(_) => Route::Hopper,
        }
    }

    /// What [`Self::held_bytes`] will be.
    pub(crate) fn own_bytes(route: Route) -> usize {
        if route == Route::Hopper { size_of::<u32>() } else { 0 }
    }

    /// Bytes of its own on the device.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Self::Portable(_) => 0,
            Self::Hopper(hopper) => hopper.nan_epoch.num_bytes(),
        }
    }

    /// How the work of `problem` is cut on this route. `streaming`: whether documents may be streamed.
    pub(crate) fn division(route: Route, info: &DeviceInfo, problem: &Problem, streaming: bool) -> Division {
        let chunk_bytes = info.l2_bytes / L2_SHARE;
        let tiles = match problem.pairing {
            Pairing::Cross => query_tiles(&problem.queries).0.len(),
            _ => problem.queries.longest().div_ceil(TILE_ROWS),
        };
        if route != Route::Hopper {
            let most = if problem.dtype == DType::F32 { 1 } else { ForwardMma::TILES };
            return Division::new(problem, tiles.clamp(1, most), ForwardMma::most_blocks(info), chunk_bytes);
        }
        let held = Shape::choose(problem).tiles_of_block(info, problem.dim, tiles.max(1));
        Division {
            streamed: streaming && Self::stream(info, problem).is_some(),
            ..Division::new(problem, held, info.sm_count as usize, chunk_bytes)
        }
    }

    fn stream(info: &DeviceInfo, problem: &Problem) -> Option<StreamShape> {
        StreamShape::choose(info, problem, Self::padded_dim(problem).unwrap_or(problem.dim))
    }

    /// Elements of a padded row, where the route copies rows to where they are aligned.
    pub(crate) fn padded_dim(problem: &Problem) -> Option<usize> {
        let padded = problem.dim.next_multiple_of(ROW_ELEMENTS);
        (problem.dtype != DType::F32 && padded != problem.dim).then_some(padded)
    }

    /// Bytes that every input row must begin at a multiple of.
    pub(crate) fn alignment(&self, problem: &Problem) -> usize {
        let direct = self.route() == Route::Hopper && Self::padded_dim(problem).is_none();
        if direct { 16 } else { 1 }
    }

    /// # Safety
    /// The addresses in `params` must be live memory of the sizes that the problem says, those of `scratch` of those that the division says.
    pub(crate) unsafe fn launch(
        &mut self,
        gpu: &Gpu,
        problem: &Problem,
        division: &Division,
        prepare: &Prepare,
        scratch: Scratch,
        mut params: ForwardParams,
    ) -> Result<()> {
        let rows = pad(gpu, problem, prepare, scratch.padded, &mut params)?;
        match self {
            // SAFETY: the caller's promise.
            Self::Portable(portable) => unsafe { portable.launch(gpu, problem, division, rows, params) },
            // SAFETY: the caller's promise.
            Self::Hopper(hopper) => unsafe { hopper.launch(gpu, problem, division, rows, scratch, params) },
        }
    }
}

/// Queues the copies of queries and documents to padded rows, if there are any, and points `params` to them. Gives where the rows are.
fn pad(
    gpu: &Gpu,
    problem: &Problem,
    prepare: &Prepare,
    to: [u64; 2],
    params: &mut ForwardParams,
) -> Result<[RowsAt; 2]> {
    let pad = |texts: &mut TextsArg, to: u64, rows: usize| -> Result<RowsAt> {
        if let Some(dim) = Scorer::padded_dim(problem) {
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
            unsafe { prepare.pad(gpu.stream(), gpu.info(), &params) }?;
            (texts.rows, texts.row_stride) = (to, dim as u64);
        }
        Ok(RowsAt { address: texts.rows, row_stride: texts.row_stride as usize, rows })
    };
    Ok([
        pad(&mut params.queries, to[0], problem.queries.matrix_rows())?,
        pad(&mut params.docs, to[1], problem.docs.matrix_rows())?,
    ])
}

impl Portable {
    /// # Safety
    /// As [`Scorer::launch`].
    unsafe fn launch(
        &self,
        gpu: &Gpu,
        problem: &Problem,
        division: &Division,
        rows: [RowsAt; 2],
        mut params: ForwardParams,
    ) -> Result<()> {
        let with_argmax = usize::from(params.argmax != 0);
        let aligned = |at: &RowsAt| at.address.is_multiple_of(16) && at.row_stride.is_multiple_of(ROW_ELEMENTS);
        match &self.tensor {
            Some(tensor) if rows.iter().all(aligned) => {
                params.dim = Scorer::padded_dim(problem).unwrap_or(problem.dim) as u32;
                // SAFETY: the caller's promise.
                unsafe { tensor[with_argmax].launch(gpu, division.blocks, &params) }
            }
            // SAFETY: the caller's promise.
            _ => unsafe { self.plain[with_argmax].launch(gpu, division.blocks, &params) },
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
        at: [RowsAt; 2],
        scratch: Scratch,
        params: ForwardParams,
    ) -> Result<()> {
        let (stream, info) = (gpu.stream(), gpu.info());
        let dim = Scorer::padded_dim(problem).unwrap_or(problem.dim);
        if let Some(kernel) = &mut self.stream
            && kernel.takes(at[1], dim)
        {
            let params = StreamParams {
                queries: params.queries,
                docs: params.docs,
                dim: dim as u32,
                query_rows: problem.queries.rows() as u32,
                firsts: scratch.block_firsts,
                scores: params.sums,
                argmax: params.argmax,
                joins: scratch.joins,
                ..StreamParams::default()
            };
            // SAFETY: the caller's promise.
            return unsafe { kernel.launch(gpu, division.blocks, &problem.docs, at, params) };
        }
        let maps = self.maps.of(at, || maps(problem.dtype, dim, self.shape, at[0], at[1]))?;
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
