//! Every mistake of a caller gives an error of its own kind that names what was wrong, and nothing is written.

use gpu_testing::{alias, assert_kind};
use siglip_kernel::cpu::Element;
use siglip_kernel::kernel_core::Error;
use siglip_kernel::kernel_core::cudarc::driver::CudaContext;
use siglip_kernel::kernel_core::half::{bf16, f16};
use siglip_kernel::{
    DType, Gpu, Inputs, MatrixView, MatrixViewMut, Options, Outputs, Plan, Problem, Route, Scalar, VectorViewMut,
    workspace_bytes,
};

use crate::case::{Case, Device, Host};
use crate::support::{gpu, noise, say, wide};

const ROWS: usize = 24;
const COLS: usize = 40;
const DIM: usize = 16;

struct Fixture<T> {
    gpu: Gpu,
    plan: Plan,
    device: Device<T>,
}

impl<T: Element> Fixture<T> {
    fn new() -> Option<Self> {
        let gpu = gpu()?;
        let case = Case::new(ROWS, COLS, DIM);
        let plan = Plan::new(&gpu, case.problem::<T>(), Options::default()).unwrap();
        let device = Device::new(&gpu, case, &Host::unit(&case, 3));
        Some(Self { gpu, plan, device })
    }

    fn nothing_was_written(&self) {
        for scalar in [&self.device.loss, &self.device.d_log_temp, &self.device.d_bias] {
            assert!(self.gpu.download(scalar).unwrap()[0].is_nan(), "a scalar was written");
        }
        for side in [&self.device.d_img, &self.device.d_txt] {
            assert!(self.gpu.download(side).unwrap().iter().all(|x| wide(*x).is_nan()), "a gradient was written");
        }
    }
}

/// The GPU error behind a result that must be one.
fn kind<R: std::fmt::Debug>(result: siglip_kernel::Result<R>) -> Error {
    match result {
        Err(siglip_kernel::Error::Gpu(error)) => error,
        other => panic!("expected an error of the GPU side, found {other:?}"),
    }
}

/// The error of a step with one view replaced. An input that is refused there must be refused by the loss alone, in the same words.
macro_rules! step_with {
    ($fixture:ident, inputs.$field:ident = $value:expr) => {{
        let (mut inputs, mut outputs, upstream) = $fixture.device.views();
        inputs.$field = $value;
        let forward = kind($fixture.plan.forward(&inputs, &mut outputs.loss));
        let step = kind($fixture.plan.forward_backward(&inputs, &upstream, &mut outputs));
        assert_eq!(forward.to_string(), step.to_string());
        $fixture.nothing_was_written();
        step
    }};
    ($fixture:ident, outputs.$field:ident = $value:expr) => {{
        let (inputs, mut outputs, upstream) = $fixture.device.views();
        outputs.$field = $value;
        let step = kind($fixture.plan.forward_backward(&inputs, &upstream, &mut outputs));
        $fixture.nothing_was_written();
        step
    }};
    ($fixture:ident, upstream = $value:expr) => {{
        let (inputs, mut outputs, _) = $fixture.device.views();
        let step = kind($fixture.plan.forward_backward(&inputs, &$value, &mut outputs));
        $fixture.nothing_was_written();
        step
    }};
}

#[test]
fn wrong_shapes() {
    let Some(mut f) = Fixture::<bf16>::new() else { return };
    let other = f.gpu.alloc::<bf16>(COLS * DIM).unwrap();
    let mut writable = f.gpu.alloc::<bf16>(COLS * DIM).unwrap();
    let mut two = f.gpu.alloc::<f32>(2).unwrap();
    let view = || MatrixView::new("mine", &other, [COLS, DIM]).unwrap();
    let error = step_with!(f, inputs.img = view());
    assert_eq!(error.to_string(), "mine: wrong shape: found [40, 16], expected [24, 16]");
    assert_kind!(error, Error::Shape { what: "mine", .. });
    let wide = MatrixView::new("wide", &other, [DIM, COLS]).unwrap();
    assert_kind!(step_with!(f, inputs.txt = wide), Error::Shape { what: "wide", .. });
    let wrong = MatrixViewMut::new("d_img", &mut writable, [COLS, DIM]).unwrap();
    assert_kind!(step_with!(f, outputs.d_img = wrong), Error::Shape { what: "d_img", .. });
    let wrong = MatrixViewMut::new("d_txt", &mut writable, [COLS / 2, DIM * 2]).unwrap();
    assert_kind!(step_with!(f, outputs.d_txt = wrong), Error::Shape { what: "d_txt", .. });
    let wrong = VectorViewMut::new("loss", &mut two, [2]).unwrap();
    assert_kind!(step_with!(f, outputs.loss = wrong), Error::Shape { what: "loss", .. });
    let wrong = VectorViewMut::new("d_log_temp", &mut two, [2]).unwrap();
    assert_kind!(step_with!(f, outputs.d_log_temp = wrong), Error::Shape { what: "d_log_temp", .. });
    let wrong = VectorViewMut::new("d_bias", &mut two, [2]).unwrap();
    assert_kind!(step_with!(f, outputs.d_bias = wrong), Error::Shape { what: "d_bias", .. });
    assert_kind!(Scalar::device("bias", &two).unwrap_err(), Error::Shape { what: "bias", .. });
    let (inputs, _, _) = f.device.views();
    let mut loss = VectorViewMut::new("total", &mut two, [2]).unwrap();
    assert_kind!(kind(f.plan.forward(&inputs, &mut loss)), Error::Shape { what: "total", .. });
}

