//! The gated layer against reference-cpu.

use half::{bf16, f16};
use swiglu_kernel::kernel_core::half;
use swiglu_kernel::{DType, Gate, Layout, Mode, Options, Order, Route, workspace_bytes};

use crate::case::{Case, check, check_against_pass, check_weight_gradient};
use crate::support::{gpu, say};

const PLAIN: Case = Case {
    size: [200, 136, 72],
    layout: Layout::Packed(Order::GateFirst),
    gate: Gate::Silu,
    bias: false,
    route: Route::Auto,
    mode: Mode::InPlace,
    gap: 0,
};

#[test]
fn every_layout_and_gate_on_every_route() {
    let Some(gpu) = gpu() else { return };
    let hopper = gpu.info().arch().has_wgmma();
    for route in [Route::Fused, Route::Decode, Route::PortableDecode, Route::Portable] {
        if route == Route::Fused && !hopper {
            say(&format!("skipped: the route fused needs sm_90a, found {}", gpu.info().arch()));
            continue;
        }
        let decodes = matches!(route, Route::Decode | Route::PortableDecode);
        let size = if decodes { [37, 136, 72] } else { PLAIN.size };
        for layout in Layout::ALL {
            for (i, gate) in Gate::ALL.into_iter().enumerate() {
                let case = Case { size, layout, gate, route, bias: i % 2 == 0, gap: 8 * (i % 3), ..PLAIN };
                check::<bf16, bf16>(&gpu, &case, i % 2 == 1);
                check::<f16, f32>(&gpu, &case, i % 2 == 0);
            }
        }
    }
}

#[test]
fn f32_is_exact_to_f32() {
    let Some(gpu) = gpu() else { return };
    for layout in Layout::ALL {
        for gate in Gate::ALL {
            check::<f32, f32>(&gpu, &Case { layout, gate, bias: true, gap: 3, ..PLAIN }, gate == Gate::Relu);
        }
    }
}

#[test]
fn any_size_works() {
    let Some(gpu) = gpu() else { return };
    for size in
        [[1, 1, 1], [1, 8, 8], [2, 3, 5], [64, 7, 9], [65, 8, 8], [129, 24, 200], [333, 65, 129], [1, 4096, 1032]]
    {
        for (layout, gap) in
            [(Layout::Packed(Order::GateSecond), 0), (Layout::Linear(Order::GateFirst), 1), (Layout::Separate, 5)]
        {
            // Odd gaps misalign rows: only the portable route takes those.
            let route = if gap == 0 { Route::Auto } else { Route::Portable };
            let case = Case { size, layout, gap, route, bias: true, ..PLAIN };
            check::<bf16, f32>(&gpu, &case, false);
            check::<f16, f16>(&gpu, &Case { mode: Mode::Recompute, ..case }, false);
        }
    }
}

#[test]
fn decode_takes_every_number_of_rows() {
    let Some(gpu) = gpu() else { return };
    for rows in [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64] {
        for layout in [Layout::Packed(Order::GateFirst), Layout::Linear(Order::GateFirst)] {
            for route in [Route::Decode, Route::PortableDecode] {
                let case = Case { size: [rows, 520, 2200], layout, route, mode: Mode::Inference, ..PLAIN };
                check::<bf16, bf16>(&gpu, &case, false);
            }
        }
    }
}

#[test]
fn larger_problems_in_every_mode() {
    let Some(gpu) = gpu() else { return };
    for mode in Mode::ALL {
        for route in [Route::Auto, Route::Portable] {
            let case =
                Case { size: [1500, 520, 1096], mode, route, layout: Layout::Linear(Order::GateSecond), ..PLAIN };
            check::<bf16, bf16>(&gpu, &case, false);
            check::<f32, f32>(&gpu, &Case { route: Route::Auto, ..case }, true);
        }
    }
}

