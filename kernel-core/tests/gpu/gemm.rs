//! cuBLASLt plans against a naive product on the host.

use half::{bf16, f16};
use kernel_core::cudarc::driver::{CudaSlice, DevicePtr};
use kernel_core::{DType, Element, Error, GemmPlan, GemmSpec, Gpu, MatrixSpec};

use crate::support::{gpu, noise, skip};

const WORKSPACE: usize = 32 << 20;

/// A plan, or a printed reason.
fn plan(gpu: &Gpu, spec: GemmSpec) -> Option<GemmPlan> {
    match GemmPlan::new(gpu, spec, WORKSPACE) {
        Ok(plan) => Some(plan),
        Err(error @ Error::MissingLibrary { .. }) => {
            skip(&format!("no cuBLASLt ({error})"));
            None
        }
        Err(error) => panic!("{spec:?}: {error}"),
    }
}

fn elements<T: Element>(len: usize, seed: u64) -> Vec<T> {
    noise(len, seed).into_iter().map(T::from_f32).collect()
}

/// The stored matrices of one product, on host and device.
struct Case<A, C> {
    spec: GemmSpec,
    a: Vec<A>,
    b: Vec<A>,
    c: Vec<C>,
    a_device: CudaSlice<A>,
    b_device: CudaSlice<A>,
    workspace: CudaSlice<u8>,
}

impl<A: Element, C: Element> Case<A, C> {
    fn new(gpu: &Gpu, [m, n, k]: [usize; 3], [a_t, b_t]: [bool; 2], pad: usize) -> Self {
        let matrix = |dtype, transposed, cols| MatrixSpec { dtype, transposed, row_stride: cols + pad };
        let spec = GemmSpec {
            m,
            n,
            k,
            a: matrix(A::DTYPE, a_t, if a_t { m } else { k }),
            b: matrix(A::DTYPE, b_t, if b_t { k } else { n }),
            c: matrix(C::DTYPE, false, n),
        };
        let a = elements(spec.stored_a().0 * spec.a.row_stride, 1);
        let b = elements(spec.stored_b().0 * spec.b.row_stride, 2);
        let c = elements(m * spec.c.row_stride, 3);
        let (a_device, b_device) = (gpu.upload(&a).unwrap(), gpu.upload(&b).unwrap());
        Self { spec, a, b, c, a_device, b_device, workspace: gpu.alloc(WORKSPACE).unwrap() }
    }

    /// Runs the plan on a fresh copy of C.
    fn run(&self, gpu: &Gpu, plan: &GemmPlan, alpha: f32, beta: f32) -> Vec<C> {
        let c = gpu.upload(&self.c).unwrap();
        {
            let (a, _a) = self.a_device.device_ptr(gpu.stream());
            let (b, _b) = self.b_device.device_ptr(gpu.stream());
            let (c, _c) = c.device_ptr(gpu.stream());
            let (workspace, _workspace) = self.workspace.device_ptr(gpu.stream());
            // SAFETY: the matrices are those of the spec, and the workspace is this case's own.
            unsafe { plan.run(gpu.stream(), alpha, a, b, beta, c, workspace).unwrap() };
        }
        gpu.download(&c).unwrap()
    }

    /// Compares with f64 sums of the same operands, and demands that the gaps between rows are untouched.
    fn check(&self, found: &[C], alpha: f32, beta: f32) {
        let GemmSpec { m, n, k, a, b, c } = self.spec;
        for i in 0..m {
            for j in 0..c.row_stride {
                let old = self.c[i * c.row_stride + j];
                let found = found[i * c.row_stride + j];
                if j >= n {
                    assert_eq!(found, old, "the gap after row {i} was written: {:?}", self.spec);
                    continue;
                }
                let mut sum = f64::from(beta) * f64::from(old.to_f32());
                let mut size = sum.abs();
                for l in 0..k {
                    let left = if a.transposed { l * a.row_stride + i } else { i * a.row_stride + l };
                    let right = if b.transposed { j * b.row_stride + l } else { l * b.row_stride + j };
                    let term = f64::from(alpha) * f64::from(self.a[left].to_f32()) * f64::from(self.b[right].to_f32());
                    sum += term;
                    size += term.abs();
                }
                // Rounding of every f32 addition in the worst case, then of the result to C's type; where C is added to, some
                // algorithms round the product to C's type first. TF32, or partial sums in 16 bits, would not pass.
                let product = if beta == 0.0 { 0.0 } else { (sum - f64::from(beta) * f64::from(old.to_f32())).abs() };
                let bound = (k + 4) as f64 * size / f64::from(1u32 << 24)
                    + 0.51 * f64::from(C::DTYPE.epsilon()) * (sum.abs() + product);
                let error = (f64::from(found.to_f32()) - sum).abs();
                assert!(error <= bound + 1e-7, "({i}, {j}): {found:?} against {sum}, bound {bound}: {:?}", self.spec);
            }
        }
    }
}

fn all_layouts<A: Element, C: Element>(gpu: &Gpu) {
    for transposed in [[false, false], [false, true], [true, false], [true, true]] {
        // Everything a multiple of 16 bytes; padded by such; odd in every extent.
        for (sizes, pad) in [([64, 48, 32], 0), ([80, 64, 96], 16), ([65, 49, 33], 3), ([1, 7, 5], 0)] {
            let case = Case::<A, C>::new(gpu, sizes, transposed, pad);
            let Some(plan) = plan(gpu, case.spec) else { return };
            assert!(plan.workspace_bytes() <= WORKSPACE);
            for (alpha, beta) in [(1.0, 0.0), (0.5, 1.0), (-2.0, 0.25)] {
                case.check(&case.run(gpu, &plan, alpha, beta), alpha, beta);
            }
        }
    }
}

