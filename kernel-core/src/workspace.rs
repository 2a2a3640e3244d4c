//! One device allocation per plan, carved ahead of time.

use cudarc::driver::{CudaSlice, DevicePtr};

use crate::error::Result;
use crate::gpu::Gpu;

/// Offsets and sizes of regions are multiples of this many bytes: enough for TMA, for vector loads and for cuBLASLt.
pub const REGION_ALIGNMENT: usize = 1024;

/// A piece of a [`Workspace`], made by [`Layout::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    offset: usize,
    bytes: usize,
}

impl Region {
    /// Bytes from the start of the workspace.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The bytes that were asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Carves a workspace into regions, one after another. Pure arithmetic: needs no device, so sizes can be reported ahead of time.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    total: usize,
}

impl Layout {
    /// An empty layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next region of `bytes`, at an offset that is a multiple of [`REGION_ALIGNMENT`]. Zero bytes take no space.
    ///
    /// A total too large for `usize` saturates, and the allocation of such a workspace then fails with
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn take(&mut self, bytes: usize) -> Region {
        let region = Region { offset: self.total, bytes };
        self.total = bytes
            .checked_next_multiple_of(REGION_ALIGNMENT)
            .and_then(|padded| self.total.checked_add(padded))
            .unwrap_or(usize::MAX);
        region
    }

    /// The next region of `len` elements of `T`; see [`Layout::take`].
    pub fn take_elements<T>(&mut self, len: usize) -> Region {
        self.take(len.saturating_mul(size_of::<T>()))
    }

    /// Bytes of all regions with their padding: what the workspace will allocate.
    pub fn total(&self) -> usize {
        self.total
    }
}

/// One device allocation that a plan's launches share. Zeroed when made; nothing clears it between calls.
///
/// It belongs to one stream at a time: two calls that use it must be ordered, as calls on one stream are. The driver aligns its base
/// to at least 256 bytes.
#[derive(Debug)]
pub struct Workspace {
    memory: Option<CudaSlice<u8>>,
    base: u64,
    bytes: usize,
}

impl Workspace {
    /// Allocates what `layout` asks for on `gpu`'s stream. An empty layout allocates nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Driver`](crate::Error::Driver).
    pub fn new(gpu: &Gpu, layout: &Layout) -> Result<Self> {
        let bytes = layout.total();
        if bytes == 0 {
            return Ok(Self { memory: None, base: 0, bytes });
        }
        let memory = gpu.alloc::<u8>(bytes)?;
        let base = {
            let (base, _guard) = memory.device_ptr(gpu.stream());
            base
        };
        Ok(Self { memory: Some(memory), base, bytes })
    }

    /// The device address of a region. The region must come from the layout this workspace was made with; 0 when that was empty.
    pub fn ptr(&self, region: Region) -> u64 {
        debug_assert!(region.offset + region.bytes <= self.bytes, "{region:?} is not of this workspace");
        if self.memory.is_some() { self.base + region.offset as u64 } else { 0 }
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aligned_and_do_not_overlap() {
        let mut layout = Layout::new();
        let sizes = [1, 1024, 0, 1025, 4096];
        let regions: Vec<Region> = sizes.iter().map(|bytes| layout.take(*bytes)).collect();
        for (region, bytes) in regions.iter().zip(sizes) {
            assert_eq!(region.offset() % REGION_ALIGNMENT, 0);
            assert_eq!(region.bytes(), bytes);
        }
        for pair in regions.windows(2) {
            assert!(pair[0].offset() + pair[0].bytes() <= pair[1].offset());
        }
        assert_eq!(layout.total(), 1024 + 1024 + 2048 + 4096);
        assert_eq!(layout.take_elements::<f32>(300).bytes(), 1200);
    }

    #[test]
    fn absurd_sizes_saturate() {
        let mut layout = Layout::new();
        layout.take(usize::MAX);
        layout.take_elements::<f32>(usize::MAX);
        assert_eq!(layout.total(), usize::MAX);
        assert_eq!(Layout::new().total(), 0);
    }
}
