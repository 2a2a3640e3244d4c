//! Kept tokens moved to packed rows and back, and what they score.

use maxsim_kernel::kernel_core::Element;
use maxsim_kernel::kernel_core::half::{bf16, f16};
use maxsim_kernel::{
    Gpu, Inputs, MatrixView, MatrixViewMut, Options, Packing, Plan, Problem, Spans, VectorView, VectorViewMut,
};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::support::gpu;

fn tokens<T: Element>(elements: usize, seed: u64) -> Vec<T> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..elements).map(|_| T::from_f32(rng.random_range(-2i32..=2) as f32)).collect()
}

/// `gap`: elements of NaN behind each padded row, and behind each packed one.
fn run<T: Element + PartialEq + std::fmt::Debug>(gpu: &Gpu, mask: &[bool], count: usize, dim: usize, gap: usize) {
    let length = mask.len() / count;
    let nan = T::from_f32(f32::NAN);
    let rows = tokens::<T>(mask.len() * dim, 5);
    let spread =
        |rows: &[T]| -> Vec<T> { rows.chunks(dim).flat_map(|row| row.iter().copied().chain(vec![nan; gap])).collect() };
    let kept: Vec<T> =
        (0..mask.len()).filter(|&row| mask[row]).flat_map(|row| rows[row * dim..][..dim].to_vec()).collect();
    let packing = Packing::new(gpu, T::DTYPE, mask, count, length).unwrap();
    let packed_rows = packing.spans().matrix_rows();
    assert_eq!((packing.spans().count(), packing.spans().rows()), (count, kept.len() / dim));

    let padded = gpu.upload(&spread(&rows)).unwrap();
    let mut packed = gpu.upload(&vec![nan; packed_rows * (dim + gap)]).unwrap();
    let stride = dim + gap;
    let view = MatrixView::with_row_stride("padded", &padded, [mask.len(), dim], stride).unwrap();
    let mut packed_view = MatrixViewMut::with_row_stride("packed", &mut packed, [packed_rows, dim], stride).unwrap();
    packing.pack(&view, &mut packed_view).unwrap();
    let same = |found: &[T], expected: &[T]| {
        found.len() == expected.len()
            && found.iter().zip(expected).all(|(a, b)| a == b || (a.to_f32().is_nan() && b.to_f32().is_nan()))
    };
    let found = gpu.download(&packed).unwrap();
    let expected = if kept.is_empty() { vec![nan; stride] } else { spread(&kept) };
    assert!(same(&found, &expected), "packed {count} x {length} x {dim} + {gap}");

    let mut back = gpu.upload(&vec![nan; mask.len() * stride]).unwrap();
    let packed_view = MatrixView::with_row_stride("packed", &packed, [packed_rows, dim], stride).unwrap();
    let mut back_view = MatrixViewMut::with_row_stride("padded", &mut back, [mask.len(), dim], stride).unwrap();
    packing.unpack(&packed_view, &mut back_view).unwrap();
    let zeroed = (0..rows.len()).map(|at| if mask[at / dim] { rows[at] } else { T::from_f32(0.0) });
    let found = gpu.download(&back).unwrap();
    assert!(same(&found, &spread(&zeroed.collect::<Vec<_>>())), "unpacked {count} x {length} x {dim} + {gap}");
}

#[test]
fn kept_rows_go_to_their_places_and_back() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let random: Vec<bool> = (0..700 * 13).map(|_| rng.random_range(0..3) != 0).collect();
    for (dim, gap) in [(128, 0), (64, 8), (48, 3), (17, 0), (8, 0), (1000, 0), (1, 1)] {
        run::<bf16>(&gpu, &random, 700, dim, gap);
        run::<f16>(&gpu, &random, 13, dim, gap);
        run::<f32>(&gpu, &random, 700, dim, gap);
    }
    run::<bf16>(&gpu, &[false; 12], 3, 64, 0);
    run::<bf16>(&gpu, &[true; 12], 12, 64, 0);
}

