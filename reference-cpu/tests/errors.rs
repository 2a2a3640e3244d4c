//! Every kind of bad argument gives an error of its own that names it, and leaves the outputs as they were.

use reference_cpu::maxsim::{self, Pairing, Problem, Tokens};
use reference_cpu::naive::{self, MaxsimSide, SiglipScalars};
use reference_cpu::siglip::{self, SiglipParams};
use reference_cpu::swiglu::{
    self, Gate, Gradients, Layer, Mlp, MlpGradients, Operand, OperandMut, Order, Weights, WeightsMut,
};
use reference_cpu::{Error, HostMatrix, HostMatrixMut, HostTensor};

/// Runs with outputs that must stay as they are; gives the error.
fn refused(
    img: (usize, usize),
    txt: (usize, usize),
    d_img: (usize, usize),
    d_txt: (usize, usize),
    params: SiglipParams,
) -> Error {
    let data = vec![1f32; 64];
    let (mut a, mut b) = (vec![7f32; 64], vec![7f32; 64]);
    let error = siglip::forward_backward(
        HostMatrix::new("img", &data, img.0, img.1).unwrap(),
        HostMatrix::new("txt", &data, txt.0, txt.1).unwrap(),
        &params,
        &mut HostMatrixMut::new("d_img", &mut a, d_img.0, d_img.1).unwrap(),
        &mut HostMatrixMut::new("d_txt", &mut b, d_txt.0, d_txt.1).unwrap(),
    )
    .unwrap_err();
    assert!(a.iter().chain(&b).all(|&x| x == 7.0), "outputs written in spite of {error}");
    error
}

#[test]
fn siglip_names_what_does_not_fit() {
    let good = SiglipParams::square(4, 0.0, 0.0);
    let shape = |what: &str, error: Error| {
        assert!(matches!(&error, Error::Shape { what: found, .. } if *found == what), "{error}");
        assert!(error.to_string().contains("expected [4, 3]"), "{error}");
    };
    shape("txt", refused((4, 3), (4, 2), (4, 3), (4, 2), good));
    shape("d_img", refused((4, 3), (5, 3), (3, 4), (5, 3), good));
    shape("d_txt", refused((5, 3), (4, 3), (5, 3), (5, 3), good));
    let zero = |what: &str, error: Error| assert!(matches!(error, Error::ZeroSize { what: found } if found == what));
    zero("rows of img", refused((0, 3), (4, 3), (0, 3), (4, 3), good));
    zero("rows of txt", refused((4, 3), (0, 3), (4, 3), (0, 3), good));
    zero("columns of img", refused((4, 0), (4, 0), (4, 0), (4, 0), good));
    zero("batch", refused((4, 3), (4, 3), (4, 3), (4, 3), SiglipParams { batch: 0, ..good }));
    for (what, params) in [
        ("log_temp", SiglipParams { log_temp: f32::NAN, ..good }),
        ("bias", SiglipParams { bias: f32::INFINITY, ..good }),
        ("upstream", SiglipParams { upstream: f32::NEG_INFINITY, ..good }),
        ("exp(log_temp)", SiglipParams { log_temp: 90.0, ..good }),
        ("upstream * exp(log_temp) / batch", SiglipParams { log_temp: 80.0, upstream: 1e10, ..good }),
    ] {
        let error = refused((4, 3), (4, 3), (4, 3), (4, 3), params);
        assert!(matches!(error, Error::NonFinite { what: found, .. } if found == what), "{error}");
    }
}

