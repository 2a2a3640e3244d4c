//! Problems of many blocks, and tensors of more than 2³¹ elements: sampled rows against f64.

use reference_cpu::HostMatrix;
use reference_cpu::naive::{e4m3_matrix, int8_columns, int8_factors, int8_logit_rows};
use reference_cpu::siglip::{self, SiglipParams};
use siglip_kernel::kernel_core::half::bf16;
use siglip_kernel::{
    Inputs, MatrixView, MatrixViewMut, Options, Outputs, Plan, Positives, Problem, Route, Scalar, VectorViewMut,
};

use crate::case::{Case, Device, Host, run};
use crate::compare::eight_bit_dot;
use crate::support::{gpu, l2, noise, routes, say};

const TEMPERATURE: f64 = 10.0;
const BIAS: f64 = -10.0;

/// Rows of one side: as they are, and as negative pairs have them in their logits and in the gradients.
struct Side {
    dim: usize,
    rows: Vec<f64>,
    logits: Vec<f64>,
    products: Vec<f64>,
    route: Route,
}

impl Side {
    fn both(host: &Host<bf16>, dim: usize, route: Route) -> (Self, Self) {
        let wide = |rows: &[bf16]| rows.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        let (img, txt) = (wide(&host.img), wide(&host.txt));
        let (of_img, of_txt) = match route {
            Route::Fp8 => (e4m3_matrix(&img), e4m3_matrix(&txt)),
            Route::Int8 => int8_logit_rows(&img, &txt, dim),
            _ => (img.clone(), txt.clone()),
        };
        let side = |rows: Vec<f64>, logits| {
            let products = if route == Route::Int8 { int8_columns(&rows, dim) } else { rows.clone() };
            Self { dim, rows, logits, products, route }
        };
        (side(img, of_img), side(txt, of_txt))
    }

    fn count(&self) -> usize {
        self.rows.len() / self.dim
    }

    fn z(&self, i: usize, other: &Self, j: usize, positive: bool) -> f64 {
        let (a, b) = if positive { (&self.rows, &other.rows) } else { (&self.logits, &other.logits) };
        let dim = a.len() / self.count();
        TEMPERATURE * a[i * dim..][..dim].iter().zip(&b[j * dim..][..dim]).map(|(x, y)| x * y).sum::<f64>() + BIAS
    }

    /// The gradient of row `i` against all rows of the other side; `positive` is the index there of its positive.
    /// `first`: where in a group of G the others begin.
    fn gradient(&self, i: usize, others: &Self, first: usize, positive: Option<usize>, batch: usize) -> Vec<f64> {
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        let negative = |j| if positive == Some(j) { 0.0 } else { sigmoid(self.z(i, others, j, false)) };
        let mut q: Vec<f64> = (0..others.count()).map(negative).collect();
        if self.route == Route::Int8 {
            q = int8_factors(&q, first);
        }
        let mut sum = vec![0.0; self.dim];
        let mut add = |q: f64, row: &[f64]| sum.iter_mut().zip(row).for_each(|(s, x)| *s += q * x);
        q.iter().zip(others.products.chunks(self.dim)).for_each(|(q, row)| add(*q, row));
        if let Some(j) = positive {
            add(-sigmoid(-self.z(i, others, j, true)), &others.rows[j * self.dim..][..self.dim]);
        }
        sum.iter_mut().for_each(|s| *s *= TEMPERATURE / batch as f64);
        sum
    }

    /// The loss of images against texts, row i with row i, and what it may be off.
    fn loss(&self, txt: &Self, batch: usize, route: Route) -> (f64, f64) {
        let narrow = |side: &Self| side.logits.iter().map(|x| *x as f32).collect::<Vec<_>>();
        let (a, b) = (narrow(self), narrow(txt));
        let dim = a.len() / self.count();
        let params = SiglipParams { batch, ..SiglipParams::square(batch, std::f32::consts::LN_10, BIAS as f32) };
        let img = HostMatrix::new("img", &a, self.count(), dim).unwrap();
        let all = siglip::forward(img, HostMatrix::new("txt", &b, txt.count(), dim).unwrap(), &params).unwrap();
        let softplus = |z: f64| z.max(0.0) + (-z.abs()).exp().ln_1p();
        let moved = |i| softplus(-self.z(i, txt, i, true)) - softplus(-self.z(i, txt, i, false));
        let loss = f64::from(all) + (0..self.count().min(txt.count())).map(moved).sum::<f64>() / batch as f64;
        let logits =
            if matches!(route, Route::Fp8 | Route::Int8) { TEMPERATURE * eight_bit_dot(self.dim) } else { 0.0 };
        (loss, (1e-5 + logits) * loss)
    }
}

