//! `xtask eval` as a program.

mod eval_program;

use eval_program::{Outputs, Tensor, f32s, run};
use safetensors::tensor::Dtype;
use std::fs;

/// Two images and two texts along the axes: logits of 1 on the diagonal and 0 beside it.
fn tensors() -> Vec<Tensor> {
    vec![
        ("img", Dtype::F32, vec![2, 2], f32s(&[1.0, 0.0, 0.0, 1.0])),
        ("txt", Dtype::F32, vec![2, 2], f32s(&[1.0, 0.0, 0.0, 1.0])),
        ("log_temp", Dtype::F32, vec![], f32s(&[0.0])),
        ("bias", Dtype::F32, vec![1], f32s(&[0.0])),
    ]
}

fn with(replaced: Tensor) -> Vec<Tensor> {
    tensors().into_iter().map(|tensor| if tensor.0 == replaced.0 { replaced.clone() } else { tensor }).collect()
}

/// Everything that went to stderr of a run that must fail.
fn error(tensors: &[Tensor], metadata: &[(&str, &str)], arguments: &[&str]) -> String {
    eval_program::eval("siglip", tensors, metadata, arguments).unwrap_err()
}

/// The outputs of a run that must succeed.
fn results(tensors: &[Tensor], metadata: &[(&str, &str)], arguments: &[&str]) -> Outputs {
    eval_program::eval("siglip", tensors, metadata, arguments).unwrap()
}

fn close(found: f32, expected: f64) -> bool {
    (f64::from(found) - expected).abs() < 1e-6
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

#[test]
fn computes_loss_and_gradients_by_hand() {
    let out = results(&tensors(), &[], &[]);
    let loss = (1.0 + (-1.0f64).exp()).ln() + 2.0f64.ln();
    assert_eq!(out["loss"].0, Vec::<usize>::new());
    assert!(close(out["loss"].1[0], loss), "{}", out["loss"].1[0]);
    // d_img row 0: -sigmoid(-1)/2 towards its own text, sigmoid(0)/2 towards the other.
    let own = -sigmoid(-1.0) / 2.0;
    assert_eq!(out["d_img"].0, [2, 2]);
    for name in ["d_img", "d_txt"] {
        let expected = [own, 0.25, 0.25, own];
        assert!(out[name].1.iter().zip(expected).all(|(a, b)| close(*a, b)), "{name}: {:?}", out[name].1);
    }
    assert!(close(out["d_log_temp"].1[0], 2.0 * own) && close(out["d_bias"].1[0], 2.0 * own + 0.5));
}

#[test]
fn metadata_counts_and_flags_count_more() {
    let plain = results(&tensors(), &[], &[]);
    let scaled = results(&tensors(), &[("upstream", "-2"), ("batch", "4")], &[]);
    assert!(close(scaled["loss"].1[0], f64::from(plain["loss"].1[0]) / 2.0));
    assert!(close(scaled["d_bias"].1[0], -f64::from(plain["d_bias"].1[0])));
    let flags = results(&tensors(), &[("upstream", "7"), ("offset", "1")], &["--upstream", "1", "--offset", "0"]);
    assert_eq!(flags, plain);
    let none = results(&tensors(), &[("positives", "none")], &[]);
    let expected = (1.0 + 1.0f64.exp()).ln() + 2.0f64.ln();
    assert!(close(none["loss"].1[0], expected), "{}", none["loss"].1[0]);
    let shifted = results(&tensors(), &[("offset", "5")], &[]);
    assert_eq!(shifted, none, "an offset past the last column leaves no positive");
}

#[test]
fn bf16_and_rectangles_work() {
    let bf16s =
        |values: &[f32]| values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors = tensors();
    tensors[0] = ("img", Dtype::BF16, vec![1, 2], bf16s(&[1.0, 0.0]));
    tensors[1] = ("txt", Dtype::BF16, vec![3, 2], bf16s(&[1.0, 0.0, 0.0, 1.0, 0.5, 0.5]));
    let out = results(&tensors, &[], &["--device", "cpu"]);
    assert_eq!((&out["d_img"].0, &out["d_txt"].0), (&vec![1, 2], &vec![3, 2]));
    let loss = (1.0 + (-1.0f64).exp()).ln() + 2.0f64.ln() + (1.0 + 0.5f64.exp()).ln();
    assert!(close(out["loss"].1[0], loss), "{}", out["loss"].1[0]);
}

#[test]
fn malformed_files_are_explained() {
    let says = |text: String, parts: &[&str]| {
        for part in parts {
            assert!(text.contains(part), "`{text}` lacks `{part}`");
        }
    };
    let missing: Vec<Tensor> = tensors().into_iter().filter(|tensor| tensor.0 != "txt").collect();
    says(error(&missing, &[], &[]), &["tensor `txt`", "found bias, img, log_temp"]);
    let wide = with(("txt", Dtype::F32, vec![2, 3], f32s(&[0.0; 6])));
    says(error(&wide, &[], &[]), &["tensor `txt`", "found shape [2, 3]", "expected [2, 2]"]);
    let flat = with(("img", Dtype::F32, vec![4], f32s(&[0.0; 4])));
    says(error(&flat, &[], &[]), &["tensor `img`", "found shape [4]", "expected [rows, D]"]);
    let empty = with(("img", Dtype::F32, vec![0, 2], Vec::new()));
    says(error(&empty, &[], &[]), &["tensor `img`", "found shape [0, 2]"]);
    let half = with(("txt", Dtype::F16, vec![2, 2], vec![0; 8]));
    says(error(&half, &[], &[]), &["tensor `txt`", "found dtype F16", "expected F32"]);
    let double = with(("img", Dtype::F64, vec![2, 2], vec![0; 32]));
    says(error(&double, &[], &[]), &["tensor `img`", "found dtype F64", "expected F32, F16 or BF16"]);
    let pair = with(("bias", Dtype::F32, vec![2], f32s(&[0.0; 2])));
    says(error(&pair, &[], &[]), &["tensor `bias`", "found shape [2]", "expected [] or [1]"]);
    let infinite = with(("log_temp", Dtype::F32, vec![], f32s(&[f32::INFINITY])));
    says(error(&infinite, &[], &[]), &["log_temp", "inf", "finite"]);
    says(error(&tensors(), &[("offset", "x")], &[]), &["metadata `offset`", "found `x`", "expected an integer"]);
    says(error(&tensors(), &[("positives", "none")], &["--offset", "1"]), &["offset (1)", "`none`"]);
    says(error(&tensors(), &[], &["--batch", "0"]), &["batch", "at least 1"]);
    says(error(&tensors(), &[], &["--device", "tpu"]), &["found `tpu`", "expected `cpu` or `cuda:N`"]);
    says(error(&tensors(), &[], &["--route", "chunked"]), &["--device cuda:N"]);
}

#[test]
fn something_else_is_no_safetensors_file() {
    let folder = tempfile::tempdir().unwrap();
    let missing = run("siglip", folder.path(), &[]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("in.safetensors"));
    fs::write(folder.path().join("in.safetensors"), b"PK").unwrap();
    let output = run("siglip", folder.path(), &[]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a safetensors file"));
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let text = error(&tensors(), &[], &["--device", "cuda:4000000000"]);
    assert!(text.contains("driver") || text.contains("4000000000"), "{text}");
}