#[test]
fn views_check_lengths_and_strides() {
    let data = [0f32; 10];
    assert!(matches!(
        HostMatrix::with_row_stride("m", &data, 2, 4, 3),
        Err(Error::Stride { what: "m", found: 3, minimum: 4 })
    ));
    assert!(matches!(
        HostMatrix::with_row_stride("m", &data, 3, 3, 4),
        Err(Error::Length { what: "m", found: 10, needed: 11 })
    ));
    assert!(HostMatrix::with_row_stride("m", &data, 3, 2, 4).is_ok(), "the last row needs no padding");
    assert!(matches!(HostMatrix::new("m", &data, usize::MAX, 2), Err(Error::Length { .. })));
    assert!(matches!(reference_cpu::HostTensor::new("t", &data, [3, usize::MAX, 1]), Err(Error::Length { .. })));
    assert!(matches!(reference_cpu::HostTensor::new("t", &data, []), Err(Error::ZeroSize { .. })));
    let matrix = HostMatrix::with_row_stride("m", &data, 2, 3, 5).unwrap();
    assert_eq!((matrix.row(1).map(<[f32]>::len), matrix.row(2)), (Some(3), None));
}

#[test]
fn naive_versions_refuse_what_is_not_whole_rows() {
    let scalars = SiglipScalars::from(&SiglipParams::square(1, 0.0, 0.0));
    assert!(matches!(naive::siglip(&[0.0; 5], &[0.0; 4], 2, &scalars), Err(Error::Shape { what: "img", .. })));
    assert!(matches!(naive::siglip_loss(&[0.0; 4], &[0.0; 4], 0, &scalars), Err(Error::ZeroSize { .. })));
}

#[test]
fn swiglu_names_what_does_not_fit() {
    let data = [1f32; 64];
    let view = |what, rows, cols| HostMatrix::new(what, &data, rows, cols).unwrap();
    is_shape("w", Weights::packed(view("w", 3, 5), Order::GateFirst).unwrap_err());
    is_shape("w", Weights::linear(view("w", 5, 3), Order::GateFirst).unwrap_err());
    is_shape("up", Weights::separate(Operand::new(view("gate", 3, 4)), Operand::new(view("up", 4, 3))).unwrap_err());
    assert!(matches!(Weights::packed(view("w", 0, 4), Order::GateFirst), Err(Error::ZeroSize { .. })));
    assert!(matches!(Weights::packed(view("w", 4, 0), Order::GateFirst), Err(Error::ZeroSize { .. })));

    let weights = Weights::packed(view("w", 3, 8), Order::GateFirst).unwrap();
    let layer = Layer { weights, bias: None, gate: Gate::Silu };
    let forward = |x, layer: &Layer<'_, f32>, z: (usize, usize), saved: (usize, usize)| {
        let (mut a, mut b) = ([7f32; 64], [7f32; 64]);
        let mut z = HostMatrixMut::new("z", &mut a, z.0, z.1).unwrap();
        let mut saved = HostMatrixMut::new("saved", &mut b, saved.0, saved.1).unwrap();
        let error = swiglu::forward(x, layer, &mut z, Some(&mut saved)).unwrap_err();
        assert!(a.iter().chain(&b).all(|&v| v == 7.0));
        error
    };
    is_shape("x", forward(view("x", 2, 4), &layer, (2, 4), (2, 8)));
    is_shape("z", forward(view("x", 2, 3), &layer, (2, 5), (2, 8)));
    is_shape("saved", forward(view("x", 2, 3), &layer, (2, 4), (2, 7)));
    is_shape("bias", forward(view("x", 2, 3), &Layer { bias: Some(&data[..7]), ..layer }, (2, 4), (2, 8)));
    assert!(matches!(forward(view("x", 0, 3), &layer, (0, 4), (0, 8)), Error::ZeroSize { .. }));

    let x = view("x", 2, 3);
    let backward =
        |dz, saved, gradients: &mut Gradients<'_, f32>| swiglu::backward(x, &layer, dz, saved, gradients).unwrap_err();
    let dz = view("dz", 2, 4);
    let none = &mut Gradients::default();
    is_shape("dz", backward(view("dz", 2, 3), None, none));
    is_shape("saved", backward(dz, Some(view("saved", 2, 4)), none));
    let mut out = [7f32; 64];
    let matrix = |what, rows, cols| HostMatrixMut::new(what, Box::leak(Box::new(out)), rows, cols).unwrap();
    is_shape("dx", backward(dz, None, &mut Gradients { dx: Some(matrix("dx", 3, 3)), ..Gradients::default() }));
    let d_weights = Some(WeightsMut::packed(matrix("dw", 8, 3), Order::GateFirst));
    is_shape("dw", backward(dz, None, &mut Gradients { d_weights, ..Gradients::default() }));
    let d_bias = Some(&mut out[..5]);
    is_shape("d_bias", backward(dz, None, &mut Gradients { d_bias, ..Gradients::default() }));

    let mlp = Mlp { layer, down: Operand::new(view("down", 5, 2)) };
    let mut y = [0f32; 4];
    let mut y = HostMatrixMut::new("y", &mut y, 2, 2).unwrap();
    is_shape("down", swiglu::mlp_forward(x, &mlp, &mut y, None).unwrap_err());
    let mlp = Mlp { layer, down: Operand::transposed(view("down", 3, 4)) };
    is_shape("y", swiglu::mlp_forward(x, &mlp, &mut y, None).unwrap_err());
    is_shape(
        "dy",
        swiglu::mlp_backward(x, &mlp, view("dy", 2, 2), None, &mut MlpGradients::<f32>::default()).unwrap_err(),
    );
    let mut d_down = [0f32; 12];
    let d_down = OperandMut::new(HostMatrixMut::new("d_down", &mut d_down, 3, 4).unwrap());
    let mut gradients = MlpGradients::<f32> { d_down: Some(d_down), ..MlpGradients::default() };
    is_shape("d_down", swiglu::mlp_backward(x, &mlp, view("dy", 2, 3), None, &mut gradients).unwrap_err());
}

