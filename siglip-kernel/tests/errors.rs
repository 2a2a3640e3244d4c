//! What needs no GPU: problems, a missing GPU, and the mistakes that the CPU side names.

use siglip_kernel::cpu::{Element, HostMatrix, HostMatrixMut, Inputs, Outputs, Plan};
use siglip_kernel::kernel_core::half::{bf16, f16};
use siglip_kernel::{DType, Error, Gpu, Positives, Problem, Route, kernel_core};

/// Buffers of a `[2, 3]` × `[4, 3]` problem.
struct Buffers<T> {
    img: Vec<T>,
    txt: Vec<T>,
    d_img: Vec<T>,
    d_txt: Vec<T>,
    scalars: [f32; 3],
}

impl<T: Element> Buffers<T> {
    fn new() -> Self {
        let some = |len| (0..len).map(|i| kernel_core::Element::from_f32(0.1 * i as f32)).collect();
        Self { img: some(6), txt: some(12), d_img: some(6), d_txt: some(12), scalars: [7.0; 3] }
    }

    fn views(&mut self) -> (Inputs<'_, T>, Outputs<'_, T>) {
        let inputs = Inputs {
            img: HostMatrix::new("img", &self.img, 2, 3).unwrap(),
            txt: HostMatrix::new("txt", &self.txt, 4, 3).unwrap(),
            log_temp: 1.0,
            bias: -1.0,
        };
        let [loss, d_log_temp, d_bias] = &mut self.scalars;
        let outputs = Outputs {
            loss,
            d_img: HostMatrixMut::new("d_img", &mut self.d_img, 2, 3).unwrap(),
            d_txt: HostMatrixMut::new("d_txt", &mut self.d_txt, 4, 3).unwrap(),
            d_log_temp,
            d_bias,
        };
        (inputs, outputs)
    }
}

fn problem(dtype: DType) -> Problem {
    Problem::block(2, 4, 3, dtype, Positives::Matching)
}

