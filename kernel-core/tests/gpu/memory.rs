//! Devices, contexts, allocations and views.

use half::bf16;
use kernel_core::cudarc::driver::CudaContext;
use kernel_core::{Error, Gpu, Layout, MatrixView, MatrixViewMut, Scalar, TensorView, Workspace, check_disjoint};

use crate::support::{gpu, noise};

#[test]
fn the_device_describes_itself() {
    let Some(gpu) = gpu() else { return };
    let info = gpu.info();
    assert!(info.sm_count > 0 && info.l2_bytes > 0 && !info.name.is_empty(), "{info:?}");
    assert!(info.shared_bytes_optin >= 48 * 1024 && info.driver_version >= 12000, "{info:?}");
    assert_eq!(info.arch().capability(), info.compute_capability);
    let (free, total) = gpu.memory_info().unwrap();
    assert!(free <= total && total.abs_diff(info.total_bytes) <= total / 8, "{free} of {total}, {info:?}");
}

#[test]
fn a_device_beyond_the_last_is_named() {
    let Some(gpu) = gpu() else { return };
    let count = Gpu::count().unwrap();
    assert!(count > gpu.info().ordinal);
    let error = Gpu::new(count).unwrap_err();
    assert!(
        matches!(error, Error::NoDevice { ordinal, available } if ordinal == count && available == count),
        "{error}"
    );
}

#[test]
fn memory_is_zeroed_and_round_trips() {
    let Some(gpu) = gpu() else { return };
    assert_eq!(gpu.download(&gpu.alloc::<f32>(1000).unwrap()).unwrap(), vec![0.0; 1000]);
    let values: Vec<bf16> = noise(1001, 1).into_iter().map(bf16::from_f32).collect();
    assert_eq!(gpu.download(&gpu.upload(&values).unwrap()).unwrap(), values);
    assert!(matches!(gpu.alloc::<f32>(0), Err(Error::ZeroSize { .. })));
}

#[test]
fn running_out_of_memory_is_an_error_and_not_the_end() {
    let Some(gpu) = gpu() else { return };
    let asked = gpu.info().total_bytes * 4;
    match gpu.alloc::<u8>(asked) {
        Err(Error::OutOfMemory { bytes, free, total }) => {
            assert_eq!(bytes, asked);
            assert!(free > 0 && total >= free);
        }
        other => panic!("expected OutOfMemory, got {:?}", other.map(|slice| slice.len())),
    }
    assert!(matches!(gpu.alloc::<f32>(usize::MAX / 2), Err(Error::OutOfMemory { .. })));
    let mut layout = Layout::new();
    layout.take(asked);
    assert!(matches!(Workspace::new(&gpu, &layout), Err(Error::OutOfMemory { .. })));
    assert_eq!(gpu.download(&gpu.upload(&[1.0f32, 2.0]).unwrap()).unwrap(), [1.0, 2.0]);
}

#[test]
fn another_context_is_a_wrong_device() {
    let Some(gpu) = gpu() else { return };
    let other = CudaContext::new_non_primary(0, 0).unwrap();
    let foreign = Gpu::from_stream(other.new_stream().unwrap()).unwrap();
    let theirs = foreign.alloc::<f32>(64).unwrap();
    let view = MatrixView::new("img", &theirs, [8, 8]).unwrap();
    view.check_context(&foreign).unwrap();
    assert!(matches!(view.check_context(&gpu), Err(Error::WrongDevice { what: "img", .. })));
    assert!(matches!(gpu.with_stream(foreign.stream().clone()), Err(Error::WrongDevice { .. })));
    let scalar = foreign.alloc::<f32>(1).unwrap();
    let scalar = Scalar::device("bias", &scalar).unwrap();
    assert!(matches!(scalar.check("bias", &gpu), Err(Error::WrongDevice { what: "bias", .. })));

    // The primary context is one, however often it is opened.
    let again = Gpu::new(0).unwrap();
    again.check_context("stream", gpu.stream().context()).unwrap();
    assert!(gpu.with_stream(again.stream().clone()).is_ok());
}

#[test]
fn views_check_length_alignment_and_overlap() {
    let Some(gpu) = gpu() else { return };
    let mut memory = gpu.alloc::<bf16>(1024).unwrap();
    assert!(matches!(MatrixView::new("x", &memory, [32, 33]), Err(Error::Shape { what: "x", .. })));
    assert!(matches!(MatrixView::with_row_stride("x", &memory, [32, 32], 31), Err(Error::Stride { .. })));

    let whole = MatrixView::new("x", &memory, [32, 32]).unwrap();
    assert!(whole.is_aligned(16) && whole.is_contiguous());
    assert_eq!(whole.range().end - whole.range().start, 2048);

    // Columns 8.. of a 32-wide matrix start 16 bytes in; columns 4.. only 8.
    let block = MatrixView::with_row_stride("block", memory.slice(8..), [31, 24], 32).unwrap();
    block.require_alignment(16).unwrap();
    assert_eq!(block.address(), whole.address() + 16);
    let shifted = MatrixView::with_row_stride("block", memory.slice(4..), [31, 24], 32).unwrap();
    let error = shifted.require_alignment(16).unwrap_err();
    assert!(matches!(error, Error::Misaligned { address, required: 16, .. } if address == whole.address() + 8));
    // An aligned start with rows that are not: the row stride is what the error shows.
    let narrow = MatrixView::with_row_stride("x", memory.slice(..), [10, 8], 9).unwrap();
    assert!(matches!(narrow.require_alignment(16), Err(Error::Misaligned { address: 18, .. })));
    // With one row there is no next row to be misaligned.
    assert!(TensorView::with_row_stride("x", memory.slice(..9), [1, 9], 9).unwrap().is_aligned(16));

    let (low, high) = (whole.named_range(), block.named_range());
    assert!(matches!(check_disjoint(std::slice::from_ref(&low), &[high]), Err(Error::Overlap { a: "x", b: "block" })));

    let (left, right) = memory.split_at_mut(512);
    let left = MatrixViewMut::new("left", left, [16, 32]).unwrap();
    let right = MatrixViewMut::new("right", right, [16, 32]).unwrap();
    check_disjoint(&[], &[left.named_range(), right.named_range()]).unwrap();
    assert_eq!(left.range().end, right.range().start);
    assert!(left.address() == low.1.start);
}

#[test]
fn workspace_regions_are_usable() {
    let Some(gpu) = gpu() else { return };
    let mut layout = Layout::new();
    let (a, b) = (layout.take(100), layout.take(5000));
    let workspace = Workspace::new(&gpu, &layout).unwrap();
    assert_eq!(workspace.bytes(), layout.total());
    assert_eq!(workspace.ptr(b) - workspace.ptr(a), 1024);
    assert_eq!(workspace.ptr(a) % 256, 0);
    let empty = Workspace::new(&gpu, &Layout::new()).unwrap();
    assert_eq!(empty.bytes(), 0);
}