/// The documents' mask has holes: packed they score what they score masked.
#[test]
fn packed_texts_score_as_masked_ones() {
    let Some(gpu) = gpu() else { return };
    let (count, length, dim) = (60, 77, 64);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(4);
    let mask: Vec<bool> = (0..count * length).map(|_| rng.random_range(0..3) != 0).collect();
    let queries = gpu.upload(&tokens::<bf16>(3 * 20 * dim, 1)).unwrap();
    let padded = gpu.upload(&tokens::<bf16>(count * length * dim, 2)).unwrap();
    let packing = Packing::new(&gpu, bf16::DTYPE, &mask, count, length).unwrap();
    let rows = packing.spans().rows();
    let mut packed = gpu.alloc::<bf16>(rows * dim).unwrap();
    let padded_view = MatrixView::new("padded", &padded, [count * length, dim]).unwrap();
    packing.pack(&padded_view, &mut MatrixViewMut::new("packed", &mut packed, [rows, dim]).unwrap()).unwrap();

    let bytes = gpu.upload(&mask.iter().map(|keep| u8::from(*keep)).collect::<Vec<_>>()).unwrap();
    let score = |docs: Spans, view: MatrixView<'_, bf16>, masked: bool| {
        let problem = Problem::cross(Spans::padded(3, 20), docs, dim, bf16::DTYPE).with_masks(false, masked);
        let (scores, choices) = (problem.scores(), problem.argmaxes());
        let mut plan = Plan::new(&gpu, problem, Options::default()).unwrap();
        let inputs = Inputs {
            queries: MatrixView::new("queries", &queries, [3 * 20, dim]).unwrap(),
            docs: view,
            query_mask: None,
            doc_mask: masked.then(|| VectorView::new("mask", &bytes, [mask.len()]).unwrap()),
        };
        let (mut found, mut argmax) = (gpu.alloc::<f32>(scores).unwrap(), gpu.alloc::<i32>(choices).unwrap());
        let mut found_view = VectorViewMut::new("scores", &mut found, [scores]).unwrap();
        let mut argmax_view = VectorViewMut::new("argmax", &mut argmax, [choices]).unwrap();
        plan.forward(&inputs, &mut found_view, Some(&mut argmax_view)).unwrap();
        (gpu.download(&found).unwrap(), gpu.download(&argmax).unwrap())
    };
    let masked = score(Spans::padded(count, length), padded_view, true);
    let view = MatrixView::new("packed", &packed, [rows, dim]).unwrap();
    let mut found = score(packing.spans().clone(), view, false);
    for (at, choice) in found.1.iter_mut().enumerate() {
        let doc = at / 20 % count;
        let row = packing.spans().span(doc).start + *choice as usize;
        *choice = packing.sources()[row] as i32 - (doc * length) as i32;
    }
    assert_eq!(found, masked);
}

#[test]
fn what_does_not_fit_is_named() {
    let Some(gpu) = gpu() else { return };
    let packing = Packing::new(&gpu, bf16::DTYPE, &[true, false, true], 1, 3).unwrap();
    let memory = gpu.alloc::<bf16>(3 * 8).unwrap();
    let mut packed = gpu.alloc::<bf16>(3 * 8).unwrap();
    let padded = MatrixView::new("padded", &memory, [3, 8]).unwrap();
    let error = packing.pack(&padded, &mut MatrixViewMut::new("packed", &mut packed, [3, 8]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("packed") && error.to_string().contains("[2, 8]"), "{error}");
    let (memory, mut packed) = (gpu.alloc::<f32>(3 * 8).unwrap(), gpu.alloc::<f32>(2 * 8).unwrap());
    let padded = MatrixView::new("padded", &memory, [3, 8]).unwrap();
    let error = packing.pack(&padded, &mut MatrixViewMut::new("packed", &mut packed, [2, 8]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("f32"), "{error}");
    assert!(Packing::new(&gpu, bf16::DTYPE, &[], 0, 3).unwrap_err().to_string().contains("texts"));
}