fn is_shape(what: &str, error: Error) {
    assert!(matches!(&error, Error::Shape { what: found, .. } if *found == what), "{error}");
}

#[test]
fn maxsim_names_what_does_not_fit() {
    let data = [1f32; 64];
    let rows = |what, rows, dim| HostMatrix::new(what, &data, rows, dim).unwrap();
    let padded = |what, shape| Tokens::padded(HostTensor::new(what, &data, shape).unwrap());
    assert!(matches!(padded("q", [0, 2, 2]), Err(Error::ZeroSize { .. })));
    assert!(matches!(padded("q", [2, 2, 0]), Err(Error::ZeroSize { .. })));
    assert!(matches!(Tokens::packed(rows("q", 4, 2), &[]), Err(Error::ZeroSize { .. })));
    assert!(matches!(Tokens::packed(rows("q", 4, 2), &[0]), Err(Error::ZeroSize { .. })));
    let huge = HostTensor::new("d", &data, [usize::MAX, 2, 0, 2]).unwrap();
    is_shape("d", Tokens::candidates(huge).unwrap_err());
    for (offsets, wrong, value) in
        [(&[1, 4][..], 0, 1), (&[0, 3, 2], 2, 2), (&[0, 2, 5], 2, 5), (&[0, usize::MAX], 1, usize::MAX)]
    {
        let error = Tokens::packed(rows("q", 4, 2), offsets).unwrap_err();
        assert!(matches!(error, Error::Offset { index, found, .. } if index == wrong && found == value), "{error}");
    }
    is_shape("mask", padded("q", [2, 2, 2]).unwrap().with_mask(&[true; 3]).unwrap_err());

    let queries = padded("q", [2, 2, 2]).unwrap();
    let docs = padded("d", [3, 4, 2]).unwrap();
    let cross = Problem { queries, docs, pairing: Pairing::Cross, normalize: false };
    is_shape("d", Problem { docs: padded("d", [3, 4, 3]).unwrap(), ..cross }.scores().unwrap_err());
    is_shape("d", Problem { pairing: Pairing::Pairs, ..cross }.scores().unwrap_err());
    is_shape("d", Problem { pairing: Pairing::Candidates { per_query: 2 }, ..cross }.scores().unwrap_err());
    is_shape("d", Problem { pairing: Pairing::Candidates { per_query: usize::MAX }, ..cross }.scores().unwrap_err());
    let error = Problem { pairing: Pairing::Candidates { per_query: 0 }, ..cross }.scores().unwrap_err();
    assert!(matches!(error, Error::ZeroSize { .. }));
    assert!(matches!(Problem { pairing: Pairing::List(&[]), ..cross }.scores(), Err(Error::ZeroSize { .. })));
    for list in [[(0, 0), (2, 0)], [(0, 0), (0, 3)]] {
        let error = Problem { pairing: Pairing::List(&list), ..cross }.scores().unwrap_err();
        assert!(matches!(error, Error::Index { index: 1, found: 2 | 3, .. }), "{error}");
    }

    let mut out = [7f32; 8];
    let mut argmax = [7i32; 16];
    is_shape("scores", maxsim::forward(&cross, &mut out[..5], None).unwrap_err());
    is_shape("argmax", maxsim::forward(&cross, &mut out[..6], Some(&mut argmax[..11])).unwrap_err());
    assert!(out == [7.0; 8] && argmax == [7; 16]);

    let d_scores = [1f32; 6];
    let mask = [true, false, true, true, true, true, true, true, true, true, true, true];
    let masked = Problem { docs: docs.with_mask(&mask).unwrap(), ..cross };
    let mut choices = [0i32; 12];
    is_shape("d_scores", maxsim::backward(&cross, &d_scores[..5], &choices, None, None).unwrap_err());
    is_shape("argmax", maxsim::backward(&cross, &d_scores, &choices[..5], None, None).unwrap_err());
    let mut wrong = HostMatrixMut::new("gradient", &mut out, 2, 2).unwrap();
    is_shape("gradient", maxsim::backward(&cross, &d_scores, &choices, Some(&mut wrong), None).unwrap_err());
    is_shape("gradient", maxsim::backward(&cross, &d_scores, &choices, None, Some(&mut wrong)).unwrap_err());
    for (problem, choice) in [(&cross, 4), (&cross, -2), (&cross, i32::MAX), (&cross, i32::MIN), (&masked, 1)] {
        choices[8 * usize::from(choice != 1)] = choice;
        let error = maxsim::backward(problem, &d_scores, &choices, None, None).unwrap_err();
        assert!(matches!(error, Error::Index { what: "argmax", found, .. } if found == i64::from(choice)), "{error}");
        choices = [0; 12];
    }
}

#[test]
fn naive_maxsim_refuses_spans_and_items_that_do_not_exist() {
    let tokens = [0f64; 8];
    let side = |spans| MaxsimSide { tokens: &tokens, spans, mask: None };
    let good = side(&[(0, 2)]);
    assert!(matches!(naive::maxsim(&good, &side(&[(0, 5)]), 2, &[], false), Err(Error::Offset { .. })));
    assert!(matches!(naive::maxsim(&good, &side(&[(3, 2)]), 2, &[], false), Err(Error::Offset { .. })));
    assert!(matches!(naive::maxsim(&good, &good, 3, &[], false), Err(Error::Shape { .. })));
    assert!(matches!(naive::maxsim(&good, &good, 2, &[(0, 1)], false), Err(Error::Index { .. })));
    let backward = |d: &[f64], a: &[i32]| naive::maxsim_backward(&good, &good, 2, &[(0, 0)], false, d, a);
    assert!(matches!(backward(&[], &[0, 0]), Err(Error::Shape { .. })));
    assert!(matches!(backward(&[1.0], &[0]), Err(Error::Shape { .. })));
    assert!(matches!(backward(&[1.0], &[0, 2]), Err(Error::Index { .. })));
}