#[test]
fn wrong_dtype() {
    let Some(f) = Fixture::<bf16>::new() else { return };
    let case = Case::new(ROWS, COLS, DIM);
    let mut halves = Device::new(&f.gpu, case, &Host::<f16>::unit(&case, 3));
    let mut plan = f.plan;
    let error = kind(halves.step(&mut plan));
    assert_eq!(error.to_string(), "img and txt: wrong dtype: found f16, expected bf16");
    assert_kind!(kind(halves.forward(&mut plan)), Error::DType { found: DType::F16, .. });
    let mut floats = Device::new(&f.gpu, case, &Host::<f32>::unit(&case, 3));
    assert_kind!(kind(floats.step(&mut plan)), Error::DType { found: DType::F32, .. });
}

#[test]
fn fp8_has_no_f32_and_needs_hopper() {
    let Some(gpu) = gpu() else { return };
    for (route, name) in [(Route::Fp8, "route fp8"), (Route::Int8, "route int8")] {
        let options = Options { route, ..Options::default() };
        let error = kind(Plan::new(&gpu, Problem::square(8, 8, DType::F32), options));
        assert_kind!(&error, Error::DType { found: DType::F32, .. });
        assert!(error.to_string().contains(name), "{error}");
        let plan = Plan::new(&gpu, Problem::square(8, 8, DType::Bf16), options);
        if gpu.info().arch().has_wgmma() {
            assert_eq!(plan.unwrap().route(), route);
        } else {
            assert_kind!(&kind(plan), Error::UnsupportedDevice { .. });
        }
    }
}

#[test]
fn another_device() {
    let Some(mut f) = Fixture::<f32>::new() else { return };
    let context = match Gpu::count().unwrap() {
        1 => {
            say("one GPU: a second context of it stands for a second device");
            CudaContext::new_non_primary(0, 0).unwrap()
        }
        _ => CudaContext::new(1).unwrap(),
    };
    let foreign = Gpu::from_stream(context.new_stream().unwrap()).unwrap();
    let mut matrix = foreign.alloc::<f32>(ROWS * DIM).unwrap();
    let mut scalar = foreign.alloc::<f32>(1).unwrap();
    let theirs = MatrixView::new("img", &matrix, [ROWS, DIM]).unwrap();
    assert_kind!(step_with!(f, inputs.img = theirs), Error::WrongDevice { what: "img", expected: 0, .. });
    let theirs = Scalar::device("log_temp", &scalar).unwrap();
    assert_kind!(step_with!(f, inputs.log_temp = theirs), Error::WrongDevice { what: "log_temp", .. });
    let theirs = Scalar::device("bias", &scalar).unwrap();
    assert_kind!(step_with!(f, inputs.bias = theirs), Error::WrongDevice { what: "bias", .. });
    let theirs = Scalar::device("upstream", &scalar).unwrap();
    assert_kind!(step_with!(f, upstream = theirs), Error::WrongDevice { what: "upstream", .. });
    let theirs = MatrixViewMut::new("d_img", &mut matrix, [ROWS, DIM]).unwrap();
    assert_kind!(step_with!(f, outputs.d_img = theirs), Error::WrongDevice { what: "d_img", .. });
    let theirs = VectorViewMut::new("d_bias", &mut scalar, [1]).unwrap();
    assert_kind!(step_with!(f, outputs.d_bias = theirs), Error::WrongDevice { what: "d_bias", .. });
    let theirs = VectorViewMut::new("loss", &mut scalar, [1]).unwrap();
    assert_kind!(step_with!(f, outputs.loss = theirs), Error::WrongDevice { what: "loss", .. });
}

