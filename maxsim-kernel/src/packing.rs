//! From padded texts to packed ones, and back.

use kernel_core::cudarc::driver::{CudaSlice, DevicePtr};
use kernel_core::{DType, Element, Gpu, MatrixView, MatrixViewMut, check_disjoint};

use crate::error::Result;
use crate::kernels::{GatherParams, GatherRows, NONE};
use crate::problem::{Spans, shape};

/// The packed texts that a mask makes of `count` padded ones of `length` tokens: as many tokens each as the mask keeps. [`Packing`] moves the tokens.
///
/// `mask` has `count * length` entries, in order.
///
/// # Errors
/// `Shape` for a mask of another size, and for more than 2³¹ − 1 texts.
pub fn packed_spans(mask: &[bool], count: usize, length: usize) -> Result<Spans> {
    if Some(mask.len()) != count.checked_mul(length) {
        return Err(shape("mask", format!("[{}]", mask.len()), format!("[{count}, {length}]")));
    }
    let kept = |text: usize| mask[text * length..][..length].iter().filter(|keep| **keep).count();
    // Texts without tokens take no memory, whatever their number; their offsets do.
    if count > i32::MAX as usize {
        return Err(shape("texts", count, format!("at most {}", i32::MAX)));
    }
    Ok(Spans::of_lengths((0..count).map(kept)))
}

/// Moves the kept tokens of padded texts to packed rows on the device, and gradients of packed rows back to where their tokens were.
///
/// [`Plan`](crate::Plan) takes any mask as it is, and its time follows the kept tokens too where they come first; packing pays where texts are used many
/// times, are to be kept, or have holes. A packed text's tokens are its kept ones in their order: choices (`argmax`) count those, and [`Packing::sources`] says where each was.
///
/// ```no_run
/// use maxsim_kernel::kernel_core::half::bf16;
/// use maxsim_kernel::{DType, Gpu, MatrixView, MatrixViewMut, Packing};
///
/// let gpu = Gpu::new(0)?;
/// // Two texts of at most three tokens.
/// let packing = Packing::new(&gpu, DType::Bf16, &[true, true, false, true, false, true], 2, 3)?;
/// let padded = gpu.upload(&vec![bf16::ONE; 6 * 128])?;
/// let mut packed = gpu.alloc::<bf16>(4 * 128)?;
/// let padded = MatrixView::new("padded", &padded, [6, 128])?;
/// packing.pack(&padded, &mut MatrixViewMut::new("packed", &mut packed, [4, 128])?)?;
/// assert_eq!((packing.spans().length(0), packing.sources()), (2, &[0, 1, 3, 5][..]));
/// # Ok::<(), maxsim_kernel::Error>(())
/// ```
pub struct Packing {
    gpu: Gpu,
    dtype: DType,
    spans: Spans,
    padded_rows: usize,
    rows: Vec<u32>,
    /// The padded row of each packed one, and the packed row of each padded one or [`NONE`].
    gathered: CudaSlice<u32>,
    scattered: CudaSlice<u32>,
    gather: GatherRows,
}

impl std::fmt::Debug for Packing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packing").field("spans", &self.spans).field("padded_rows", &self.padded_rows).finish()
    }
}

impl Packing {
    /// Compiles, and uploads where each token goes: 4 bytes for each padded row and for each kept one. `mask`: as of [`packed_spans`].
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with: `Shape` for a mask of another size or of more than 2³¹ − 1 entries, `ZeroSize` for no text or texts of no
    /// tokens, `MissingLibrary` without NVRTC, `OutOfMemory`, `Driver`.
    pub fn new(gpu: &Gpu, dtype: DType, mask: &[bool], count: usize, length: usize) -> Result<Self> {
        let spans = packed_spans(mask, count, length)?;
        if count == 0 {
            return Err(kernel_core::Error::ZeroSize { what: "texts" }.into());
        }
        if length == 0 {
            return Err(kernel_core::Error::ZeroSize { what: "length of the padded texts" }.into());
        }
        if mask.len() > i32::MAX as usize {
            return Err(shape("mask", format!("[{count}, {length}]"), format!("at most {} entries", i32::MAX)));
        }
        let rows: Vec<u32> = (0..mask.len()).filter(|&row| mask[row]).map(|row| row as u32).collect();
        let mut places = vec![NONE; mask.len()];
        rows.iter().zip(0..).for_each(|(&row, place)| places[row as usize] = place);
        Ok(Self {
            gpu: gpu.clone(),
            dtype,
            padded_rows: mask.len(),
            gathered: gpu.upload(if rows.is_empty() { &[NONE] } else { &rows })?,
            scattered: gpu.upload(&places)?,
            rows,
            spans,
            gather: GatherRows::new(gpu, dtype)?,
        })
    }

