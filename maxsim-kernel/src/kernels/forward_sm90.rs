//! `cuda/forward_sm90.cu`: scores on Hopper.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig, MapType, Swizzle, TensorMap, TiledMap};

use super::{ItemsArg, TextsArg, load, overlapped};
use crate::error::Result;
use crate::problem::{Problem, Spans};
use crate::programs;
use crate::tiles::TILE_ROWS;

/// Elements of a row that one block of shared memory holds: 128 bytes.
const BLOCK: usize = 64;
const BLOCK_BYTES: usize = 128;
const MAX_WARPGROUPS: usize = 3;
const MAX_SLOTS: usize = 32;
/// A ring that all consumers share has at least so many blocks.
const MIN_BLOCKS: usize = 3;
/// Slots that a ring which one consumer has to itself has at least, by `query_blocks`.
const MIN_RING: [usize; 3] = [3, 3, 2];
/// `Control` of the kernel, and the slack to align the tiles.
const CONTROL_BYTES: usize = 24 * 1024;
/// Dimensions up to this hold queries in registers.
const IN_REGISTERS: usize = 128;
/// Document tokens of a full tile, as compiled; when queries are read from shared memory only [`SHARED_TILE`].
pub(crate) const TILE_TOKENS: [usize; 4] = [64, 96, 128, 152];
const SHARED_TILE: usize = 128;
/// Clocks of an H200's SM that a tile so many columns wide takes at d = 128: what the tensor cores need for three consumers, or what one consumer needs by itself,
/// more where a document ends.
fn tile_cost(columns: usize, last: bool) -> usize {
    (12 * columns + 72).max(410 + 28 * columns / 5 + if last { 250 } else { 0 })
}

/// What is chosen for a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Document tokens of a full tile.
    pub(crate) tokens: usize,
    /// 64-element blocks of a query row held in registers, or 0.
    pub(crate) query_blocks: usize,
    /// Whether tokens are normalised and their inverse norms come with the tiles: only where queries are held in registers.
    pub(crate) norms: bool,
}

impl Shape {
    const SHARED: Self = Self { tokens: SHARED_TILE, query_blocks: 0, norms: false };

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let held = [1, 2].into_iter().flat_map(|query_blocks| {
            let shapes = move |norms| TILE_TOKENS.map(|tokens| Self { tokens, query_blocks, norms });
            [false, true].into_iter().flat_map(shapes)
        });
        held.chain([Self::SHARED])
    }

    /// The tile width in which the documents cost least.
    pub(crate) fn choose(problem: &Problem) -> Self {
        if problem.dim > IN_REGISTERS {
            return Self::SHARED;
        }
        let cost = |length: usize, tokens: usize| {
            let (before, quarter) = (length.saturating_sub(1) / tokens, quarter(tokens));
            let columns = (length - before * tokens).next_multiple_of(quarter).min(tokens);
            before * tile_cost(tokens, false) + tile_cost(columns, true)
        };
        let total = |tokens: usize| match &problem.docs {
            Spans::Padded { length, .. } => cost(*length, tokens),
            Spans::Packed(offsets) => offsets.windows(2).map(|pair| cost(pair[1] - pair[0], tokens)).sum(),
        };
        let tokens = TILE_TOKENS.into_iter().min_by_key(|&tokens| total(tokens)).unwrap_or(SHARED_TILE);
        Self { tokens, query_blocks: problem.dim.div_ceil(BLOCK), norms: problem.normalize }
    }

    /// A whole tile when queries are held in registers, else one block of it; and the norms of its tokens.
    fn slot_bytes(self) -> usize {
        self.tokens * (BLOCK_BYTES * self.query_blocks.max(1) + if self.norms { size_of::<f32>() } else { 0 })
    }

    /// Query tiles that a block holds of `tiles`: as many as there are consumers and shared memory, evenly.
    pub(crate) fn tiles_of_block(self, info: &DeviceInfo, dim: usize, tiles: usize) -> usize {
        let ring = MIN_BLOCKS * self.tokens * BLOCK_BYTES;
        let free = info.shared_bytes_optin.saturating_sub(CONTROL_BYTES + ring);
        let most = (free / query_bytes(dim)).clamp(1, MAX_WARPGROUPS);
        tiles.div_ceil(tiles.div_ceil(most)).max(1)
    }

    /// Consumers, slots of each ring, and bytes of dynamic shared memory. With one query tile documents are split among as many consumers as
    /// leave each a ring of some depth.
    fn ring(self, info: &DeviceInfo, dim: usize, tiles: usize) -> (usize, usize, usize) {
        let slots = |consumers: usize| {
            let rest = info.shared_bytes_optin.saturating_sub(CONTROL_BYTES + consumers * query_bytes(dim));
            (rest / self.slot_bytes()).min(MAX_SLOTS)
        };
        let deep = MIN_RING[self.query_blocks];
        let split = (1..=MAX_WARPGROUPS).rev().find(|&consumers| slots(consumers) / consumers >= deep);
        let (consumers, rings) = if tiles == 1 { (split.unwrap_or(1), split.unwrap_or(1)) } else { (tiles, 1) };
        let ring = slots(consumers) / rings;
        (consumers, ring, CONTROL_BYTES + consumers * query_bytes(dim) + rings * ring * self.slot_bytes())
    }
}

/// Tokens of a quarter of a tile: what is loaded and multiplied is whole quarters.
pub(crate) fn quarter(tokens: usize) -> usize {
    (tokens / 4).next_multiple_of(8)
}

/// Of one query tile.
fn query_bytes(dim: usize) -> usize {
    dim.div_ceil(BLOCK) * TILE_ROWS * BLOCK_BYTES
}

