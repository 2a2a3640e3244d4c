//! Host side of the Hopper mainloop `cuda/sm90/mainloop.cuh`: its shape parameter, its launch, and the tensor maps it reads and
//! writes through.

use crate::error::Result;
use crate::gpu::DeviceInfo;
use crate::launch::{KernelArg, LaunchConfig};
use crate::tma::{MapType, Swizzle, TensorMap, TiledMap};

/// Rows and columns of a consumer warpgroup's output, unless its kernel has wider ones; with `Schedule::PING_PONG` a tile, with `COOPERATIVE` half of one.
pub const TILE: usize = 128;
/// Bytes along K that one stage holds of each operand row.
const STAGE_ROW_BYTES: usize = 128;
const THREADS: u32 = 384;
/// `Mainloop::SHARED_LIMIT`: all that a block of sm_90 may have; the mainloop fills what its epilogue leaves with stages.
const SHARED_BYTES: u32 = 232_448;
/// Warps of a block that hold accumulators: each has a slot of its own in per-warp results.
pub const CONSUMER_WARPS: usize = 8;

/// `GemmShape` of the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    m: u32,
    n: u32,
    k: u32,
    a_mn: i32,
    a_k: i32,
    b_mn: i32,
    b_k: i32,
    band: u32,
}

// SAFETY: plain data, laid out as the header's struct of the same fields.
unsafe impl KernelArg for GemmShape {}

impl GemmShape {
    /// An `m` × `n` block of products over `k`, from the matrices' first element on, walked in bands of `band` tile rows.
    pub fn new(m: usize, n: usize, k: usize, band: u32) -> Self {
        Self { m: m as u32, n: n as u32, k: k as u32, a_mn: 0, a_k: 0, b_mn: 0, b_k: 0, band: band.max(1) }
    }

    /// The same with A's block beginning at row (or column) `mn` and depth `k` of the matrix behind its map.
    #[must_use]
    pub fn with_a_origin(self, mn: usize, k: usize) -> Self {
        Self { a_mn: mn as i32, a_k: k as i32, ..self }
    }

    /// The same with B's block beginning at `mn` and `k`.
    #[must_use]
    pub fn with_b_origin(self, mn: usize, k: usize) -> Self {
        Self { b_mn: mn as i32, b_k: k as i32, ..self }
    }

    /// Output tiles of `TILE` × `TILE`.
    pub fn tiles(&self) -> usize {
        self.tiles_of([TILE, TILE])
    }

    /// Output tiles of another size.
    pub fn tiles_of(&self, [rows, columns]: [usize; 2]) -> usize {
        (self.m as usize).div_ceil(rows) * (self.n as usize).div_ceil(columns)
    }
}

/// `SplitPlanes` of `cuda/sm90/split_mainloop.cuh`: rows from the high to the low plane of each operand.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitPlanes {
    /// Of A.
    pub a: i32,
    /// Of B.
    pub b: i32,
}

// SAFETY: plain data, laid out as the header's struct of the same fields.
unsafe impl KernelArg for SplitPlanes {}

/// The persistent launch for `tiles` output tiles in clusters of `cluster` blocks: one block an SM, no more than there is work for.
/// The cluster shape itself is compiled into the kernel.
pub fn launch_config(info: &DeviceInfo, tiles: usize, cluster: u32) -> LaunchConfig {
    let blocks = (tiles as u32).next_multiple_of(cluster).min(info.sm_count / cluster * cluster);
    LaunchConfig::linear(blocks, THREADS).with_shared(SHARED_BYTES).with_programmatic(true)
}

/// A row-major matrix in device memory: `rows` × `cols` elements, rows `row_stride` elements apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixAt {
    /// Address of the first element; a multiple of 16.
    pub address: u64,
    /// Element type.
    pub dtype: MapType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements between the starts of two rows; a multiple of 16 bytes.
    pub row_stride: usize,
}

impl MatrixAt {
    /// The map of an operand stored with K contiguous: boxes of 128 bytes along K and `TILE / share` rows. `share` is the cluster size for a
    /// B operand that the cluster's blocks load in parts, else 1.
    ///
    /// # Errors
    /// As [`TensorMap::tiled`].
    pub fn k_major(&self, share: usize) -> Result<TensorMap> {
        self.k_major_rows(TILE / share)
    }

    /// The same with boxes of `rows` rows, at most 256.
    ///
    /// # Errors
    /// As [`TensorMap::tiled`].
    pub fn k_major_rows(&self, rows: usize) -> Result<TensorMap> {
        self.boxes([STAGE_ROW_BYTES / self.dtype.size_bytes(), rows])
    }

    /// The map of an operand stored with M or N contiguous: boxes of 64 16-bit elements along it and 64 along K.
    ///
    /// # Errors
    /// As [`TensorMap::tiled`].
    pub fn mn_major(&self) -> Result<TensorMap> {
        self.boxes([64, 64])
    }

    /// The map of both planes of an operand of the split mainloop, of either major: boxes of 64 × 64.
    ///
    /// # Errors
    /// As [`TensorMap::tiled`].
    pub fn planes(&self) -> Result<TensorMap> {
        self.boxes([64, 64])
    }

    /// The map a warp stores its rows through (`sm90/store.cuh`): boxes of 128 bytes and 16 rows.
    ///
    /// # Errors
    /// As [`TensorMap::tiled`].
    pub fn warp_store(&self) -> Result<TensorMap> {
        self.boxes([STAGE_ROW_BYTES / self.dtype.size_bytes(), 16])
    }

    /// The map with boxes of `columns` × `rows` elements, whose rows of 64 or 128 bytes are swizzled within their bytes.
    ///
    /// # Errors
    /// As [`TensorMap::tiled`].
    pub fn boxes(&self, [columns, rows]: [usize; 2]) -> Result<TensorMap> {
        let narrow = columns * self.dtype.size_bytes() <= 64;
        TensorMap::tiled(&TiledMap {
            dtype: self.dtype,
            address: self.address,
            dims: &[self.cols as u64, self.rows as u64],
            strides: &[(self.row_stride * self.dtype.size_bytes()) as u64],
            tile: &[columns as u32, rows as u32],
            swizzle: if narrow { Swizzle::B64 } else { Swizzle::B128 },
            l2_promotion: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_laid_out_as_the_header_says() {
        assert_eq!(size_of::<GemmShape>(), 8 * 4);
        assert_eq!(std::mem::offset_of!(GemmShape, band), 28);
        assert_eq!(GemmShape::new(129, 128, 8, 0).tiles(), 2);
        assert_eq!(GemmShape::new(129, 192, 8, 0).tiles_of([128, 192]), 2);
        assert_eq!(GemmShape::new(129, 128, 8, 0).band, 1);
    }
}
