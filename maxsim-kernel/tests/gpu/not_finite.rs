//! NaN and infinities: in a token that counts they reach the scores, choices and gradients that it touches, and no others; elsewhere nothing.

use maxsim_kernel::kernel_core::half::{bf16, f16};
use maxsim_kernel::{BackwardRoute, Options, Pairing, Route, Spans, argmax_offset};

use crate::case::{Case, Data, Number, Numbers, Results, from, to};
use crate::exact::ROUTES;
use crate::support::gpu;

/// Padded and packed, few and many query rows, each pairing.
fn cases() -> Vec<Case> {
    let case =
        |queries, docs, pairing, masked| Case { queries, docs, pairing, masks: (masked, masked), ..Case::default() };
    let lengths = || Spans::of_lengths([40, 0, 33, 70, 5, 170, 9]);
    vec![
        case(Spans::padded(6, 20), Spans::padded(9, 170), Pairing::Cross, true),
        case(Spans::padded(3, 20), Spans::padded(600, 70), Pairing::Cross, false),
        case(Spans::of_lengths([20, 5, 17, 40, 1]), lengths(), Pairing::Cross, true),
        case(Spans::padded(5, 32), Spans::padded(10, 60), Pairing::Candidates { per_query: 2 }, true),
        case(
            Spans::of_lengths([20, 5, 17, 40]),
            lengths(),
            Pairing::List(vec![(2, 3), (0, 0), (0, 5), (2, 2), (1, 1), (2, 3), (3, 6), (2, 0)].into()),
            true,
        ),
    ]
}

/// Whether two gradients of a case are alike: exactly, or within `bound` of the largest finite one.
fn assert_alike<T: Number>(what: &str, found: &[T], expected: &[T], bound: f32, case: &Case) {
    let finite = |x: &T| Some(from(*x).abs()).filter(|x| x.is_finite());
    let bound = bound * expected.iter().filter_map(finite).fold(0.0, f32::max);
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (found, expected) = (from(*found), from(*expected));
        let same = found == expected || (found.is_nan() && expected.is_nan());
        let near = found.is_finite() && expected.is_finite() && (found - expected).abs() <= bound;
        assert!(same || near, "{what}[{i}]: found {found}, expected {expected} in {case:?}");
    }
}

fn check<T: Number>(route: Route, value: f32) {
    let Some(gpu) = gpu() else { return };
    for (case, dim) in cases().into_iter().flat_map(|case| [64, 127, 136].map(|dim| (case.clone(), dim))) {
        for (normalize, backward) in
            [(false, BackwardRoute::LowMemory), (true, BackwardRoute::LowMemory), (false, BackwardRoute::Unified)]
        {
            let options = Options { route, backward };
            let numbers = if normalize { Numbers::Normal } else { Numbers::Integers };
            let case = Case { dim, normalize, options, numbers, ..case.clone() };
            let mut data = Data::<T>::new(&case);
            let kept = |mask: &Option<Vec<bool>>, from: usize| {
                mask.as_ref().map_or(from, |mask| (from..mask.len()).find(|&row| mask[row]).unwrap())
            };
            // A token of the third text, on either side.
            let query_row = kept(&data.query_mask, data.problem.queries.span(2).start);
            let doc_row = kept(&data.doc_mask, data.problem.docs.span(2).start + 5);
            data.queries[query_row * dim + 3] = to(value);
            data.docs[doc_row * dim + 9] = to(value);
            let expected = data.on_host();
            let found = data.on_gpu(&gpu, options, Some(&expected.argmax));
            // A normalised query token with an infinity has no direction: all its similarities are NaN, and any may be chosen.
            let undirected = Some(query_row).filter(|_| normalize && value.is_infinite());
            compare(&data, &case, &found, &expected, undirected);
        }
    }
}

fn compare<T: Number>(
    data: &Data<T>,
    case: &Case,
    found: &Results<T>,
    expected: &Results<T>,
    undirected: Option<usize>,
) {
    // Each score is a sum of a text's similarities, none of which is larger than its tokens.
    let bound = if case.normalize { 1e-5 } else { 0.0 };
    assert_alike("scores", &found.scores, &expected.scores, bound, case);
    assert!(expected.scores.iter().any(|score| !score.is_finite()), "{case:?}");
    let mut differ = 0;
    for (slot, score) in expected.scores.iter().enumerate() {
        let entries = argmax_offset(&data.problem, slot)..;
        let query = data.problem.queries.span(data.problem.pair(slot).0);
        let entries = entries.start..entries.start + query.len();
        let chosen = |argmax: &[i32]| {
            let mut chosen = argmax[entries.clone()].to_vec();
            if let Some(token) = undirected.filter(|row| query.contains(row)).map(|row| row - query.start) {
                assert_eq!(chosen[token] < 0, expected.argmax[entries.start + token] < 0, "{case:?}");
                chosen[token] = -1;
            }
            chosen
        };
        let (found, expected) = (chosen(&found.argmax), chosen(&expected.argmax));
        // Nearly equal similarities may be taken for one another, but for those that are not finite.
        if !case.normalize || !score.is_finite() {
            assert_eq!(found, expected, "choices of score {slot} in {case:?}");
        }
        differ += found.iter().zip(&expected).filter(|(a, b)| a != b).count();
    }
    assert!(differ * 200 <= found.argmax.len() + 200, "{differ} of {} choices differ in {case:?}", found.argmax.len());
    let unit = match <T as maxsim_kernel::kernel_core::Element>::DTYPE {
        maxsim_kernel::DType::F32 => 4e-6,
        maxsim_kernel::DType::F16 => 1e-3,
        maxsim_kernel::DType::Bf16 => 8e-3,
    };
    let bound = if case.normalize { unit } else { 0.0 };
    assert_alike("d_queries", &found.d_queries, &expected.d_queries, bound, case);
    assert_alike("d_docs", &found.d_docs, &expected.d_docs, bound, case);
}

fn every_value<T: Number>() {
    for route in ROUTES {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            check::<T>(route, value);
        }
    }
}

#[test]
fn f32_reaches_what_it_touches_and_no_other() {
    every_value::<f32>();
}

#[test]
fn f16_reaches_what_it_touches_and_no_other() {
    every_value::<f16>();
}

#[test]
fn bf16_reaches_what_it_touches_and_no_other() {
    every_value::<bf16>();
}
