//! MaxSim against the naive f64 version over every layout, ties, masks, emptiness, and what NaN and infinity do.

mod common;

use common::{Noise, dense, error, floored_error, on_threads, rounding, wide};
use proptest::prelude::*;
use reference_cpu::maxsim::{self, Pairing, Problem, Tokens};
use reference_cpu::naive::{self, MaxsimSide};
use reference_cpu::{Element, HostMatrix, HostMatrixMut, HostTensor, bf16, f16};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    Cross,
    Candidates,
    Pairs,
    PackedCross,
    PackedList,
}

const LAYOUTS: [Layout; 5] =
    [Layout::Cross, Layout::Candidates, Layout::Pairs, Layout::PackedCross, Layout::PackedList];

/// One side's tokens, with strided rows.
struct Side<T> {
    data: Vec<T>,
    /// Texts before `K`, and the documents of each.
    groups: (usize, usize),
    /// Length of the padded texts, or the offsets of packed ones.
    length: usize,
    offsets: Option<Vec<usize>>,
    mask: Option<Vec<bool>>,
    dim: usize,
    stride: usize,
}

impl<T: Element> Side<T> {
    fn rows(&self) -> usize {
        self.data.len() / self.stride
    }

    fn tokens(&self) -> Tokens<'_, T> {
        let (groups, each) = self.groups;
        let tokens = match &self.offsets {
            Some(offsets) => {
                let rows = HostMatrix::with_row_stride("tokens", &self.data, self.rows(), self.dim, self.stride);
                Tokens::packed(rows.unwrap(), offsets)
            }
            None if each == 1 => Tokens::padded(
                HostTensor::with_row_stride("tokens", &self.data, [groups, self.length, self.dim], self.stride)
                    .unwrap(),
            ),
            None => Tokens::candidates(
                HostTensor::with_row_stride("tokens", &self.data, [groups, each, self.length, self.dim], self.stride)
                    .unwrap(),
            ),
        };
        match &self.mask {
            Some(mask) => tokens.unwrap().with_mask(mask).unwrap(),
            None => tokens.unwrap(),
        }
    }

    fn spans(&self) -> Vec<(usize, usize)> {
        match &self.offsets {
            Some(offsets) => offsets.windows(2).map(|pair| (pair[0], pair[1])).collect(),
            None => (0..self.groups.0 * self.groups.1).map(|i| (i * self.length, (i + 1) * self.length)).collect(),
        }
    }
}

struct Case<T> {
    queries: Side<T>,
    docs: Side<T>,
    layout: Layout,
    list: Vec<(usize, usize)>,
    normalize: bool,
}

struct Found<T> {
    scores: Vec<f32>,
    argmax: Vec<i32>,
    d_scores: Vec<f32>,
    d_queries: Vec<T>,
    d_docs: Vec<T>,
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    nq: usize,
    nd: usize,
    lq: usize,
    ld: usize,
    dim: usize,
    pad: usize,
}

impl<T: Element> Case<T> {
    /// `whole` makes tokens of small whole numbers, whose similarities are exact and often equal.
    fn new(seed: u64, layout: Layout, s: Sizes, masked: bool, whole: bool, normalize: bool) -> Self {
        let mut noise = Noise::new(seed);
        let packed = matches!(layout, Layout::PackedCross | Layout::PackedList);
        let mut side = |groups: (usize, usize), length: usize| {
            let stride = s.dim + s.pad;
            let mut offsets = vec![0];
            for _ in 0..groups.0 * groups.1 {
                offsets.push(offsets[offsets.len() - 1] + noise.below(length + 1));
            }
            // Packed rows past the last offset belong to no text.
            let rows = if packed { offsets[offsets.len() - 1] + s.pad } else { groups.0 * groups.1 * length };
            let mut data: Vec<T> = noise.take(rows * stride, 1.0);
            if whole {
                data.iter_mut().for_each(|x| *x = T::from_f32((x.to_f32() * 2.4).round()));
            }
            let mask = masked.then(|| (0..rows).map(|_| noise.next() < 0.3).collect());
            Side { data, groups, length, offsets: packed.then_some(offsets), mask, dim: s.dim, stride }
        };
        let (nq, groups) = match layout {
            Layout::Candidates => (s.nq, (s.nq, s.nd)),
            Layout::Pairs => (s.nq, (s.nq, 1)),
            _ => (s.nq, (s.nd, 1)),
        };
        let (queries, docs) = (side((nq, 1), s.lq), side(groups, s.ld));
        let list = (0..s.nq + s.nd).map(|_| (noise.below(s.nq), noise.below(s.nd))).collect();
        Self { queries, docs, layout, list, normalize }
    }