#[test]
fn strides_and_alignment() {
    let Some(mut f) = Fixture::<bf16>::new() else { return };
    let long = f.gpu.alloc::<bf16>(COLS * (DIM + 8)).unwrap();
    let error = MatrixView::with_row_stride("img", &long, [ROWS, DIM], DIM - 1).unwrap_err();
    assert_kind!(error, Error::Stride { what: "img", found: 15, minimum: 16 });

    // 16-bit rows are loaded 16 bytes at a time: an odd start and an odd stride are named, with the start in bytes.
    let shifted = MatrixView::with_row_stride("img", long.slice(1..), [ROWS, DIM], DIM).unwrap();
    let address = shifted.address();
    let error = step_with!(f, inputs.img = shifted);
    assert!(matches!(error, Error::Misaligned { what: "img", address: a, required: 16 } if a == address), "{error}");
    let odd = MatrixView::with_row_stride("txt", long.slice(..), [COLS, DIM], DIM + 1).unwrap();
    assert_kind!(step_with!(f, inputs.txt = odd), Error::Misaligned { what: "txt", address: 34, required: 16 });

    let mut long = long;
    let shifted = MatrixViewMut::with_row_stride("d_img", long.slice_mut(4..), [ROWS, DIM], DIM).unwrap();
    assert_kind!(step_with!(f, outputs.d_img = shifted), Error::Misaligned { what: "d_img", required: 16, .. });
    let odd = MatrixViewMut::with_row_stride("d_txt", long.slice_mut(..), [COLS, DIM], DIM + 3).unwrap();
    assert_kind!(step_with!(f, outputs.d_txt = odd), Error::Misaligned { what: "d_txt", address: 38, required: 16 });

    let Some(mut f) = Fixture::<f32>::new() else { return };
    let mut long = f.gpu.alloc::<f32>(COLS * DIM + 1).unwrap();
    let shifted = MatrixView::with_row_stride("img", long.slice(1..), [ROWS, DIM], DIM).unwrap();
    assert_kind!(step_with!(f, inputs.img = shifted), Error::Misaligned { what: "img", required: 16, .. });
    let shifted = MatrixViewMut::new("d_txt", long.slice_mut(1..), [COLS, DIM]).unwrap();
    assert_kind!(step_with!(f, outputs.d_txt = shifted), Error::Misaligned { what: "d_txt", required: 16, .. });
}

/// With one row there is no next row whose address could matter, of inputs or of gradients.
#[test]
fn the_stride_of_a_single_row_does_not_matter() {
    let Some(gpu) = gpu() else { return };
    let rows = gpu.upload(&noise(2 * DIM, 3).into_iter().map(bf16::from_f32).collect::<Vec<_>>()).unwrap();
    let (img, txt) = rows.split_at(DIM);
    let step = |stride| {
        let problem = Problem::square(1, DIM, DType::Bf16);
        let mut plan = Plan::new(&gpu, problem, Options::default()).unwrap();
        let mut gradients = gpu.alloc::<bf16>(2 * DIM).unwrap();
        let mut scalars = [(); 3].map(|()| gpu.alloc::<f32>(1).unwrap());
        let inputs = Inputs {
            img: MatrixView::with_row_stride("img", &img, [1, DIM], stride).unwrap(),
            txt: MatrixView::with_row_stride("txt", &txt, [1, DIM], stride).unwrap(),
            log_temp: Scalar::Host(1.0),
            bias: Scalar::Host(-1.0),
        };
        let (d_img, d_txt) = gradients.split_at_mut(DIM);
        let [loss, d_log_temp, d_bias] = &mut scalars;
        let outputs = &mut Outputs {
            loss: VectorViewMut::new("loss", loss, [1]).unwrap(),
            d_img: MatrixViewMut::with_row_stride("d_img", d_img, [1, DIM], stride).unwrap(),
            d_txt: MatrixViewMut::with_row_stride("d_txt", d_txt, [1, DIM], stride).unwrap(),
            d_log_temp: VectorViewMut::new("d_log_temp", d_log_temp, [1]).unwrap(),
            d_bias: VectorViewMut::new("d_bias", d_bias, [1]).unwrap(),
        };
        plan.forward_backward(&inputs, &Scalar::Host(1.0), outputs).unwrap();
        (scalars.map(|scalar| gpu.download(&scalar).unwrap()[0]), gpu.download(&gradients).unwrap())
    };
    let dense = step(DIM);
    assert!(dense.0[0] > 0.0 && dense.1.iter().any(|x| *x != bf16::ZERO));
    for stride in [DIM + 1, 1 << 50] {
        assert_eq!(step(stride), dense, "stride {stride}");
    }
}