fn assert_close(what: &str, found: &[bf16], expected: &[f64]) {
    let error = l2(found.iter().zip(expected).map(|(a, b)| a.to_f64() - b));
    let length = l2(expected.iter().copied());
    // One row does not average the rounding of its largest q: two whole roundoffs of bf16.
    let fine = error <= 2.0 * 2f64.powi(-8) * length;
    assert!(fine, "{what}: off {error:e} of {length:e}");
}

#[test]
fn many_blocks() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(20_000, 20_000, 64);
    let host = Host::<bf16>::unit(&case, 3);
    for route in routes::<bf16>(&gpu) {
        let case = Case { options: Options { route: *route, ..Options::default() }, ..case };
        let step = run(&gpu, &case, &host).unwrap();
        let (img, txt) = Side::both(&host, 64, *route);
        let (loss, bound) = img.loss(&txt, 20_000, *route);
        for found in [step.forward, step.loss] {
            let error = (f64::from(found) - loss).abs();
            assert!(error <= bound, "{route}: the loss is {found}, expected {loss} ({error:e})");
        }
        for row in [0, 1, 127, 128, 4999, 5631, 5632, 9000, 12_345, 16_383, 16_384, 19_968, 19_999] {
            let at = row * 64..(row + 1) * 64;
            let expected = img.gradient(row, &txt, 0, Some(row), 20_000);
            assert_close(&format!("{route}, d_img {row}"), &step.d_img[at.clone()], &expected);
            let expected = txt.gradient(row, &img, 0, Some(row), 20_000);
            assert_close(&format!("{route}, d_txt {row}"), &step.d_txt[at], &expected);
        }
    }
}

/// 2,100,000 image rows of 1,024: zero but for the last 300, so that the answer is cheap to know.
#[test]
fn more_than_two_to_the_31_elements() {
    let Some(gpu) = gpu() else { return };
    const DIM: usize = 1024;
    let (rows, cols, tail) = (2_100_000, 200, 300);
    let needed = 3 * rows * DIM * size_of::<bf16>();
    let (free, _) = gpu.memory_info().unwrap();
    if free < needed {
        // Not a missing GPU, so not a failure either.
        say(&format!("skipped: {free} bytes of device memory are free, {needed} needed"));
        return;
    }
    let small = Case::new(tail, cols, DIM);
    let host = Host::<bf16>::unit(&small, 5);
    let mut img = gpu.alloc::<bf16>(rows * DIM).unwrap();
    let start = (rows - tail) * DIM;
    gpu.stream().memcpy_htod(&host.img, &mut img.slice_mut(start..)).unwrap();
    let txt = gpu.upload(&host.txt).unwrap();
    // The last `tail` images and the texts are positive in order.
    let positives = Positives::Diagonal { offset: -((rows - tail) as i64) };
    for route in routes::<bf16>(&gpu) {
        let problem = Problem::block(rows, cols, DIM, siglip_kernel::DType::Bf16, positives).with_batch(1000);
        let mut plan = Plan::new(&gpu, problem, Options { route: *route, ..Options::default() }).unwrap();
        let mut d_img = gpu.alloc::<bf16>(rows * DIM).unwrap();
        let mut d_txt = gpu.alloc::<bf16>(cols * DIM).unwrap();
        let [mut loss, mut d_log_temp, mut d_bias] = [(); 3].map(|()| gpu.alloc::<f32>(1).unwrap());
        let inputs = Inputs {
            img: MatrixView::new("img", &img, [rows, DIM]).unwrap(),
            txt: MatrixView::new("txt", &txt, [cols, DIM]).unwrap(),
            log_temp: Scalar::Host(std::f32::consts::LN_10),
            bias: Scalar::Host(-10.0),
        };
        let mut outputs = Outputs {
            loss: VectorViewMut::new("loss", &mut loss, [1]).unwrap(),
            d_img: MatrixViewMut::new("d_img", &mut d_img, [rows, DIM]).unwrap(),
            d_txt: MatrixViewMut::new("d_txt", &mut d_txt, [cols, DIM]).unwrap(),
            d_log_temp: VectorViewMut::new("d_log_temp", &mut d_log_temp, [1]).unwrap(),
            d_bias: VectorViewMut::new("d_bias", &mut d_bias, [1]).unwrap(),
        };
        plan.forward_backward(&inputs, &Scalar::Host(1.0), &mut outputs).unwrap();

        let d_img = gpu.download(&d_img.slice(start..)).unwrap();
        let d_txt = gpu.download(&d_txt).unwrap();
        let (img_side, txt_side) = Side::both(&host, DIM, *route);
        for row in [0, 1, 172, 199, 200, 299] {
            let at = row * DIM..(row + 1) * DIM;
            let expected = img_side.gradient(row, &txt_side, 0, (row < cols).then_some(row), 1000);
            assert_close(&format!("{route}, d_img {row}"), &d_img[at], &expected);
        }
        for row in [0, 127, 128, 199] {
            // Images of zeros add nothing to the gradient of a text.
            let at = row * DIM..(row + 1) * DIM;
            let expected = txt_side.gradient(row, &img_side, rows - tail, Some(row), 1000);
            assert_close(&format!("{route}, d_txt {row}"), &d_txt[at], &expected);
        }
        // log sigmoid of the bias for every pair with an image of zeros.
        let zeros = (rows - tail) as f64 * cols as f64 * BIAS.exp().ln_1p() / 1000.0;
        let (rest, bound) = img_side.loss(&txt_side, 1000, *route);
        let expected = zeros + rest;
        let found = f64::from(gpu.download(&loss).unwrap()[0]);
        assert!(
            (found - expected).abs() <= 1e-5 * expected + bound,
            "{route}: the loss is {found}, expected {expected}"
        );
    }
}

