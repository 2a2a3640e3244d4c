//! Borrowed, typed, strided views of device memory, checked when they are made.

use std::ops::Range;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::extent::{Extent, aligned};
use crate::gpu::Gpu;

/// Anything a read-only view can be made of: `&CudaSlice`, `CudaView`, `&CudaView`, `&CudaViewMut`.
pub trait DeviceData<'a, T> {
    /// The memory as a cudarc view.
    fn into_view(self) -> CudaView<'a, T>;
}

impl<'a, T> DeviceData<'a, T> for &'a CudaSlice<T> {
    fn into_view(self) -> CudaView<'a, T> {
        self.as_view()
    }
}

impl<'a, T> DeviceData<'a, T> for CudaView<'a, T> {
    fn into_view(self) -> CudaView<'a, T> {
        self
    }
}

impl<'a, T> DeviceData<'a, T> for &CudaView<'a, T> {
    fn into_view(self) -> CudaView<'a, T> {
        self.slice(..)
    }
}

impl<'a, T> DeviceData<'a, T> for &'a CudaViewMut<'_, T> {
    fn into_view(self) -> CudaView<'a, T> {
        self.as_view()
    }
}

/// Anything a writable view can be made of: `&mut CudaSlice`, `CudaViewMut`.
pub trait DeviceDataMut<'a, T> {
    /// The memory as a writable cudarc view.
    fn into_view_mut(self) -> CudaViewMut<'a, T>;
}

impl<'a, T> DeviceDataMut<'a, T> for &'a mut CudaSlice<T> {
    fn into_view_mut(self) -> CudaViewMut<'a, T> {
        self.as_view_mut()
    }
}

impl<'a, T> DeviceDataMut<'a, T> for CudaViewMut<'a, T> {
    fn into_view_mut(self) -> CudaViewMut<'a, T> {
        self
    }
}

/// The address of device memory, without recording a use of it.
fn address_of<T>(data: &impl DevicePtr<T>) -> u64 {
    let (address, guard) = data.device_ptr(data.stream());
    // Nothing is read here, so no read is recorded: recording one on the owner's stream would hide an earlier read by another
    // stream from the next writer. The guard holds only borrows, so forgetting it leaks nothing.
    std::mem::forget(guard);
    address
}

macro_rules! common_methods {
    () => {
        /// The name that errors give this tensor.
        pub fn what(&self) -> &'static str {
            self.what
        }

        /// Extents, outermost first, in elements.
        pub fn shape(&self) -> [usize; R] {
            self.extent.shape
        }

        /// Distance in elements between the starts of two consecutive rows of the flattened outer axes.
        pub fn row_stride(&self) -> usize {
            self.extent.row_stride
        }

        /// Product of all axes but the last (1 for a vector).
        pub fn rows(&self) -> usize {
            self.extent.rows()
        }

        /// The last axis.
        pub fn cols(&self) -> usize {
            self.extent.cols()
        }

        /// Whether rows follow one another without a gap.
        pub fn is_contiguous(&self) -> bool {
            self.extent.is_contiguous()
        }

        /// The device address of the first element, for checks. Work must take its pointer from `device_ptr`, which also
        /// orders streams.
        pub fn address(&self) -> u64 {
            self.address
        }

        /// Device addresses from the first element to one past the last. The gaps between strided rows count as covered.
        pub fn range(&self) -> Range<u64> {
            self.address..self.address + self.extent.span::<T>()
        }

        /// Name and range, as [`check_disjoint`] takes them.
        pub fn named_range(&self) -> (&'static str, Range<u64>) {
            (self.what, self.range())
        }

        /// Whether every row starts at a multiple of `bytes`.
        pub fn is_aligned(&self, bytes: usize) -> bool {
            self.require_alignment(bytes).is_ok()
        }

        /// Demands that every row starts at a multiple of `bytes`.
        ///
        /// # Errors
        /// [`Error::Misaligned`] with the address, or with the row stride in bytes when only that is in the way.
        pub fn require_alignment(&self, bytes: usize) -> Result<()> {
            aligned(self.what, self.address, bytes)?;
            if self.rows() > 1 { aligned(self.what, self.extent.stride_bytes::<T>(), bytes) } else { Ok(()) }
        }

        /// Demands this shape.
        ///
        /// # Errors
        /// [`Error::Shape`].
        pub fn require_shape(&self, expected: [usize; R]) -> Result<()> {
            if self.extent.shape == expected {
                return Ok(());
            }
            Err(Error::Shape {
                what: self.what,
                found: format!("{:?}", self.extent.shape),
                expected: format!("{expected:?}"),
            })
        }

        /// Demands that the memory belongs to `gpu`'s context.
        ///
        /// # Errors
        /// [`Error::WrongDevice`].
        pub fn check_context(&self, gpu: &Gpu) -> Result<()> {
            gpu.check_context(self.what, self.data.stream().context())
        }
    };
}

/// A read-only tensor of rank `R`: the last axis is contiguous, and the rows of the flattened outer axes lie `row_stride` apart.
///
/// Making one under an active stream capture can fail, because cudarc may order streams: make views first.
#[derive(Debug)]
pub struct TensorView<'a, T, const R: usize> {
    what: &'static str,
    data: CudaView<'a, T>,
    extent: Extent<R>,
    address: u64,
}

impl<'a, T, const R: usize> TensorView<'a, T, R> {
    /// A contiguous tensor that fills `data` exactly. `what` is the name errors give it.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::Shape`] when the lengths differ.
    pub fn new(what: &'static str, data: impl DeviceData<'a, T>, shape: [usize; R]) -> Result<Self> {
        let data = data.into_view();
        let extent = Extent::contiguous::<T>(what, shape, data.len())?;
        let address = address_of(&data);
        Ok(Self { what, data, extent, address })
    }