    /// The packed texts.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// The padded row that each packed row comes from.
    pub fn sources(&self) -> &[u32] {
        &self.rows
    }

    /// Copies the kept of `padded` `[count · length, d]` to `packed` `[kept, d]` ([`Spans::matrix_rows`] rows). Queues its work and returns; allocates
    /// nothing. Bytes moved: 2 · kept · d elements.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with `DType`, `Shape`, `WrongDevice` or `Overlap` naming the argument, `Driver`.
    pub fn pack<T: Element>(&self, padded: &MatrixView<'_, T>, packed: &mut MatrixViewMut<'_, T>) -> Result<()> {
        let shapes = [self.padded_rows, self.spans.matrix_rows()];
        self.launch(padded, packed, shapes, &self.gathered, self.rows.len())
    }

    /// The transpose of [`Packing::pack`]: copies `packed` to the kept rows of `padded`, and zeros to the others. What the gradient of packed tokens
    /// is for the padded ones.
    ///
    /// # Errors
    /// As [`Packing::pack`].
    pub fn unpack<T: Element>(&self, packed: &MatrixView<'_, T>, padded: &mut MatrixViewMut<'_, T>) -> Result<()> {
        let shapes = [self.spans.matrix_rows(), self.padded_rows];
        self.launch(packed, padded, shapes, &self.scattered, self.padded_rows)
    }

    /// `shapes`: rows of `from` and of `to`.
    fn launch<T: Element>(
        &self,
        from: &MatrixView<'_, T>,
        to: &mut MatrixViewMut<'_, T>,
        shapes: [usize; 2],
        table: &CudaSlice<u32>,
        count: usize,
    ) -> Result<()> {
        if T::DTYPE != self.dtype {
            let expected = self.dtype.to_string();
            return Err(kernel_core::Error::DType { what: from.what(), found: T::DTYPE, expected }.into());
        }
        let dim = from.cols();
        from.require_shape([shapes[0], dim])?;
        to.require_shape([shapes[1], dim])?;
        from.check_context(&self.gpu)?;
        to.check_context(&self.gpu)?;
        check_disjoint(&[from.named_range()], &[to.named_range()])?;
        let dim = u32::try_from(dim).map_err(|_| shape(from.what(), dim, "fewer than 2^32 columns"))?;
        let stream = self.gpu.stream();
        let (from_stride, to_stride) = (from.row_stride() as u64, to.row_stride() as u64);
        let ((from, _from), (to, _to)) = (from.device_ptr(stream), to.device_ptr(stream));
        let (rows, _rows) = table.device_ptr(stream);
        let params = GatherParams { from, to, rows, from_stride, to_stride, count: count as u64, dim };
        // SAFETY: both are checked views, whose guards live to the end of this function; the table names rows of the one for each of the other.
        unsafe { self.gather.launch(&self.gpu, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_counts_what_is_kept() {
        let spans = packed_spans(&[true, false, false, true, true, true], 2, 3).unwrap();
        assert_eq!(spans, Spans::packed(vec![0, 1, 4]));
        assert_eq!(packed_spans(&[true, false, true], 1, 3).unwrap(), Spans::packed(vec![0, 2]));
        assert_eq!(packed_spans(&[], 3, 0).unwrap(), Spans::of_lengths([0, 0, 0]));
        assert!(packed_spans(&[true], 1, 3).unwrap_err().to_string().contains("[1, 3]"));
    }
}
