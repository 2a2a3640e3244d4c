//! What needs no GPU: problems, a missing GPU, masked scores by hand, and the mistakes that the CPU side names.

use maxsim_kernel::cpu::{Inputs, Plan};
use maxsim_kernel::kernel_core::{self, half::bf16};
use maxsim_kernel::{DType, Error, Gpu, Pairing, Problem, Spans};
use reference_cpu::{HostMatrix, HostMatrixMut};

/// Two queries of two tokens and three documents of two, d = 2.
const QUERIES: [f32; 8] = [1.0, 0.0, 0.0, 1.0, 2.0, 1.0, 9.0, 9.0];
const DOCS: [f32; 12] = [3.0, 4.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, -1.0, -2.0, 2.0];
const QUERY_MASK: [bool; 4] = [true, true, true, false];
const DOC_MASK: [bool; 6] = [true, false, false, false, true, true];

fn problem() -> Problem {
    Problem::cross(Spans::padded(2, 2), Spans::padded(3, 2), 2, DType::F32).with_masks(true, true)
}

fn inputs() -> Inputs<'static, f32> {
    Inputs {
        queries: HostMatrix::new("queries", &QUERIES, 4, 2).unwrap(),
        docs: HostMatrix::new("docs", &DOCS, 6, 2).unwrap(),
        query_mask: Some(&QUERY_MASK),
        doc_mask: Some(&DOC_MASK),
    }
}

#[test]
fn scores_choices_and_gradients_by_hand() {
    let plan = Plan::new(problem()).unwrap();
    let (mut scores, mut argmax) = ([f32::NAN; 6], [-7; 12]);
    plan.forward(&inputs(), &mut scores, Some(&mut argmax)).unwrap();
    assert_eq!(scores, [7.0, 0.0, 3.0, 10.0, 0.0, 1.0]);
    assert_eq!(argmax, [0, 0, -1, -1, 0, 1, 0, -1, -1, -1, 0, -1]);
    let (mut d_queries, mut d_docs) = ([f32::NAN; 8], [f32::NAN; 12]);
    let d_scores = [1.0, 5.0, 2.0, 3.0, 7.0, -1.0];
    plan.backward(
        &inputs(),
        &d_scores,
        &argmax,
        Some(&mut HostMatrixMut::new("d_queries", &mut d_queries, 4, 2).unwrap()),
        Some(&mut HostMatrixMut::new("d_docs", &mut d_docs, 6, 2).unwrap()),
    )
    .unwrap();
    assert_eq!(d_queries, [5.0, 2.0, -1.0, 8.0, 8.0, 13.0, 0.0, 0.0]);
    assert_eq!(d_docs, [7.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 2.0]);
}

/// No query token that counts can choose it: what the document's token holds does not reach its gradient, through its norm either.
#[test]
fn a_token_that_none_chose_has_no_gradient() {
    for normalize in [false, true] {
        let (queries, docs) = ([1.0, 2.0], [f32::NAN, 1.0]);
        let problem = Problem::pairs(Spans::padded(1, 1), Spans::padded(1, 1), 2, DType::F32);
        let plan = Plan::new(problem.with_normalize(normalize).with_masks(true, false)).unwrap();
        let inputs = Inputs {
            queries: HostMatrix::new("queries", &queries, 1, 2).unwrap(),
            docs: HostMatrix::new("docs", &docs, 1, 2).unwrap(),
            query_mask: Some(&[false]),
            doc_mask: None,
        };
        let (mut scores, mut argmax, mut d_docs) = ([f32::NAN], [-7], [f32::NAN; 2]);
        plan.forward(&inputs, &mut scores, Some(&mut argmax)).unwrap();
        assert_eq!((scores, argmax), ([0.0], [-1]));
        let mut view = HostMatrixMut::new("d_docs", &mut d_docs, 1, 2).unwrap();
        plan.backward(&inputs, &[3.0], &argmax, None, Some(&mut view)).unwrap();
        assert_eq!(d_docs, [0.0; 2]);
    }
}