/// `HopperParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct HopperParams {
    pub(crate) items: ItemsArg,
    pub(crate) queries: TextsArg,
    pub(crate) docs: TextsArg,
    pub(crate) dim: u32,
    pub(crate) sums: u64,
    pub(crate) argmax: u64,
    pub(crate) warpgroups: u32,
    pub(crate) tiles: u32,
    pub(crate) slots: u32,
    pub(crate) epoch: u32,
    pub(crate) nan_epoch: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for HopperParams {}

/// Token rows in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowsAt {
    pub(crate) address: u64,
    /// Elements.
    pub(crate) row_stride: usize,
    pub(crate) rows: usize,
}

/// Tensor maps of the queries, and of the documents by full tiles, by halves, by what is behind the first half, and by quarters.
pub(crate) fn maps(dtype: DType, dim: usize, shape: Shape, queries: RowsAt, docs: RowsAt) -> Result<[TensorMap; 5]> {
    let map = |at: RowsAt, tokens: usize| row_map(dtype, dim, at, tokens, true);
    let quarter = quarter(shape.tokens);
    let [full, half, rest] = [shape.tokens, 2 * quarter, shape.tokens - 2 * quarter];
    Ok([map(queries, TILE_ROWS)?, map(docs, full)?, map(docs, half)?, map(docs, rest)?, map(docs, quarter)?])
}

/// Tiles of so many tokens and 64 elements. `l2_promotion`: of 128 bytes that are asked for, 256 are read.
pub(crate) fn row_map(dtype: DType, dim: usize, at: RowsAt, tokens: usize, l2_promotion: bool) -> Result<TensorMap> {
    Ok(TensorMap::tiled(&TiledMap {
        dtype: MapType::from(dtype),
        address: at.address,
        dims: &[dim as u64, at.rows as u64],
        strides: &[(at.row_stride * dtype.size_bytes()) as u64],
        tile: &[BLOCK as u32, tokens as u32],
        swizzle: Swizzle::B128,
        l2_promotion,
    })?)
}

pub(crate) struct ForwardSm90 {
    kernel: Kernel,
    shape: Shape,
}

impl ForwardSm90 {
    pub(crate) fn new(gpu: &Gpu, dtype: DType, shape: Shape, argmax: bool) -> Result<Self> {
        Ok(Self { kernel: load(gpu, &programs::forward_sm90(dtype, shape, argmax))?, shape })
    }

    /// Fills in consumers and rings. `params.tiles` and `blocks` as the division has them.
    ///
    /// # Safety
    /// The maps and addresses must describe live memory of the sizes that the problem says.
    pub(crate) unsafe fn launch(
        &self,
        stream: &CudaStream,
        info: &DeviceInfo,
        blocks: usize,
        [queries, full, half, rest, quarter]: &[TensorMap; 5],
        params: &HopperParams,
    ) -> Result<()> {
        let (consumers, slots, shared_bytes) = self.shape.ring(info, params.dim as usize, params.tiles as usize);
        let params = HopperParams { warpgroups: consumers as u32, slots: slots as u32, ..*params };
        let threads = (1 + params.warpgroups) * 128;
        let config = overlapped(info, LaunchConfig::linear(blocks as u32, threads).with_shared(shared_bytes as u32));
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[queries, full, half, rest, quarter, &params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::h200;

    fn shape(docs: Spans, dim: usize) -> Shape {
        Shape::choose(&Problem::cross(Spans::padded(4, 32), docs, dim, DType::Bf16))
    }

    #[test]
    fn tile_widths_follow_the_documents() {
        assert_eq!(shape(Spans::padded(9, 300), 128), Shape { tokens: 152, query_blocks: 2, norms: false });
        assert_eq!(shape(Spans::padded(9, 256), 64), Shape { tokens: 128, query_blocks: 1, norms: false });
        assert_eq!(shape(Spans::padded(9, 1024), 128), Shape { tokens: 128, query_blocks: 2, norms: false });
        assert_eq!(shape(Spans::padded(9, 300), 512), Shape::SHARED);
        // As fast as any width that was measured.
        let ragged =
            |longest: usize| shape(Spans::of_lengths((0..256).map(|doc| doc * 7919 % (longest + 1))), 128).tokens;
        assert_eq!([40, 120, 300].map(ragged), [64, 128, 152]);
        assert_eq!([180, 300, 1024].map(|length| shape(Spans::padded(64, length), 128).tokens), [96, 152, 128]);
        for tokens in TILE_TOKENS {
            assert!(4 * quarter(tokens) >= tokens && 3 * quarter(tokens) < tokens);
        }
    }

    #[test]
    fn shared_memory_holds_every_dimension() {
        let info = h200();
        for dim in 1..=1024usize {
            let query_blocks = if dim <= 128 { dim.div_ceil(64) } else { 0 };
            for shape in Shape::all().filter(|shape| shape.query_blocks == query_blocks) {
                for tiles in [1, 2, 3, 4, 100] {
                    let held = shape.tiles_of_block(&info, dim, tiles);
                    let (consumers, ring, bytes) = shape.ring(&info, dim, held);
                    assert!(
                        ring >= MIN_RING[shape.query_blocks] && bytes <= info.shared_bytes_optin,
                        "d {dim}, {tiles} tiles: {ring}"
                    );
                    assert!((1..=MAX_WARPGROUPS).contains(&consumers) && (held == 1 || held == consumers));
                }
            }
        }
        let shape = Shape { tokens: 152, query_blocks: 2, norms: true };
        assert_eq!((shape.tiles_of_block(&info, 128, 128), shape.tiles_of_block(&info, 128, 4)), (3, 2));
        assert_eq!((shape.ring(&info, 128, 1).0, shape.ring(&info, 128, 3).0), (2, 3));
    }
}