/// Two rows that lie more than 2³² elements apart: the loss alone, and with gradients.
#[test]
fn rows_far_apart() {
    let Some(gpu) = gpu() else { return };
    const DIM: usize = 16;
    let stride = (1 << 32) + 8;
    let (free, _) = gpu.memory_info().unwrap();
    let needed = (stride + DIM) * size_of::<bf16>();
    if free < needed {
        say(&format!("skipped: {free} bytes of device memory are free, {needed} needed"));
        return;
    }
    let case = Case::new(2, 3, DIM);
    let host = Host::<bf16>::unit(&case, 5);
    let dense = run(&gpu, &case, &host).unwrap();
    let mut img = gpu.alloc::<bf16>(stride + DIM).unwrap();
    for (row, values) in host.img.chunks(DIM).enumerate() {
        gpu.stream().memcpy_htod(values, &mut img.slice_mut(row * stride..row * stride + DIM)).unwrap();
    }
    let mut device = Device::new(&gpu, case, &host);
    let (inputs, mut outputs, upstream) = device.views();
    let inputs = Inputs { img: MatrixView::with_row_stride("img", &img, [2, DIM], stride).unwrap(), ..inputs };
    let mut plan = Plan::new(&gpu, case.problem::<bf16>(), Options::default()).unwrap();
    let mut forward = gpu.alloc::<f32>(1).unwrap();
    plan.forward(&inputs, &mut VectorViewMut::new("loss", &mut forward, [1]).unwrap()).unwrap();
    plan.forward_backward(&inputs, &upstream, &mut outputs).unwrap();
    for (found, expected) in [(&forward, dense.forward), (&device.loss, dense.loss)] {
        assert_eq!(gpu.download(found).unwrap()[0].to_bits(), expected.to_bits());
    }
    assert_eq!(gpu.download(&device.d_txt).unwrap(), dense.d_txt);
}

/// Where there are no gaps between rows, low memory keeps sums for half of the texts in their gradient, and blocks of pairs in gradients' rows until those are
/// written: wider blocks first, and narrower ones towards the end of a pass.
#[test]
fn low_memory_in_the_gradients() {
    let Some(gpu) = gpu() else { return };
    const DIM: usize = 1024;
    let options = Options { route: Route::LowMemory, ..Options::default() };
    for (images, texts) in [(6_000, 30_000), (30_000, 6_000), (30_000, 13_000)] {
        let case = Case { options, ..Case::new(images, texts, DIM) };
        let host = Host::<bf16>::unit(&case, 7);
        let (img, txt) = Side::both(&host, DIM, Route::LowMemory);
        let dense = run(&gpu, &case, &host).unwrap();
        let gaps = run(&gpu, &Case { output_gap: 8, ..case }, &host).unwrap();
        let check = |side: &str, of: &Side, others: &Side, [rows, count]: [usize; 2], found: [&[bf16]; 2]| {
            for row in [0, 2047, 2048, 4223, 5999, 6399, 6400, 12_671, 12_672, 14_975, 14_976, 29_999] {
                if row < rows {
                    let expected = of.gradient(row, others, 0, (row < count).then_some(row), images);
                    for (what, found) in ["dense", "with gaps"].into_iter().zip(found) {
                        assert_close(&format!("{what}, {side} {row}"), &found[row * DIM..(row + 1) * DIM], &expected);
                    }
                }
            }
        };
        check("d_img", &img, &txt, [images, texts], [&dense.d_img, &gaps.d_img]);
        check("d_txt", &txt, &img, [texts, images], [&dense.d_txt, &gaps.d_txt]);
        assert!((dense.loss - gaps.loss).abs() <= 1e-6 * gaps.loss, "{} and {}", dense.loss, gaps.loss);
        assert_eq!(dense.bits(), run(&gpu, &case, &host).unwrap().bits(), "two runs");
    }
}

