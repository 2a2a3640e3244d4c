//! `xtask eval maxsim` as a program.

mod eval_program;

use eval_program::{Outputs, Tensor, f32s};
use safetensors::tensor::Dtype;

fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Queries of two tokens and of one, documents of one token, of none and of two, all packed.
fn packed() -> Vec<Tensor> {
    vec![
        ("query_tokens", Dtype::F32, vec![3, 2], f32s(&[1.0, 0.0, 0.0, 1.0, 2.0, 1.0])),
        ("query_offsets", Dtype::I64, vec![3], i64s(&[0, 2, 3])),
        ("code_tokens", Dtype::F32, vec![3, 2], f32s(&[3.0, 4.0, 1.0, -1.0, -2.0, 2.0])),
        ("code_offsets", Dtype::I64, vec![4], i64s(&[0, 1, 1, 3])),
    ]
}

/// The same texts, padded and masked; what the padding holds must not matter.
fn padded() -> Vec<Tensor> {
    let nan = f32::NAN;
    vec![
        ("query_tokens", Dtype::F32, vec![2, 2, 2], f32s(&[1.0, 0.0, 0.0, 1.0, 2.0, 1.0, nan, nan])),
        ("query_mask", Dtype::BOOL, vec![2, 2], vec![1, 1, 1, 0]),
        (
            "doc_tokens",
            Dtype::F32,
            vec![3, 2, 2],
            f32s(&[3.0, 4.0, nan, nan, nan, nan, nan, nan, 1.0, -1.0, -2.0, 2.0]),
        ),
        ("doc_mask", Dtype::U8, vec![3, 2], vec![1, 0, 0, 0, 1, 1]),
    ]
}

fn eval(tensors: &[Tensor], arguments: &[&str]) -> Result<Outputs, String> {
    eval_program::eval("maxsim", tensors, &[], arguments)
}

#[test]
fn packed_and_padded_texts_score_alike() {
    // Query 0 chooses (3, 4) twice, then (1, -1) and (-2, 2); query 1 chooses (3, 4), then (1, -1) with 2 - 1.
    let expected = (vec![2, 3], vec![7.0, 0.0, 3.0, 10.0, 0.0, 1.0]);
    let found = eval(&packed(), &[]).unwrap();
    assert_eq!(found["scores"], expected);
    assert_eq!(found.len(), 1, "no gradients were asked for");
    assert_eq!(eval(&padded(), &[]).unwrap()["scores"], expected);
}

/// A mask or offsets under either name belong to the documents, whichever name their tokens have.
#[test]
fn either_name_will_do() {
    let expected = eval(&padded(), &[]).unwrap()["scores"].clone();
    for (tokens, mask) in [("code_tokens", "doc_mask"), ("doc_tokens", "code_mask"), ("code_tokens", "code_mask")] {
        let mut tensors = padded();
        (tensors[2].0, tensors[3].0) = (tokens, mask);
        assert_eq!(eval(&tensors, &[]).unwrap()["scores"], expected, "{tokens} with {mask}");
    }
    let mut tensors = packed();
    tensors[3].0 = "doc_offsets";
    assert_eq!(eval(&tensors, &[]).unwrap()["scores"], expected);
    let mut both = padded();
    both.push(("code_mask", both[3].1, both[3].2.clone(), both[3].3.clone()));
    let message = eval(&both, &[]).unwrap_err();
    assert!(message.contains("`doc_mask` and `code_mask`"), "{message}");
}

#[test]
fn gradients_follow_the_choices() {
    let d_scores = ("d_scores", Dtype::F32, vec![2, 3], f32s(&[1.0, 5.0, 2.0, 3.0, 7.0, -1.0]));
    let found = eval(&[packed(), vec![d_scores.clone()]].concat(), &[]).unwrap();
    assert_eq!(found["d_query_tokens"], (vec![3, 2], vec![5.0, 2.0, -1.0, 8.0, 8.0, 13.0]));
    assert_eq!(found["d_code_tokens"], (vec![3, 2], vec![7.0, 4.0, 0.0, -1.0, 0.0, 2.0]));
    let found = eval(&[padded(), vec![d_scores]].concat(), &[]).unwrap();
    assert_eq!(found["d_query_tokens"], (vec![2, 2, 2], vec![5.0, 2.0, -1.0, 8.0, 8.0, 13.0, 0.0, 0.0]));
    assert_eq!(found["d_doc_tokens"].1[..8], [7.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn lists_pairs_and_norms_are_understood() {
    let pairs = ("pairs", Dtype::I64, vec![2, 2], i64s(&[1, 2, 0, 0]));
    assert_eq!(eval(&[packed(), vec![pairs]].concat(), &[]).unwrap()["scores"], (vec![2], vec![1.0, 7.0]));
    let mut alike = packed();
    alike[3] = ("code_offsets", Dtype::I64, vec![3], i64s(&[0, 1, 3]));
    assert_eq!(eval(&alike, &["--pairs"]).unwrap()["scores"], (vec![2], vec![7.0, 1.0]));
    let score = eval(&alike, &["--pairs", "--normalize"]).unwrap()["scores"].1[0];
    assert!((score - 1.4).abs() < 1e-6, "{score}");
}

/// Another implementation's results may be in the file; a name spelt wrong is told as well.
#[test]
fn what_is_not_read_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let others = ("scores", Dtype::F32, vec![2, 3], f32s(&[0.0; 6]));
    eval_program::write(folder.path(), &[packed(), vec![others]].concat(), &[]);
    let output = eval_program::run("maxsim", folder.path(), &[]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    assert!(message.contains("tensor `scores`: not read") && message.contains("doc_mask"), "{message}");
}

#[test]
fn mistakes_are_named() {
    let mut wrong = packed();
    wrong[3] = ("code_offsets", Dtype::I64, vec![4], i64s(&[0, 1, 1, 2]));
    let message = eval(&wrong, &[]).unwrap_err();
    assert!(message.contains("`code_offsets`") && message.contains("expected 3"), "{message}");
    let message = eval(&packed()[1..], &[]).unwrap_err();
    assert!(message.contains("tensor `query_tokens`") && message.contains("doc_tokens"), "{message}");
    let message = eval(&packed(), &["--backward", "unified"]).unwrap_err();
    assert!(message.contains("--backward") && message.contains("cuda"), "{message}");
    let d_scores = ("d_scores", Dtype::F32, vec![3, 2], f32s(&[0.0; 6]));
    let message = eval(&[packed(), vec![d_scores]].concat(), &[]).unwrap_err();
    assert!(message.contains("`d_scores`") && message.contains("[2, 3]"), "{message}");
}