#[test]
fn a_missing_gpu_is_an_error_value() {
    // No machine has this ordinal, with a driver or without.
    let error = Error::from(Gpu::new(usize::MAX).unwrap_err());
    let Error::Gpu(inner) = &error else { panic!("{error:?}") };
    use kernel_core::Error::{MissingLibrary, NoDevice, NoDriver};
    assert!(matches!(inner, NoDevice { .. } | NoDriver { .. } | MissingLibrary { .. }), "{error}");
}

#[test]
fn problems_say_what_they_cost() {
    let problem = problem();
    assert_eq!((problem.scores(), problem.argmaxes()), (6, 12));
    assert_eq!(problem.forward_flop(), 2.0 * 4.0 * 6.0 * 2.0);
    let list = Problem::list(Spans::of_lengths([3, 5]), Spans::padded(2, 4), vec![(1, 0), (0, 1)], 8, DType::Bf16);
    assert_eq!((list.scores(), list.argmaxes(), list.pair(0)), (2, 8, (1, 0)));
    let impossible = Problem { pairing: Pairing::Candidates { per_query: 2 }, ..problem };
    let message = Plan::new(impossible).unwrap_err().to_string();
    assert!(message.contains("3 documents") && message.contains("2 queries"), "{message}");
}

/// The message of a call whose inputs were changed; nothing may have been written, by either call.
fn refused(change: impl FnOnce(&mut Inputs<'static, f32>)) -> String {
    let plan = Plan::new(problem()).unwrap();
    let mut inputs = inputs();
    change(&mut inputs);
    let (mut scores, mut argmax) = ([7.0; 6], [-7; 12]);
    let message = plan.forward(&inputs, &mut scores, Some(&mut argmax)).unwrap_err().to_string();
    assert_eq!((scores, argmax), ([7.0; 6], [-7; 12]));
    let mut d_docs = [7.0; 12];
    let mut view = HostMatrixMut::new("d_docs", &mut d_docs, 6, 2).unwrap();
    let backward = plan.backward(&inputs, &[1.0; 6], &[0; 12], None, Some(&mut view)).unwrap_err().to_string();
    assert_eq!((message.as_str(), d_docs), (backward.as_str(), [7.0; 12]));
    message
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let message = refused(|inputs| inputs.queries = HostMatrix::new("queries", &DOCS, 6, 2).unwrap());
    assert!(message.contains("queries") && message.contains("[6, 2]") && message.contains("[4, 2]"), "{message}");
    let message = refused(|inputs| inputs.docs = HostMatrix::new("docs", &DOCS, 4, 3).unwrap());
    assert!(message.contains("docs") && message.contains("[4, 3]"), "{message}");
    let message = refused(|inputs| inputs.query_mask = None);
    assert!(message.contains("queries") && message.contains("no mask"), "{message}");
    let message = refused(|inputs| inputs.doc_mask = Some(&QUERY_MASK));
    assert!(message.contains("mask"), "{message}");
}

#[test]
fn outputs_that_do_not_fit_are_named() {
    let plan = Plan::new(problem()).unwrap();
    let (mut scores, mut argmax) = ([7.0; 6], [-7; 12]);
    let few = plan.forward(&inputs(), &mut scores[..5], Some(&mut argmax)).unwrap_err();
    assert!(matches!(few, Error::Cpu(_)), "{few}");
    let few = plan.forward(&inputs(), &mut scores, Some(&mut argmax[..11])).unwrap_err();
    assert!(matches!(few, Error::Cpu(_)), "{few}");
    assert_eq!((scores, argmax), ([7.0; 6], [-7; 12]));
    let mut d_docs = [7.0; 12];
    let mut view = HostMatrixMut::new("d_docs", &mut d_docs, 6, 2).unwrap();
    let beyond = plan.backward(&inputs(), &[1.0; 6], &[2; 12], None, Some(&mut view)).unwrap_err();
    assert!(matches!(beyond, Error::Cpu(_)), "{beyond}");
    assert_eq!(d_docs, [7.0; 12]);
    let narrow: [bf16; 2] = [bf16::ONE; 2];
    let error = Error::from(HostMatrix::new("docs", &narrow, 2, 2).unwrap_err());
    assert!(error.to_string().contains("docs"), "{error}");
}
