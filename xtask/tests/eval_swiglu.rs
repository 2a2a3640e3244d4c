//! `xtask eval swiglu` as a program.

mod eval_program;

use eval_program::f32s;
use safetensors::tensor::Dtype;
use std::collections::HashMap;

type Tensor = (&'static str, Vec<usize>, Vec<f32>);

/// One row x = (1, 2), one column each of gate (1, 0) and up (0, 1): g = 1, u = 2.
fn tensors() -> Vec<Tensor> {
    vec![("x", vec![1, 2], vec![1.0, 2.0]), ("w", vec![2, 2], vec![1.0, 0.0, 0.0, 1.0]), ("dz", vec![1, 1], vec![3.0])]
}

/// The outputs' values, or what went to stderr.
fn eval(tensors: &[Tensor], arguments: &[&str]) -> Result<HashMap<String, Vec<f32>>, String> {
    let tensors: Vec<_> =
        tensors.iter().map(|(name, shape, values)| (*name, Dtype::F32, shape.clone(), f32s(values))).collect();
    let found = eval_program::eval("swiglu", &tensors, &[], arguments)?;
    Ok(found.into_iter().map(|(name, (_, values))| (name, values)).collect())
}

#[test]
fn gradients_follow_the_formula() {
    let found = eval(&tensors(), &["--gate", "relu"]).unwrap();
    assert_eq!(found["z"], [2.0]);
    // dg = dz u = 6, du = dz g = 3; dx = dg W_gate + du W_up; dw = x^T [dg, du].
    assert_eq!(found["dx"], [6.0, 3.0]);
    assert_eq!(found["dw"], [6.0, 3.0, 12.0, 6.0]);
    assert!(!found.contains_key("d_bias"));
    let silu = eval(&tensors(), &[]).unwrap();
    assert!((silu["z"][0] - 2.0 * 0.731_058_6).abs() < 1e-6);
}

#[test]
fn bias_and_layouts_are_understood() {
    let mut all = tensors();
    all.push(("bias", vec![2], vec![1.0, -1.0]));
    let found = eval(&all, &["--gate", "relu", "--layout", "linear", "--mode", "recompute"]).unwrap();
    assert_eq!((&found["z"][..], &found["d_bias"][..]), (&[2.0][..], &[3.0, 6.0][..]));
    let second = eval(&tensors(), &["--gate", "relu", "--layout", "packed-gate-second"]).unwrap();
    assert_eq!(second["z"], [2.0]);
    let mut apart = tensors();
    apart[1] = ("w_gate", vec![2, 1], vec![1.0, 0.0]);
    apart.push(("w_up", vec![2, 1], vec![0.0, 1.0]));
    let found = eval(&apart, &["--gate", "relu", "--layout", "separate"]).unwrap();
    assert_eq!((&found["dw_gate"][..], &found["dw_up"][..]), (&[6.0, 12.0][..], &[3.0, 6.0][..]));
}

#[test]
fn mistakes_are_named() {
    let mut wrong = tensors();
    wrong[1].1 = vec![1, 4];
    let message = eval(&wrong, &[]).unwrap_err();
    assert!(message.contains("tensor `w`") && message.contains("[1, 4]") && message.contains("[2, 2]"), "{message}");
    let message = eval(&tensors()[..2], &[]).unwrap_err();
    assert!(message.contains("tensor `dz`") && message.contains("x, w (or w_gate, w_up), dz"), "{message}");
    let message = eval(&tensors(), &["--route", "fused"]).unwrap_err();
    assert!(message.contains("--route") && message.contains("cuda"), "{message}");
    assert!(eval(&tensors(), &["--layout", "sideways"]).unwrap_err().contains("packed"));
}
