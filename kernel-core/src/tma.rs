//! Tensor maps: what the TMA unit of sm_90 and later needs to copy tiles between global and shared memory.

use cudarc::driver::sys;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::extent::aligned;
use crate::gpu::start_driver;

/// A tensor map, passed to a kernel by value as a `const __grid_constant__` parameter. 128 opaque bytes.
///
/// It holds an address and becomes stale when that memory is freed.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap([u64; 16]);

impl std::fmt::Debug for TensorMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TensorMap(..)")
    }
}

/// Element type of a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// 4-byte float.
    F32,
    /// 2-byte IEEE half.
    F16,
    /// 2-byte bfloat16.
    Bf16,
    /// 1 byte; also FP8 and raw bytes.
    U8,
}

impl MapType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            MapType::F32 => 4,
            MapType::F16 | MapType::Bf16 => 2,
            MapType::U8 => 1,
        }
    }
}

impl From<DType> for MapType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => MapType::F32,
            DType::F16 => MapType::F16,
            DType::Bf16 => MapType::Bf16,
        }
    }
}

/// How 16-byte chunks are permuted in shared memory, to spare bank conflicts. The innermost tile extent must fit the span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// None: rows of the tile follow one another.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

impl Swizzle {
    /// Bytes within which chunks are permuted.
    const fn span(self) -> Option<u64> {
        match self {
            Swizzle::None => None,
            Swizzle::B32 => Some(32),
            Swizzle::B64 => Some(64),
            Swizzle::B128 => Some(128),
        }
    }
}

/// A tiled view of a tensor in global memory, of rank 1 to 5. What a tile reads beyond the tensor is zero; what it would write there
/// is dropped.
#[derive(Clone, Copy, Debug)]
pub struct TiledMap<'a> {
    /// Element type.
    pub dtype: MapType,
    /// Device address of the first element; a multiple of 16.
    pub address: u64,
    /// Extents in elements, innermost first; each 1 to 2³².
    pub dims: &'a [u64],
    /// Strides of dims 1.. in bytes (dim 0 is contiguous); multiples of 16 below 2⁴⁰.
    pub strides: &'a [u64],
    /// Tile extents in elements, innermost first; each 1 to 256, and the innermost a multiple of 16 bytes.
    pub tile: &'a [u32],
    /// Permutation in shared memory.
    pub swizzle: Swizzle,
    /// Whether loads widen to 256 bytes in L2.
    pub l2_promotion: bool,
}

impl TiledMap<'_> {
    /// Checks the limits that the driver would refuse with no more than "invalid value".
    /// Limits: CUDA driver API, `cuTensorMapEncodeTiled`.
    fn check(&self) -> Result<()> {
        let rank = self.dims.len();
        if !(1..=5).contains(&rank) {
            return Err(shape("tensor map rank", rank, "1 to 5"));
        }
        if self.strides.len() != rank - 1 {
            return Err(shape("tensor map strides", self.strides.len(), format!("{} for rank {rank}", rank - 1)));
        }
        if self.tile.len() != rank {
            return Err(shape("tensor map tile", self.tile.len(), format!("{rank} extents for rank {rank}")));
        }
        if self.address == 0 {
            return Err(shape("tensor map address", "a null pointer", "device memory"));
        }
        aligned("tensor map address", self.address, 16)?;
        if self.dims.contains(&0) {
            return Err(Error::ZeroSize { what: "tensor map dims" });
        }
        if self.dims.iter().any(|dim| *dim > 1 << 32) {
            return Err(shape("tensor map dims", format!("{:?}", self.dims), "extents of at most 2^32"));
        }
        for stride in self.strides {
            aligned("tensor map stride", *stride, 16)?;
            if *stride >= 1 << 40 {
                return Err(shape("tensor map stride", format!("{stride} bytes"), "less than 2^40 bytes"));
            }
        }
        if self.tile.contains(&0) {
            return Err(Error::ZeroSize { what: "tensor map tile" });
        }
        if self.tile.iter().any(|extent| *extent > 256) {
            return Err(shape("tensor map tile", format!("{:?}", self.tile), "extents of at most 256"));
        }
        let inner = u64::from(self.tile[0]) * self.dtype.size_bytes() as u64;
        if !inner.is_multiple_of(16) {
            return Err(shape("tensor map tile", format!("{inner} bytes innermost"), "a multiple of 16 bytes"));
        }
        match self.swizzle.span() {
            Some(span) if inner > span => Err(shape(
                "tensor map tile",
                format!("{inner} bytes innermost"),
                format!("at most the swizzle's {span} bytes"),
            )),
            _ => Ok(()),
        }
    }
}

fn shape(what: &'static str, found: impl ToString, expected: impl Into<String>) -> Error {
    Error::Shape { what, found: found.to_string(), expected: expected.into() }
}