/// Gradients of images on tiles of 192 columns: summed over two blocks, which low memory makes of so many rows, and finished by one.
#[test]
fn wide_tiles_of_two_blocks_agree_with_one() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(8600, 1500, 184);
    let host = Host::<bf16>::unit(&case, 3);
    let with = |route| {
        let options = Options { route, chunk: siglip_kernel::Chunk::Rows(usize::MAX) };
        run(&gpu, &Case { options, ..case }, &host).unwrap()
    };
    let (one, two) = (with(Route::Chunked), with(Route::LowMemory));
    let wide = |side: &[bf16]| side.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    assert_close("d_img", &two.d_img, &wide(&one.d_img));
    assert_close("d_txt", &two.d_txt, &wide(&one.d_txt));
}

/// A chunk of rows is not a power of two of anything here: 4,321 rows in chunks of 1,100.
#[test]
fn uneven_chunks_agree_with_one_chunk() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(4321, 2999, 96);
    let host = Host::<bf16>::round(&noise(4321 * 96, 3), &noise(2999 * 96, 5));
    for route in routes::<bf16>(&gpu) {
        let with = |chunk| {
            let options = Options { route: *route, chunk };
            run(&gpu, &Case { options, log_temp: -3.0, bias: -4.0, ..case }, &host).unwrap()
        };
        let (one, many) = (with(siglip_kernel::Chunk::Rows(usize::MAX)), with(siglip_kernel::Chunk::Rows(1100)));
        assert!((one.loss - many.loss).abs() <= 1e-5 * one.loss, "{route}: {} and {}", one.loss, many.loss);
        let wide = |side: &[bf16]| side.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        // Both rounded the same sums, which differ by f32's order: two roundings apart at most.
        assert_close(&format!("{route}, d_img"), &many.d_img, &wide(&one.d_img));
        assert_close(&format!("{route}, d_txt"), &many.d_txt, &wide(&one.d_txt));
    }
}

/// Sums in the memory of the texts' gradient until its last chunk of rows, where that memory is in one piece and where it is not: on an H200 these workspaces make
/// blocks that need it, as the test of the rule has them. In the last problem the second block of texts ends in half a tile, right behind which its sums begin.
#[test]
fn sums_in_lent_memory_agree_with_one_chunk() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols, dim, bytes, blocks) in [
        (4321, 9000, 96, 5_275_170, (896, 1152)),
        (4321, 9000, 96, 10_550_340, (2304, 1536)),
        (5000, 5000, 136, 5_245_440, (1408, 1024)),
        (4321, 3904, 96, 2_800_000, (768, 960)),
    ] {
        let case = Case { log_temp: -3.0, bias: -4.0, ..Case::new(rows, cols, dim) };
        if gpu.info().arch().has_wgmma() && gpu.info().sm_count == 132 {
            let options = Options { chunk: siglip_kernel::Chunk::Workspace(bytes), ..Options::default() };
            assert_eq!(Plan::new(&gpu, case.problem::<bf16>(), options).unwrap().block(), blocks);
        }
        let host = Host::<bf16>::round(&noise(rows * dim, 3), &noise(cols * dim, 5));
        let with = |chunk, output_gap| {
            let options = Options { chunk, ..Options::default() };
            run(&gpu, &Case { options, output_gap, ..case }, &host).unwrap()
        };
        let one = with(siglip_kernel::Chunk::Rows(usize::MAX), 0);
        let wide = |side: &[bf16]| side.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        for gap in [0, 8] {
            let many = with(siglip_kernel::Chunk::Workspace(bytes), gap);
            assert!((one.loss - many.loss).abs() <= 1e-5 * one.loss, "{gap}: {} and {}", one.loss, many.loss);
            assert_close(&format!("d_img, gap {gap}"), &many.d_img, &wide(&one.d_img));
            assert_close(&format!("d_txt, gap {gap}"), &many.d_txt, &wide(&one.d_txt));
            assert_eq!(many.bits(), with(siglip_kernel::Chunk::Workspace(bytes), gap).bits(), "two runs");
        }
    }
}