#[test]
fn bf16_products_match() {
    let Some(gpu) = gpu() else { return };
    all_layouts::<bf16, f32>(&gpu);
    all_layouts::<bf16, bf16>(&gpu);
}

#[test]
fn f16_products_match() {
    let Some(gpu) = gpu() else { return };
    all_layouts::<f16, f32>(&gpu);
    all_layouts::<f16, f16>(&gpu);
}

#[test]
fn f32_products_are_true_f32() {
    let Some(gpu) = gpu() else { return };
    all_layouts::<f32, f32>(&gpu);
    let case = Case::<f32, f32>::new(&gpu, [256, 256, 512], [false, true], 0);
    let Some(plan) = plan(&gpu, case.spec) else { return };
    let found = case.run(&gpu, &plan, 1.0, 0.0);
    // TF32 keeps 11 significant bits: its error here is around 1e-3, that of f32 around 1e-6.
    let mut worst = 0.0f64;
    for i in 0..256 {
        for j in 0..256 {
            let exact: f64 = (0..512).map(|l| f64::from(case.a[i * 512 + l]) * f64::from(case.b[j * 512 + l])).sum();
            worst = worst.max((f64::from(found[i * 256 + j]) - exact).abs());
        }
    }
    assert!(worst < 5e-5, "worst error {worst}");
}

#[test]
fn beta_zero_does_not_read_the_result() {
    let Some(gpu) = gpu() else { return };
    let mut case = Case::<bf16, f32>::new(&gpu, [64, 64, 64], [false, false], 0);
    let Some(plan) = plan(&gpu, case.spec) else { return };
    case.c.fill(f32::NAN);
    assert!(case.run(&gpu, &plan, 1.0, 0.0).iter().all(|value| value.is_finite()));
}

#[test]
fn every_candidate_is_right_and_repeats_its_bits() {
    let Some(gpu) = gpu() else { return };
    // Small result, long sum: where split-K is worth it.
    let case = Case::<bf16, bf16>::new(&gpu, [64, 64, 8192], [true, false], 0);
    let Some(mut plan) = plan(&gpu, case.spec) else { return };
    let count = plan.candidates().len();
    assert!((1..=8).contains(&count));
    for index in 0..count {
        plan.select(index).unwrap();
        assert_eq!(plan.selected(), index);
        let first = case.run(&gpu, &plan, 1.0, 0.0);
        case.check(&first, 1.0, 0.0);
        for _ in 0..5 {
            assert!(case.run(&gpu, &plan, 1.0, 0.0) == first, "candidate {index} is not reproducible");
        }
    }
    assert!(matches!(plan.select(count), Err(Error::Shape { what: "gemm candidate", .. })));
}

#[test]
fn no_workspace_allowed_means_none_used() {
    let Some(gpu) = gpu() else { return };
    let case = Case::<bf16, f32>::new(&gpu, [64, 64, 4096], [false, true], 0);
    match GemmPlan::new(&gpu, case.spec, 0) {
        Ok(plan) => {
            assert!(plan.candidates().all(|candidate| candidate.workspace_bytes == 0));
            case.check(&case.run(&gpu, &plan, 1.0, 0.0), 1.0, 0.0);
        }
        Err(error @ Error::MissingLibrary { .. }) => skip(&format!("no cuBLASLt ({error})")),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn bad_pointers_and_specs_are_errors() {
    let Some(gpu) = gpu() else { return };
    let case = Case::<bf16, f32>::new(&gpu, [64, 64, 64], [false, false], 0);
    let Some(plan) = plan(&gpu, case.spec) else { return };
    let (a, _a) = case.a_device.device_ptr(gpu.stream());
    let (b, _b) = case.b_device.device_ptr(gpu.stream());
    let (workspace, _workspace) = case.workspace.device_ptr(gpu.stream());
    // SAFETY: refused before anything is launched.
    let error = unsafe { plan.run(gpu.stream(), 1.0, a + 2, b, 0.0, workspace, workspace) }.unwrap_err();
    assert!(matches!(error, Error::Misaligned { what: "gemm A", required: 16, .. }), "{error}");

    let odd = GemmPlan::with_alignments(&gpu, case.spec, WORKSPACE, [2, 16, 16]).unwrap();
    assert!(odd.workspace_bytes() <= WORKSPACE);
    let error = GemmPlan::with_alignments(&gpu, case.spec, WORKSPACE, [3, 16, 16]).unwrap_err();
    assert!(matches!(error, Error::Shape { what: "gemm alignment", .. }), "{error}");
    let mixed = GemmSpec { b: MatrixSpec::new(DType::F16, 64), ..case.spec };
    assert!(matches!(GemmPlan::new(&gpu, mixed, 0), Err(Error::DType { what: "gemm B", .. })));
}

#[test]
fn threads_share_a_plan() {
    let Some(gpu) = gpu() else { return };
    let case = Case::<bf16, f32>::new(&gpu, [96, 64, 128], [false, false], 0);
    let Some(plan) = plan(&gpu, case.spec) else { return };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (gpu, plan) = (gpu.fork().unwrap(), &plan);
            scope.spawn(move || {
                let case = Case::<bf16, f32>::new(&gpu, [96, 64, 128], [false, false], 0);
                for _ in 0..8 {
                    case.check(&case.run(&gpu, plan, 1.0, 0.5), 1.0, 0.5);
                }
            });
        }
    });
}