    /// A tensor whose rows start `row_stride` elements apart in `data`, which may be longer than needed.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::Stride`] when a row does not fit its stride, [`Error::Shape`] when `data` is too short.
    pub fn with_row_stride(
        what: &'static str,
        data: impl DeviceData<'a, T>,
        shape: [usize; R],
        row_stride: usize,
    ) -> Result<Self> {
        let data = data.into_view();
        let extent = Extent::strided::<T>(what, shape, row_stride, data.len())?;
        let address = address_of(&data);
        Ok(Self { what, data, extent, address })
    }

    common_methods!();

    /// The pointer for a read on `stream`, which is made to wait for earlier writes. Drop the guard after the read was launched:
    /// later writers wait for it.
    pub fn device_ptr<'b>(&'b self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>) {
        self.data.device_ptr(stream)
    }

    /// The same memory under another view value (views are not `Copy`, because cudarc's are not).
    pub fn reborrow(&self) -> TensorView<'a, T, R> {
        Self { what: self.what, data: self.data.slice(..), extent: self.extent, address: self.address }
    }
}

impl<T: Element, const R: usize> TensorView<'_, T, R> {
    /// The dtype of the elements.
    pub fn dtype(&self) -> DType {
        T::DTYPE
    }
}

/// A writable tensor of rank `R`; laid out as [`TensorView`].
#[derive(Debug)]
pub struct TensorViewMut<'a, T, const R: usize> {
    what: &'static str,
    data: CudaViewMut<'a, T>,
    extent: Extent<R>,
    address: u64,
}

impl<'a, T, const R: usize> TensorViewMut<'a, T, R> {
    /// A contiguous tensor that fills `data` exactly. `what` is the name errors give it.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::Shape`] when the lengths differ.
    pub fn new(what: &'static str, data: impl DeviceDataMut<'a, T>, shape: [usize; R]) -> Result<Self> {
        let data = data.into_view_mut();
        let extent = Extent::contiguous::<T>(what, shape, data.len())?;
        let address = address_of(&data);
        Ok(Self { what, data, extent, address })
    }

    /// A tensor whose rows start `row_stride` elements apart in `data`, which may be longer than needed.
    /// The gaps are never written.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::Stride`] when a row does not fit its stride, [`Error::Shape`] when `data` is too short.
    pub fn with_row_stride(
        what: &'static str,
        data: impl DeviceDataMut<'a, T>,
        shape: [usize; R],
        row_stride: usize,
    ) -> Result<Self> {
        let data = data.into_view_mut();
        let extent = Extent::strided::<T>(what, shape, row_stride, data.len())?;
        let address = address_of(&data);
        Ok(Self { what, data, extent, address })
    }

    common_methods!();

    /// The pointer for a write (or a read and a write) on `stream`, which is made to wait for earlier reads and writes. Drop the
    /// guard after the write was launched.
    pub fn device_ptr<'b>(&'b mut self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>) {
        self.data.device_ptr_mut(stream)
    }

    /// A read-only view of the same memory.
    pub fn as_view(&self) -> TensorView<'_, T, R> {
        TensorView { what: self.what, data: self.data.as_view(), extent: self.extent, address: self.address }
    }
}

impl<T: Element, const R: usize> TensorViewMut<'_, T, R> {
    /// The dtype of the elements.
    pub fn dtype(&self) -> DType {
        T::DTYPE
    }
}

/// A vector in device memory.
pub type VectorView<'a, T> = TensorView<'a, T, 1>;
/// A writable vector in device memory.
pub type VectorViewMut<'a, T> = TensorViewMut<'a, T, 1>;
/// A row-major matrix `[rows, cols]`.
pub type MatrixView<'a, T> = TensorView<'a, T, 2>;
/// A writable row-major matrix `[rows, cols]`.
pub type MatrixViewMut<'a, T> = TensorViewMut<'a, T, 2>;

/// Demands that no output shares memory with an input or with another output. Inputs may overlap.
///
/// Ranges are whole spans ([`TensorView::range`]), so two interleaved column blocks of one matrix count as overlapping.
///
/// # Errors
/// [`Error::Overlap`] naming the first pair that does.
pub fn check_disjoint(inputs: &[(&'static str, Range<u64>)], outputs: &[(&'static str, Range<u64>)]) -> Result<()> {
    for (i, (name, range)) in outputs.iter().enumerate() {
        for (other, taken) in inputs.iter().chain(&outputs[..i]) {
            if range.start < taken.end && taken.start < range.end {
                return Err(Error::Overlap { a: other, b: name });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disjointness_covers_outputs_against_everything_and_spares_inputs() {
        let (a, b) = (("a", 0..100), ("b", 50..150));
        assert!(check_disjoint(&[a.clone(), b.clone()], &[("c", 150..160)]).is_ok());
        let error = check_disjoint(std::slice::from_ref(&a), &[("c", 200..300), ("d", 99..101)]).unwrap_err();
        assert!(matches!(error, Error::Overlap { a: "a", b: "d" }), "{error}");
        let error = check_disjoint(&[], &[a, b]).unwrap_err();
        assert!(matches!(error, Error::Overlap { a: "a", b: "b" }), "{error}");
    }

    #[test]
    fn touching_ranges_are_disjoint() {
        assert!(check_disjoint(&[("a", 0..64)], &[("b", 64..128)]).is_ok());
        // One tensor inside another.
        assert!(check_disjoint(&[("a", 0..1000)], &[("b", 64..128)]).is_err());
    }
}