// Tiles of dx that fill a device of 132 multiprocessors, so that the gate's derivative is made beside it; the last tile rows and columns are partial.
#[test]
fn the_derivative_beside_dx_agrees() {
    let Some(gpu) = gpu() else { return };
    for (i, layout) in Layout::ALL.into_iter().enumerate() {
        for (j, gate) in Gate::ALL.into_iter().enumerate() {
            let size = if (i + j) % 2 == 0 { [3900, 1000, 200] } else { [4150, 1096, 328] };
            let case = Case { size, layout, gate, bias: i == j, gap: 8 * (j % 2), ..PLAIN };
            check_against_pass::<bf16>(&gpu, &case);
            check_against_pass::<f16>(&gpu, &case);
            // Among so many values there are some whose sign, and with it relu's slope, hangs on the order of a sum.
            if gate != Gate::Relu {
                let mode = if j == 1 { Mode::Recompute } else { Mode::InPlace };
                if i % 2 == 0 {
                    check::<bf16, f32>(&gpu, &Case { mode, ..case }, j == 0);
                } else {
                    check::<f16, f16>(&gpu, &Case { mode, ..case }, j == 0);
                }
            }
        }
    }
    // Several bands, and more columns of dx than one wave holds.
    for size in [[16_384, 1152, 136], [8192, 4096, 72]] {
        check_against_pass::<bf16>(&gpu, &Case { size, ..PLAIN });
        check::<bf16, bf16>(&gpu, &Case { size, ..PLAIN }, false);
    }
}

// Pairs of tiles of dW that are split in two on a device of 132 multiprocessors, behind one wave that is whole, or three behind two; an odd number of tile
// rows, partial ones, columns, and a last stretch of the sums.
#[test]
fn weight_gradients_in_parts_agree() {
    let Some(gpu) = gpu() else { return };
    let case = Case { size: [8010, 1400, 2296], gap: 8, ..PLAIN };
    check_weight_gradient::<bf16>(&gpu, &case);
    check_weight_gradient::<f16>(
        &gpu,
        &Case { size: [8010, 4592, 700], layout: Layout::Linear(Order::GateSecond), ..case },
    );
    check_weight_gradient::<bf16>(&gpu, &Case { size: [8010, 1152, 4304], gap: 0, ..case });
}

#[test]
fn operands_beyond_the_cache_work() {
    let Some(gpu) = gpu() else { return };
    let outputs = (gpu.info().l2_bytes / 2 / 1032 / 4).next_multiple_of(8) + 8;
    for layout in [Layout::Packed(Order::GateFirst), Layout::Linear(Order::GateSecond)] {
        check::<bf16, bf16>(&gpu, &Case { size: [300, 1032, outputs], layout, bias: true, ..PLAIN }, false);
    }
}

// Tiles of 96 columns on a device of 132 multiprocessors, and without a bias two of 64 at the end of a row; the last rows, columns and stretch of the sums are
// partial.
#[test]
fn wide_tiles_agree() {
    let Some(gpu) = gpu() else { return };
    let wide = Case { size: [300, 2600, 3096], mode: Mode::Inference, ..PLAIN };
    check::<bf16, bf16>(&gpu, &Case { bias: true, gap: 8, ..wide }, false);
    check::<f16, f16>(&gpu, &Case { layout: Layout::Linear(Order::GateSecond), gate: Gate::GeluTanh, ..wide }, false);
    check::<bf16, bf16>(&gpu, &Case { mode: Mode::InPlace, gap: 8, ..wide }, false);
    check::<f16, f16>(&gpu, &Case { layout: Layout::Packed(Order::GateSecond), ..wide }, false);
    check::<f16, f16>(&gpu, &Case { layout: Layout::Separate, gate: Gate::Sigmoid, bias: true, ..wide }, false);
}

#[test]
fn a_recomputing_backward_holds_a_slice_at_a_time() {
    let Some(gpu) = gpu() else { return };
    let [m, k, n] = [16_500, 40, 2200];
    let shapes = [
        (Layout::Packed(Order::GateSecond), Route::Auto, 0),
        (Layout::Linear(Order::GateFirst), Route::Auto, 8),
        (Layout::Separate, Route::Portable, 3),
    ];
    for (i, (layout, route, gap)) in shapes.into_iter().enumerate() {
        let case = Case { size: [m, k, n], layout, route, gap, bias: true, mode: Mode::Recompute, ..PLAIN };
        let (problem, options) = (case.problem(DType::Bf16), Options { route, mode: Mode::Recompute });
        let held = workspace_bytes(&gpu, &problem, &options).expect("a size");
        let in_place = workspace_bytes(&gpu, &problem, &Options { route, ..Options::default() }).expect("a size");
        assert!(held - in_place < m * 2 * n * 2, "{held} bytes of {case:?}, {in_place} without recomputation");
        check::<bf16, bf16>(&gpu, &case, i == 1);
        check::<f16, f32>(&gpu, &case, i != 1);
    }
    let case = Case { size: [m / 2, k, n], bias: true, mode: Mode::Recompute, ..PLAIN };
    check::<f32, f32>(&gpu, &case, true);
}