    fn problem(&self) -> Problem<'_, T> {
        let pairing = match self.layout {
            Layout::Cross | Layout::PackedCross => Pairing::Cross,
            Layout::Candidates => Pairing::Candidates { per_query: self.docs.groups.1 },
            Layout::Pairs => Pairing::Pairs,
            Layout::PackedList => Pairing::List(&self.list),
        };
        Problem { queries: self.queries.tokens(), docs: self.docs.tokens(), pairing, normalize: self.normalize }
    }

    fn items(&self) -> Vec<(usize, usize)> {
        let (nq, nd) = (self.queries.spans().len(), self.docs.spans().len());
        match self.layout {
            Layout::Cross | Layout::PackedCross => (0..nq * nd).map(|i| (i / nd, i % nd)).collect(),
            Layout::Candidates => (0..nd).map(|i| (i / self.docs.groups.1, i)).collect(),
            Layout::Pairs => (0..nq).map(|i| (i, i)).collect(),
            Layout::PackedList => self.list.clone(),
        }
    }

    fn run(&self) -> Found<T> {
        let problem = self.problem();
        let mut scores = vec![f32::NAN; problem.scores().unwrap()];
        let mut argmax = vec![7; problem.argmaxes().unwrap()];
        maxsim::forward(&problem, &mut scores, None).unwrap();
        let alone: Vec<u32> = scores.iter().map(|s| s.to_bits()).collect();
        maxsim::forward(&problem, &mut scores, Some(&mut argmax)).unwrap();
        assert_eq!(alone, scores.iter().map(|s| s.to_bits()).collect::<Vec<_>>(), "argmax changes the scores");

        let d_scores = Noise::new(99).take(scores.len(), 1.0);
        let nan = T::from_f32(f32::NAN);
        let mut gradients = [vec![nan; self.queries.data.len()], vec![nan; self.docs.data.len()]];
        let [dq, dd] = &mut gradients;
        let matrix =
            |data, side: &Side<T>| HostMatrixMut::with_row_stride("g", data, side.rows(), side.dim, side.stride);
        let (mut dq, mut dd) = (matrix(dq, &self.queries).unwrap(), matrix(dd, &self.docs).unwrap());
        maxsim::backward(&problem, &d_scores, &argmax, Some(&mut dq), Some(&mut dd)).unwrap();
        let [dq, dd] = gradients;
        let (d_queries, d_docs) =
            (dense(&dq, self.queries.dim, self.queries.stride), dense(&dd, self.docs.dim, self.docs.stride));
        Found { scores, argmax, d_scores, d_queries, d_docs }
    }

    fn with_naive<R>(&self, f: impl FnOnce(&MaxsimSide<'_>, &MaxsimSide<'_>) -> R) -> R {
        let tokens = |side: &Side<T>| wide(&dense(&side.data, side.dim, side.stride));
        let (q, d) = (tokens(&self.queries), tokens(&self.docs));
        let (qs, ds) = (self.queries.spans(), self.docs.spans());
        f(
            &MaxsimSide { tokens: &q, spans: &qs, mask: self.queries.mask.as_deref() },
            &MaxsimSide { tokens: &d, spans: &ds, mask: self.docs.mask.as_deref() },
        )
    }

    fn check(&self, exact_argmax: bool) {
        let name = format!("{} {:?} normalize {}", T::NAME, self.layout, self.normalize);
        let (dim, items) = (self.queries.dim, self.items());
        let found = self.run();
        self.with_naive(|q, d| {
            let (scores, argmax) = naive::maxsim(q, d, dim, &items, self.normalize).unwrap();
            assert_eq!(found.argmax.len(), argmax.len(), "{name}");
            if exact_argmax {
                assert_eq!(found.argmax, argmax, "{name}");
                assert!(found.scores.iter().zip(&scores).all(|(f, e)| f64::from(*f) == *e), "{name}");
            }
            assert!(found.argmax.iter().zip(&argmax).all(|(f, e)| (*f == -1) == (*e == -1)), "{name}");
            let worst = floored_error(&found.scores, &scores, 1.0);
            assert!(worst < 2e-6, "scores {worst:e} {name}");
            let (dq, dd) =
                naive::maxsim_backward(q, d, dim, &items, self.normalize, &wide(&found.d_scores), &found.argmax)
                    .unwrap();
            // Normalisation divides by the norm what is left of gradients after their part along the token, perhaps nothing.
            let floor = |side: &MaxsimSide<'_>| {
                let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().max(1e-12).sqrt();
                let largest = side.tokens.chunks(dim).map(|row| 1.0 / norm(row)).fold(1e-3, f64::max);
                if self.normalize { largest } else { 1e-3 }
            };
            let sides = [("d_queries", &found.d_queries, &dq, floor(q)), ("d_docs", &found.d_docs, &dd, floor(d))];
            for (what, found, exact, floor) in sides {
                let worst = floored_error(found, exact, floor);
                assert!(worst < 3e-6 + rounding::<T>(), "{what} {worst:e} {name}");
                // Where nothing arrives the gradient is exactly 0.
                assert!(
                    self.normalize || found.iter().zip(exact).all(|(f, e)| *e != 0.0 || f.to_f32() == 0.0),
                    "{what} {name}"
                );
            }
            for (gradient, side) in [(&found.d_queries, q), (&found.d_docs, d)] {
                for (row, values) in gradient.chunks(dim).enumerate() {
                    let outside = !side.spans.iter().any(|&(start, end)| (start..end).contains(&row));
                    let masked = side.mask.is_some_and(|mask| !mask[row]);
                    assert!(!(outside || masked) || values.iter().all(|x| x.to_f32() == 0.0), "{name}");
                }
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_naive_f64(
        seed in any::<u64>(),
        layout in proptest::sample::select(LAYOUTS.to_vec()),
        nq in 1usize..5,
        nd in 1usize..5,
        lq in 0usize..9,
        ld in 0usize..20,
        dim in 1usize..40,
        pad in 0usize..3,
        masked in any::<bool>(),
        normalize in any::<bool>(),
    ) {
        let sizes = Sizes { nq, nd, lq, ld, dim, pad };
        Case::<f32>::new(seed, layout, sizes, masked, false, normalize).check(false);
        Case::<f16>::new(seed, layout, sizes, masked, false, normalize).check(false);
        Case::<bf16>::new(seed, layout, sizes, masked, false, normalize).check(false);
    }

    #[test]
    fn ties_go_to_the_lowest_index(
        seed in any::<u64>(),
        layout in proptest::sample::select(LAYOUTS.to_vec()),
        ld in 1usize..40,
        dim in 1usize..5,
        masked in any::<bool>(),
    ) {
        let sizes = Sizes { nq: 3, nd: 3, lq: 4, ld, dim, pad: 1 };
        Case::<f32>::new(seed, layout, sizes, masked, true, false).check(true);
        Case::<bf16>::new(seed, layout, sizes, masked, true, false).check(true);
    }

    #[test]
    fn naive_gradients_are_central_differences(seed in any::<u64>(), normalize in any::<bool>()) {
        let dim = 3;
        let mut noise = Noise::new(seed);
        let mut take = |count| wide(&noise.take::<f32>(count, 1.0));
        let (mut q, mut d, d_scores) = (take(4 * dim), take(5 * dim), take(4));
        let (spans_q, spans_d) = ([(0, 2), (2, 4)], [(0, 3), (3, 5)]);
        let items = [(0, 0), (0, 1), (1, 0), (1, 1)];
        let value = |q: &[f64], d: &[f64]| {
            let (q, d) = (MaxsimSide { tokens: q, spans: &spans_q, mask: None }, MaxsimSide { tokens: d, spans: &spans_d, mask: None });
            let (scores, argmax) = naive::maxsim(&q, &d, dim, &items, normalize).unwrap();
            let gradients = naive::maxsim_backward(&q, &d, dim, &items, normalize, &d_scores, &argmax).unwrap();
            (scores.iter().zip(&d_scores).map(|(s, d)| s * d).sum::<f64>(), argmax, gradients)
        };
        let (_, argmax, (dq, dd)) = value(&q, &d);
        let step = 1e-6;
        for (i, gradient) in dq.into_iter().chain(dd).enumerate() {
            let mut at = |by: f64| {
                let x = if i < q.len() { &mut q[i] } else { &mut d[i - 12] };
                let kept = *x;
                *x += by;
                let result = value(&q, &d);
                if i < q.len() { q[i] = kept } else { d[i - 12] = kept }
                result
            };
            let (low, high) = (at(-step), at(step));
            // A difference across a change of the chosen token says nothing.
            if low.1 == argmax && high.1 == argmax {
                prop_assert!(((high.0 - low.0) / (2.0 * step) - gradient).abs() < 1e-5 * (1.0 + gradient.abs()));
            }
        }
    }
}

#[test]
fn sizes_past_one_block() {
    // Documents past 1024 tokens, queries past 256, more queries than share a task, more documents than are in one.
    for (sizes, layout) in [
        (Sizes { nq: 1, nd: 2, lq: 300, ld: 1100, dim: 5, pad: 0 }, Layout::Cross),
        (Sizes { nq: 2, nd: 1, lq: 1, ld: 2100, dim: 3, pad: 0 }, Layout::Candidates),
        (Sizes { nq: 40, nd: 37, lq: 13, ld: 9, dim: 8, pad: 0 }, Layout::Cross),
        (Sizes { nq: 40, nd: 37, lq: 13, ld: 9, dim: 8, pad: 2 }, Layout::PackedCross),
        (Sizes { nq: 3, nd: 40, lq: 5, ld: 6, dim: 7, pad: 1 }, Layout::Candidates),
    ] {
        Case::<f32>::new(1, layout, sizes, false, false, false).check(false);
        Case::<f32>::new(2, layout, sizes, true, true, false).check(true);
    }
    for dim in [1, 127, 1024] {
        let sizes = Sizes { nq: 2, nd: 3, lq: 6, ld: 7, dim, pad: 0 };
        Case::<bf16>::new(3, Layout::Cross, sizes, true, false, true).check(false);
    }
}

#[test]
fn equal_tokens_tie_wherever_they_are() {
    // Copies of a document's tokens behind it never win, whatever the tile that a copy falls into.
    for (ld, lq, dim) in [(3, 1, 128), (9, 2, 67), (150, 32, 128), (515, 1, 96), (700, 7, 130), (1100, 3, 33)] {
        let mut noise = Noise::new(ld as u64);
        let q: Vec<f32> = noise.take(lq * dim, 1.0);
        let once: Vec<f32> = noise.take(ld * dim, 1.0);
        let twice = [&once[..], &once[..]].concat();
        let tokens = |data, length| Tokens::padded(HostTensor::new("t", data, [1, length, dim]).unwrap()).unwrap();
        let problem = |docs| Problem { queries: tokens(&q, lq), docs, pairing: Pairing::Cross, normalize: false };
        let (mut score, mut argmax) = ([0f32; 1], vec![0; lq]);
        maxsim::forward(&problem(tokens(&twice, 2 * ld)), &mut score, Some(&mut argmax)).unwrap();
        assert!(argmax.iter().all(|&j| (j as usize) < ld), "{ld} {lq} {dim}");
    }
}

#[test]
fn same_bits_on_every_run_and_number_of_threads() {
    for layout in LAYOUTS {
        let sizes = Sizes { nq: 20, nd: 19, lq: 6, ld: 30, dim: 16, pad: 1 };
        let case = Case::<f32>::new(5, layout, sizes, true, false, true);
        let run = |threads| {
            let found = on_threads(threads, || case.run());
            (found.scores, found.argmax, found.d_queries, found.d_docs)
        };
        assert!(run(1) == run(2), "{layout:?}");
    }
}

#[test]
fn empty_and_masked_texts_score_exactly_zero() {
    let data = [f32::NAN; 8];
    let three = [1f32, 2.0, 3.0, 4.0, f32::INFINITY, 6.0];
    let queries = Tokens::packed(HostMatrix::new("q", &three, 3, 2).unwrap(), &[0, 0, 2, 3]).unwrap();
    let queries = queries.with_mask(&[true, true, false]).unwrap();
    // An empty document, and one whose tokens are all masked.
    let docs = Tokens::packed(HostMatrix::new("d", &data, 4, 2).unwrap(), &[0, 0, 4]).unwrap();
    let docs = docs.with_mask(&[false; 4]).unwrap();
    for normalize in [false, true] {
        let problem = Problem { queries, docs, pairing: Pairing::Cross, normalize };
        let (mut scores, mut argmax) = ([7f32; 6], [7; 6]);
        maxsim::forward(&problem, &mut scores, Some(&mut argmax)).unwrap();
        assert!(scores == [0.0; 6] && argmax == [-1; 6]);
        let (mut dq, mut dd) = ([7f32; 6], [7f32; 8]);
        let mut matrices =
            (HostMatrixMut::new("dq", &mut dq, 3, 2).unwrap(), HostMatrixMut::new("dd", &mut dd, 4, 2).unwrap());
        maxsim::backward(&problem, &[1.0; 6], &argmax, Some(&mut matrices.0), Some(&mut matrices.1)).unwrap();
        assert!(dq == [0.0; 6] && dd == [0.0; 8]);
    }
    // A length of zero.
    let none = Tokens::padded(HostTensor::new("d", &[0f32; 0], [2, 0, 2]).unwrap()).unwrap();
    let mut scores = [7f32; 6];
    maxsim::forward(&Problem { queries, docs: none, pairing: Pairing::Cross, normalize: false }, &mut scores, None)
        .unwrap();
    assert_eq!(scores, [0.0; 6]);
}

#[test]
fn nan_and_infinity_count_only_where_tokens_do() {
    let sizes = Sizes { nq: 2, nd: 3, lq: 4, ld: 5, dim: 8, pad: 0 };
    for normalize in [false, true] {
        for value in [f32::NAN, f32::INFINITY] {
            for into_docs in [false, true] {
                let mut case = Case::<f32>::new(6, Layout::Cross, sizes, false, false, normalize);
                let clean = case.run();
                let side = if into_docs { &mut case.docs } else { &mut case.queries };
                // Token 6: text 1 of either side. NaN itself, or +∞ and -∞ in one token, whose sum is NaN.
                side.data[6 * 8] = value;
                side.data[6 * 8 + 1] = -value;
                let broken = case.run();
                for (slot, score) in broken.scores.iter().enumerate() {
                    let touched = if into_docs { slot % 3 == 1 } else { slot / 3 == 1 };
                    assert_eq!(!score.is_finite(), touched, "{value} {score} slot {slot} docs {into_docs} {normalize}");
                    assert!(touched || *score == clean.scores[slot]);
                }
                // Masked, it is as if it were not there.
                let side = if into_docs { &mut case.docs } else { &mut case.queries };
                side.mask = Some((0..side.data.len() / 8).map(|row| row != 6).collect());
                let masked = case.run();
                assert!(masked.scores.iter().all(|score| score.is_finite()));
                assert!(masked.d_queries.iter().chain(&masked.d_docs).all(|x| x.is_finite()));
                case.check(false);
            }
        }
    }
}

#[test]
fn a_nan_similarity_is_the_choice_and_the_first_of_them() {
    let queries = Tokens::padded(HostTensor::new("q", &[1f32], [1, 1, 1]).unwrap()).unwrap();
    let docs = [1.0, f32::NAN, 9.0, f32::NAN];
    let docs = Tokens::padded(HostTensor::new("d", &docs, [1, 4, 1]).unwrap()).unwrap();
    let (mut score, mut argmax) = ([0f32], [0]);
    let problem = Problem { queries, docs, pairing: Pairing::Pairs, normalize: false };
    maxsim::forward(&problem, &mut score, Some(&mut argmax)).unwrap();
    assert!(score[0].is_nan() && argmax == [1]);
    // Similarities that are all -∞ still choose the first.
    let docs = Tokens::padded(HostTensor::new("d", &[f32::NEG_INFINITY; 3], [1, 3, 1]).unwrap()).unwrap();
    maxsim::forward(&Problem { docs, ..problem }, &mut score, Some(&mut argmax)).unwrap();
    assert!(score == [f32::NEG_INFINITY] && argmax == [0]);
}

#[test]
fn normalisation_holds_tiny_norms_at_its_floor() {
    let tiny = [1e-8f32, 0.0, 0.0, 0.0];
    let queries = Tokens::padded(HostTensor::new("q", &tiny, [1, 2, 2]).unwrap()).unwrap();
    let docs = Tokens::padded(HostTensor::new("d", &[3f32, 4.0], [1, 1, 2]).unwrap()).unwrap();
    let problem = Problem { queries, docs, pairing: Pairing::Pairs, normalize: true };
    let (mut score, mut argmax) = ([0f32], [0; 2]);
    maxsim::forward(&problem, &mut score, Some(&mut argmax)).unwrap();
    assert!((score[0] - 1e-2 * 0.6).abs() < 1e-8, "{}", score[0]);
    let mut dq = [0f32; 4];
    let mut matrix = HostMatrixMut::new("dq", &mut dq, 2, 2).unwrap();
    maxsim::backward(&problem, &[1.0], &argmax, Some(&mut matrix), None).unwrap();
    assert!(error(&dq, &[6e5, 8e5, 6e5, 8e5]) < 1e-6);
}
