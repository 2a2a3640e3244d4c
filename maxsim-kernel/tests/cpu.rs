//! The CPU's plan, by what this crate exports alone: its checks, and scores and gradients small enough to follow by hand.

use maxsim_kernel::cpu::{HostMatrix, HostMatrixMut, Inputs, Plan};
use maxsim_kernel::kernel_core::half::f16;
use maxsim_kernel::{DType, Problem, Spans};

/// One query of two tokens against two documents, of two tokens and of one.
fn problem(dtype: DType) -> Problem {
    Problem::cross(Spans::padded(1, 2), Spans::of_lengths([2, 1]), 2, dtype)
}

fn inputs<'a, T: maxsim_kernel::cpu::Element>(queries: &'a [T], docs: &'a [T]) -> Inputs<'a, T> {
    Inputs {
        queries: HostMatrix::new("queries", queries, queries.len() / 2, 2).unwrap(),
        docs: HostMatrix::new("docs", docs, docs.len() / 2, 2).unwrap(),
        query_mask: None,
        doc_mask: None,
    }
}

const QUERIES: [f32; 4] = [1.0, 0.0, 0.0, 2.0];
const DOCS: [f32; 6] = [3.0, 1.0, 0.5, 4.0, -1.0, 5.0];

#[test]
fn scores_choices_and_gradients_are_those_of_the_definition() {
    let plan = Plan::new(problem(DType::F32)).unwrap();
    let inputs = inputs(&QUERIES, &DOCS);
    let (mut scores, mut argmax) = ([f32::NAN; 2], [-7; 4]);
    plan.forward(&inputs, &mut scores, Some(&mut argmax)).unwrap();
    assert_eq!((scores, argmax), ([3.0 + 8.0, -1.0 + 10.0], [0, 1, 0, 0]));
    let (mut d_queries, mut d_docs) = ([f32::NAN; 4], [f32::NAN; 6]);
    plan.backward(
        &inputs,
        &[1.0, 10.0],
        &argmax,
        Some(&mut HostMatrixMut::new("d_queries", &mut d_queries, 2, 2).unwrap()),
        Some(&mut HostMatrixMut::new("d_docs", &mut d_docs, 3, 2).unwrap()),
    )
    .unwrap();
    assert_eq!(d_queries, [3.0 - 10.0, 1.0 + 50.0, 0.5 - 10.0, 4.0 + 50.0]);
    assert_eq!(d_docs, [1.0, 0.0, 0.0, 2.0, 10.0, 20.0]);
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let plan = Plan::new(problem(DType::F32)).unwrap();
    let halves = |values: &[f32]| values.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
    let (queries, docs) = (halves(&QUERIES), halves(&DOCS));
    let mut scores = [f32::NAN; 2];
    let error = plan.forward(&inputs(&queries, &docs), &mut scores, None).unwrap_err().to_string();
    assert!(error.contains("queries and docs") && error.contains("f16") && error.contains("f32"), "{error}");
    let halves = inputs(&queries, &docs);
    assert!(plan.backward(&halves, &[1.0; 2], &[0; 4], None, None).unwrap_err().to_string().contains("f16"));
    assert!(Plan::new(problem(DType::F16)).unwrap().forward(&halves, &mut scores, None).is_ok());

    let error = plan.forward(&inputs(&QUERIES, &DOCS[..4]), &mut scores, None).unwrap_err().to_string();
    assert!(error.contains("docs") && error.contains("[2, 2]") && error.contains("[3, 2]"), "{error}");
    let masked = Inputs { doc_mask: Some(&[true; 3]), ..inputs(&QUERIES, &DOCS) };
    assert!(plan.forward(&masked, &mut scores, None).unwrap_err().to_string().contains("no mask"));
    assert!(Plan::new(Problem { dim: 0, ..problem(DType::F32) }).unwrap_err().to_string().contains("dim"));
}