#[test]
fn overlaps() {
    let Some(mut f) = Fixture::<f32>::new() else { return };
    let gpu = f.gpu.clone();
    let mut img = alias(&gpu, &f.device.img, ROWS * DIM);
    let mut txt = alias(&gpu, &f.device.txt, COLS * DIM);
    let mut d_img = alias(&gpu, &f.device.d_img, ROWS * DIM);
    let over = MatrixViewMut::new("d_img", &mut *img, [ROWS, DIM]).unwrap();
    let error = step_with!(f, outputs.d_img = over);
    assert_eq!(error.to_string(), "img and d_img overlap in memory: expected them to be disjoint");
    assert_kind!(error, Error::Overlap { a: "img", b: "d_img" });
    let over = MatrixViewMut::new("d_txt", &mut *txt, [COLS, DIM]).unwrap();
    assert_kind!(step_with!(f, outputs.d_txt = over), Error::Overlap { a: "txt", b: "d_txt" });
    let over = VectorViewMut::new("loss", d_img.slice_mut(5..6), [1]).unwrap();
    assert_kind!(step_with!(f, outputs.loss = over), Error::Overlap { a: "loss", b: "d_img" });
    let mut bias = alias(&gpu, &f.device.bias, 1);
    let over = VectorViewMut::new("d_bias", &mut *bias, [1]).unwrap();
    assert_kind!(step_with!(f, outputs.d_bias = over), Error::Overlap { a: "bias", b: "d_bias" });
    let mut upstream = alias(&gpu, &f.device.upstream, 1);
    let over = VectorViewMut::new("d_log_temp", &mut *upstream, [1]).unwrap();
    assert_kind!(step_with!(f, outputs.d_log_temp = over), Error::Overlap { a: "upstream", b: "d_log_temp" });
    let (inputs, _, _) = f.device.views();
    let mut over = VectorViewMut::new("loss", img.slice_mut(..1), [1]).unwrap();
    assert_kind!(kind(f.plan.forward(&inputs, &mut over)), Error::Overlap { a: "img", b: "loss" });
}

#[test]
fn scalars_that_are_not_finite() {
    let Some(mut f) = Fixture::<f16>::new() else { return };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_kind!(step_with!(f, inputs.log_temp = Scalar::Host(value)), Error::NonFinite { what: "log_temp", .. });
        assert_kind!(step_with!(f, inputs.bias = Scalar::Host(value)), Error::NonFinite { what: "bias", .. });
        assert_kind!(step_with!(f, upstream = Scalar::Host(value)), Error::NonFinite { what: "upstream", .. });
    }
    let error = step_with!(f, inputs.log_temp = Scalar::Host(89.0));
    assert_kind!(error, Error::NonFinite { what: "exp(log_temp)", .. });
}

#[test]
fn impossible_problems() {
    let Some(gpu) = gpu() else { return };
    let good = Problem::square(8, 8, DType::Bf16);
    let zeros = [
        (Problem { rows: 0, ..good }, "rows"),
        (Problem { cols: 0, ..good }, "cols"),
        (Problem { dim: 0, ..good }, "dim"),
        (good.with_batch(0), "batch"),
    ];
    for (problem, name) in zeros {
        for error in [
            kind(Plan::new(&gpu, problem, Options::default())),
            kind(workspace_bytes(&gpu, &problem, &Options::default())),
        ] {
            assert!(matches!(error, Error::ZeroSize { what } if what == name), "{error}");
        }
    }
    let error = kind(Plan::new(&gpu, Problem { cols: 1 << 31, ..good }, Options::default()));
    assert_kind!(error, Error::Shape { what: "cols", .. });
    let empty = gpu.alloc::<bf16>(8).unwrap();
    assert_kind!(MatrixView::new("img", &empty, [0, 8]).unwrap_err(), Error::ZeroSize { what: "img" });
}