impl TensorMap {
    /// Encodes a tiled map. Host work of about a microsecond; reads no device memory.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Misaligned`] or [`Error::ZeroSize`] naming the argument, [`Error::MissingLibrary`] or
    /// [`Error::NoDriver`] without a driver, [`Error::Driver`] for what the driver alone can tell.
    pub fn tiled(map: &TiledMap<'_>) -> Result<Self> {
        use sys::{
            CUtensorMapDataType as Data, CUtensorMapFloatOOBfill as Fill, CUtensorMapInterleave as Interleave,
            CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Mode,
        };
        map.check()?;
        start_driver()?;
        let dtype = match map.dtype {
            MapType::F32 => Data::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            MapType::F16 => Data::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            MapType::Bf16 => Data::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            MapType::U8 => Data::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let swizzle = match map.swizzle {
            Swizzle::None => Mode::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::B32 => Mode::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::B64 => Mode::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::B128 => Mode::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let promotion = if map.l2_promotion {
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B
        } else {
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE
        };
        // The driver wants its own, more strictly aligned type.
        let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
        let element_strides = [1u32; 5];
        // The driver does not read strides for rank 1, but a dangling pointer is not worth the doubt.
        let mut strides = [0u64; 5];
        strides[..map.strides.len()].copy_from_slice(map.strides);
        // SAFETY: every array holds as many values as the rank asks for, as checked; the call only reads them and writes `encoded`.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut encoded,
                dtype,
                map.dims.len() as u32,
                map.address as *mut std::ffi::c_void,
                map.dims.as_ptr(),
                strides.as_ptr(),
                map.tile.as_ptr(),
                element_strides.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                promotion,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(Error::driver("cuTensorMapEncodeTiled"))?;
        Ok(TensorMap(encoded.opaque))
    }
}

/// The maps `M` of the last call, with what they were made of, `K`: callers mostly come back with the same memory.
#[derive(Clone, Copy, Debug)]
pub struct LastMaps<K, M>(Option<(K, M)>);

impl<K, M> LastMaps<K, M> {
    /// No call yet.
    pub const fn new() -> Self {
        Self(None)
    }
}

impl<K, M> Default for LastMaps<K, M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: PartialEq, M: Copy> LastMaps<K, M> {
    /// The maps of `call`: the last ones where it is what they were made of, else those that `encode` gives.
    ///
    /// # Errors
    /// What `encode` gives; the last maps are then kept.
    pub fn of<E>(&mut self, call: K, encode: impl FnOnce() -> Result<M, E>) -> Result<M, E> {
        if let Some((of, maps)) = &self.0
            && *of == call
        {
            return Ok(*maps);
        }
        let maps = encode()?;
        self.0 = Some((call, maps));
        Ok(maps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<'a>() -> TiledMap<'a> {
        TiledMap {
            dtype: MapType::Bf16,
            address: 0x1000,
            dims: &[768, 1 << 20],
            strides: &[1536],
            tile: &[64, 128],
            swizzle: Swizzle::B128,
            l2_promotion: true,
        }
    }

    #[test]
    fn the_layout_is_the_drivers() {
        assert_eq!(size_of::<TensorMap>(), size_of::<sys::CUtensorMap>());
        assert_eq!(size_of::<TensorMap>(), 128);
        assert_eq!(align_of::<TensorMap>(), 64);
    }

    #[test]
    fn maps_are_encoded_once_for_the_same_memory() {
        let mut last = LastMaps::new();
        let mut of = |at: u64, encoded: Result<u32, ()>| {
            let mut calls = 0;
            let maps = last.of(at, || {
                calls += 1;
                encoded
            });
            (maps, calls)
        };
        assert_eq!(of(8, Ok(1)), (Ok(1), 1));
        assert_eq!(of(8, Ok(2)), (Ok(1), 0));
        assert_eq!(of(16, Err(())), (Err(()), 1));
        assert_eq!(of(8, Ok(3)), (Ok(1), 0));
        assert_eq!(of(16, Ok(4)), (Ok(4), 1));
    }

    #[test]
    fn good_maps_pass() {
        map().check().unwrap();
        TiledMap { dims: &[1 << 32], strides: &[], tile: &[64], ..map() }.check().unwrap();
        TiledMap { dtype: MapType::F32, tile: &[32, 256], strides: &[3072], ..map() }.check().unwrap();
        TiledMap { swizzle: Swizzle::None, tile: &[256, 256], ..map() }.check().unwrap();
    }

    #[test]
    fn each_limit_names_itself() {
        let cases: [(TiledMap<'_>, &[&str]); 14] = [
            (TiledMap { dims: &[], ..map() }, &["rank", "found 0", "1 to 5"]),
            (TiledMap { dims: &[8; 6], ..map() }, &["rank", "found 6", "1 to 5"]),
            (TiledMap { strides: &[], ..map() }, &["strides", "found 0", "1 for rank 2"]),
            (TiledMap { tile: &[64], ..map() }, &["tile", "found 1", "2 extents"]),
            (TiledMap { address: 0, ..map() }, &["address", "null"]),
            (TiledMap { address: 0x1008, ..map() }, &["address", "0x1008", "16"]),
            (TiledMap { dims: &[768, 0], ..map() }, &["dims", "0"]),
            (TiledMap { dims: &[768, (1 << 32) + 1], ..map() }, &["dims", "4294967297", "2^32"]),
            (TiledMap { strides: &[1538], ..map() }, &["stride", "0x602", "16"]),
            (TiledMap { strides: &[1 << 40], ..map() }, &["stride", "1099511627776", "2^40"]),
            (TiledMap { tile: &[64, 0], ..map() }, &["tile", "0"]),
            (TiledMap { tile: &[64, 257], ..map() }, &["tile", "257", "at most 256"]),
            (TiledMap { tile: &[60, 64], ..map() }, &["tile", "120 bytes", "multiple of 16"]),
            (TiledMap { tile: &[128, 64], ..map() }, &["tile", "256 bytes", "128 bytes"]),
        ];
        for (map, parts) in cases {
            let message = TensorMap::tiled(&map).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        }
    }
}