#[test]
fn a_missing_gpu_is_an_error_value() {
    // No machine has this ordinal, with a driver or without.
    let error = siglip_kernel::Error::from(Gpu::new(usize::MAX).unwrap_err());
    let Error::Gpu(inner) = &error else { panic!("{error:?}") };
    use kernel_core::Error::{MissingLibrary, NoDevice, NoDriver};
    assert!(matches!(inner, NoDevice { .. } | NoDriver { .. } | MissingLibrary { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("expected") || message.contains("install"), "{message}");
}

#[test]
fn impossible_problems_are_named() {
    let good = problem(DType::F32);
    for (problem, name) in [
        (Problem { rows: 0, ..good }, "rows"),
        (Problem { cols: 0, ..good }, "cols"),
        (Problem { dim: 0, ..good }, "dim"),
        (good.with_batch(0), "batch"),
    ] {
        let error = Plan::new(problem).unwrap_err();
        assert!(matches!(error, Error::Gpu(kernel_core::Error::ZeroSize { what }) if what == name), "{error}");
    }
    let error = Plan::new(Problem { dim: 1 << 31, ..good }).unwrap_err();
    assert!(matches!(error, Error::Gpu(kernel_core::Error::Shape { what: "dim", .. })), "{error}");
}

#[test]
fn problems_say_what_they_cost() {
    let problem = Problem::square(1000, 64, DType::Bf16);
    assert_eq!((problem.rows, problem.cols, problem.batch), (1000, 1000, 1000));
    assert_eq!(problem.positives.offset(), Some(0));
    assert_eq!(problem.forward_flop(), 2.0 * 1e6 * 64.0);
    assert_eq!(problem.step_flop(), 6.0 * 1e6 * 64.0);
    assert_eq!(Positives::None.offset(), None);
    assert_eq!("portable".parse::<Route>().unwrap(), Route::Portable);
    let message = "fastest".parse::<Route>().unwrap_err().to_string();
    assert!(message.contains("\"fastest\"") && message.contains("portable"), "{message}");
}

#[test]
fn a_wrong_dtype_is_named() {
    let mut buffers = Buffers::<f16>::new();
    let (inputs, mut outputs) = buffers.views();
    let plan = Plan::new(problem(DType::Bf16)).unwrap();
    for error in
        [plan.forward(&inputs, &mut 0.0).unwrap_err(), plan.forward_backward(&inputs, 1.0, &mut outputs).unwrap_err()]
    {
        assert_eq!(error.to_string(), "img and txt: wrong dtype: found f16, expected bf16");
        assert!(matches!(error, Error::Gpu(kernel_core::Error::DType { found: DType::F16, .. })), "{error:?}");
    }
    assert_eq!(buffers.scalars, [7.0; 3]);
}

/// The name in the shape error of a step whose views were changed; nothing may have been written.
fn misshapen(
    change: impl for<'a> FnOnce(&mut Inputs<'a, bf16>, &mut Outputs<'a, bf16>, &'a [bf16], &'a mut [bf16]),
) -> String {
    let mut buffers = Buffers::<bf16>::new();
    let (other, mut writable) = (vec![bf16::ONE; 20], vec![bf16::ONE; 20]);
    let before = (buffers.d_img.clone(), buffers.d_txt.clone());
    let message = {
        let (mut inputs, mut outputs) = buffers.views();
        change(&mut inputs, &mut outputs, &other, &mut writable);
        let error = Plan::new(problem(DType::Bf16)).unwrap().forward_backward(&inputs, 1.0, &mut outputs).unwrap_err();
        assert!(matches!(error, Error::Gpu(kernel_core::Error::Shape { .. })), "{error:?}");
        error.to_string()
    };
    assert_eq!((buffers.d_img, buffers.d_txt, buffers.scalars), (before.0, before.1, [7.0; 3]));
    message
}

#[test]
fn wrong_shapes_are_named() {
    let message = misshapen(|inputs, _, other, _| inputs.img = HostMatrix::new("img", other, 3, 3).unwrap());
    assert_eq!(message, "img: wrong shape: found [3, 3], expected [2, 3]");
    let message = misshapen(|inputs, _, other, _| inputs.txt = HostMatrix::new("mine", other, 4, 5).unwrap());
    assert_eq!(message, "mine: wrong shape: found [4, 5], expected [4, 3]");
    let message = misshapen(|_, outputs, _, free| outputs.d_img = HostMatrixMut::new("d_img", free, 2, 4).unwrap());
    assert_eq!(message, "d_img: wrong shape: found [2, 4], expected [2, 3]");
    let message = misshapen(|_, outputs, _, free| outputs.d_txt = HostMatrixMut::new("d_txt", free, 1, 3).unwrap());
    assert_eq!(message, "d_txt: wrong shape: found [1, 3], expected [4, 3]");
}

#[test]
fn views_that_do_not_fit_are_named() {
    let data = [0f32; 6];
    let error = Error::from(HostMatrix::new("img", &data, 2, 4).unwrap_err());
    assert!(matches!(&error, Error::Cpu(reference_cpu::Error::Length { what: "img", found: 6, needed: 8 })), "{error}");
    let error = Error::from(HostMatrix::with_row_stride("img", &data, 2, 3, 2).unwrap_err());
    assert!(
        matches!(&error, Error::Cpu(reference_cpu::Error::Stride { what: "img", found: 2, minimum: 3 })),
        "{error}"
    );
}

#[test]
fn scalars_that_are_not_finite_are_named() {
    let plan = Plan::new(problem(DType::F32)).unwrap();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut buffers = Buffers::<f32>::new();
        let before = buffers.d_img.clone();
        {
            let (inputs, mut outputs) = buffers.views();
            let name = |result: siglip_kernel::Result<()>| match result {
                Err(Error::Cpu(reference_cpu::Error::NonFinite { what, .. })) => what,
                other => panic!("expected NonFinite, found {other:?}"),
            };
            assert_eq!(name(plan.forward(&Inputs { log_temp: value, ..inputs }, &mut 0.0)), "log_temp");
            assert_eq!(name(plan.forward(&Inputs { bias: value, ..inputs }, &mut 0.0)), "bias");
            assert_eq!(name(plan.forward_backward(&inputs, value, &mut outputs)), "upstream");
            assert_eq!(name(plan.forward(&Inputs { log_temp: 89.0, ..inputs }, &mut 0.0)), "exp(log_temp)");
        }
        assert_eq!((buffers.d_img, buffers.scalars), (before, [7.0; 3]));
    }
}
