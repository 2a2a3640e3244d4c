//! Low memory where logits and the rows' gradient are one launch (`fused_sm90.cu`). Its results differ from those of separate launches by the order of f32 sums:
//! in some elements by one rounding.

use siglip_kernel::cpu::Element;
use siglip_kernel::kernel_core::half::{bf16, f16};
use siglip_kernel::{Chunk, Gpu, Options, Plan, Route};

use crate::case::{Case, Device, Host, run};
use crate::support::{gpu, l2, say, wide};

/// Low memory against separate launches and against itself. `off`: by how much of its length a gradient may be. `fused`: passes that must be.
fn check<T: Element>(gpu: &Gpu, case: Case, off: f64, fused: usize) {
    let host = Host::<T>::unit(&case, 5);
    let mut plan = Plan::new(gpu, case.problem::<T>(), case.options).unwrap();
    let text = format!("{plan:?}");
    assert_eq!(text.matches("fused: true").count(), fused, "{text}");
    // What a call leaves in the workspace is not the next one's business.
    let other = Host::<T>::unit(&case, 7);
    Device::new(gpu, case, &other).run(gpu, &mut plan, &other).unwrap();
    let found = Device::new(gpu, case, &host).run(gpu, &mut plan, &host).unwrap();
    assert_eq!(found.bits(), run(gpu, &case, &host).unwrap().bits(), "two plans");
    let separate = Options { route: Route::Chunked, chunk: Chunk::Auto };
    let expected = run(gpu, &Case { options: separate, ..case }, &host).unwrap();
    for (side, a, b) in [("d_img", &found.d_img, &expected.d_img), ("d_txt", &found.d_txt, &expected.d_txt)] {
        let length = l2(b.iter().map(|x| wide(*x)));
        let error = l2(a.iter().zip(b).map(|(a, b)| wide(*a) - wide(*b)));
        // A NaN is no number that is small enough.
        assert!(error <= off * length, "{side}: off {error:e} of {length:e}");
    }
    for (what, a, b) in [
        ("loss", found.loss, expected.loss),
        ("d_log_temp", found.d_log_temp, expected.d_log_temp),
        ("d_bias", found.d_bias, expected.d_bias),
    ] {
        assert!((a - b).abs() <= 1e-5 * b.abs(), "{what}: {a} and {b}");
    }
}

/// Whether launches are fused here at all, with the panels that the shapes below are made for.
fn device() -> Option<Gpu> {
    let gpu = gpu()?;
    if gpu.info().arch().has_wgmma() && gpu.info().sm_count == 132 {
        return Some(gpu);
    }
    say("skipped: not Hopper, or not of 132 multiprocessors");
    None
}

fn low_memory(rows: usize, cols: usize, dim: usize, workspace: usize) -> Case {
    let options = Options { route: Route::LowMemory, chunk: Chunk::Workspace(workspace) };
    Case { options, ..Case::new(rows, cols, dim) }
}

const OFF_BF16: f64 = 1.0 / 1024.0;

#[test]
fn in_f16() {
    let Some(gpu) = device() else { return };
    let options = Options { route: Route::LowMemory, chunk: Chunk::Auto };
    check::<f16>(&gpu, Case { options, ..Case::new(2500, 14_000, 1000) }, 1.0 / 4096.0, 1);
}

/// A workspace for two rounds of G: 1,920 texts that are summed are a launch of two rounds and one of a single round, of which most tiles have no texts; the
/// others go round a ring of two. Of 3,000 images the last 184 are two panels, whose columns eleven groups share.
#[test]
fn one_round_two_rounds_and_a_ring_of_two() {
    let Some(gpu) = device() else { return };
    check::<bf16>(&gpu, low_memory(3000, 4700, 768, 17_500_000), OFF_BF16, 2);
}

/// The same where gradients have gaps between rows: all columns go round the ring.
#[test]
fn a_ring_of_two_alone() {
    let Some(gpu) = device() else { return };
    check::<bf16>(&gpu, Case { output_gap: 8, ..low_memory(3000, 4700, 768, 17_500_000) }, OFF_BF16, 2);
}

/// Three groups of a last chunk of six panels, on either side, and a last tile of each dimension that is not full.
#[test]
fn groups_of_columns() {
    let Some(gpu) = device() else { return };
    check::<bf16>(&gpu, low_memory(3500, 7001, 760, 22_000_000), OFF_BF16, 2);
}

/// Rows that tensor copies cannot address.
#[test]
fn an_odd_number_of_features() {
    let Some(gpu) = device() else { return };
    check::<bf16>(&gpu, low_memory(3601, 4301, 515, 24_000_000), OFF_BF16, 2);
}
