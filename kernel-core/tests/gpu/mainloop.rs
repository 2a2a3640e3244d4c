//! The Hopper mainloop by itself: all schedules, clusters, the layouts and widths, against exact sums of small integers.

use half::bf16;
use kernel_core::compile::{CubinCache, compile_in};
use kernel_core::cudarc::driver::DevicePtr;
use kernel_core::sm90::{GemmShape, MatrixAt, launch_config};
use kernel_core::{Arch, Error, MapType, Program, Result, TensorMap};

use self::Elements::{Bf16, E4M3, S8, U8ByS8};
use crate::support::{gpu, noise, say, skip};

static MAINLOOP: Program = Program {
    name: "kernel-core-tests-mainloop",
    source: r#"
#include "sm90/mainloop.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef Mainloop<ELEMENT, Major::A_LAYOUT, Major::B_LAYOUT, Schedule::FORM, CLUSTER_SIZE, 0, COLUMNS, COLUMNS == 192 ? 240 : 232, DYING_SUMS> Loop;
// Columns of one matrix before those of the other, of two.
constexpr u32 RUN = MATRICES == 2 ? Loop::TwoMatrices::BOX : COLUMNS;

struct Store {
  float* out;
  const GemmShape& shape;
  u32 warp, lane;
  DEV void begin() {}
  // 2 to the row's and the group's numbers, at most 3 of either.
  DEV void scales(float (&of)[2], u32 m0, u32 k) const {
    const u32 row = m0 + warp * 16 + lane / 4, group = k / Loop::TILE_K;
    for (u32 i = 0; i < 2; ++i) of[i] = (float)(1 << ((row + 8 * i) % 4 + group % 4));
  }
  template <class Sums> DEV void tile(const Sums& acc, u32 m0, u32 n0, u32) {
#pragma unroll
    for (u32 i = 0; i < Loop::ACC; ++i) {
      const u32 half = i / (COLUMNS / 2), at = i % (COLUMNS / 2), matrix = at % RUN / (RUN / 2);
      const u32 row = m0 + half * 64 + warp * 16 + lane / 4 + i % 4 / 2 * 8;
      const u32 column = n0 + at / RUN * RUN + at % (RUN / 2) / 4 * 8 + lane % 4 * 2 + i % 2;
      if (row < shape.m && column < shape.n) out[((u64)matrix * shape.m + row) * shape.n + column] = (float)acc[i];
    }
  }
  DEV void finish() {}
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
product(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap b2,
        const __grid_constant__ GemmShape shape, float* out) {
  extern __shared__ __align__(1024) u8 shared[];
  Store store = {out, shape, threadIdx.x / WARP % 4, threadIdx.x % WARP};
  if constexpr (MATRICES == 2) Loop(shared).run(a, Loop::TwoMatrices{b, b2}, shape, store);
  else Loop(shared).run(a, b, shape, store);
}
#endif
"#,
    headers: &[],
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    PingPong,
    Cooperative,
    Scaled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Elements {
    Bf16,
    E4M3,
    S8,
    /// A unsigned, B signed.
    U8ByS8,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    /// Whether M (N) is contiguous, not K.
    a_mn: bool,
    b_mn: bool,
    schedule: Schedule,
    cluster: u32,
    columns: usize,
    /// Two of them lie side by side in a tile.
    matrices: usize,
    dying_sums: bool,
    elements: Elements,
}

const CASES: &[Case] = &[
    case(Bf16, [false, false], Schedule::PingPong, 1, 128),
    case(Bf16, [true, true], Schedule::PingPong, 1, 128),
    case(Bf16, [false, true], Schedule::PingPong, 2, 128),
    case(Bf16, [false, false], Schedule::PingPong, 2, 192),
    case(Bf16, [true, true], Schedule::PingPong, 1, 192),
    case(E4M3, [false, false], Schedule::PingPong, 2, 128),
    case(E4M3, [false, false], Schedule::PingPong, 1, 192),
    case(Bf16, [false, true], Schedule::Cooperative, 1, 128),
    case(Bf16, [true, false], Schedule::Cooperative, 2, 128),
    case(E4M3, [false, false], Schedule::Cooperative, 1, 128),
    case(S8, [false, false], Schedule::PingPong, 2, 128),
    Case { dying_sums: true, ..case(S8, [false, false], Schedule::PingPong, 1, 128) },
    case(S8, [false, false], Schedule::Cooperative, 1, 128),
    case(U8ByS8, [false, false], Schedule::PingPong, 1, 192),
    case(U8ByS8, [false, false], Schedule::Scaled, 1, 128),
    case(U8ByS8, [false, false], Schedule::Scaled, 1, 192),
    Case { dying_sums: true, ..case(Bf16, [false, false], Schedule::PingPong, 1, 192) },
    Case { matrices: 2, ..case(Bf16, [false, false], Schedule::PingPong, 1, 128) },
    Case { matrices: 2, ..case(Bf16, [false, true], Schedule::PingPong, 2, 128) },
    Case { matrices: 2, ..case(Bf16, [false, false], Schedule::PingPong, 1, 192) },
    Case { matrices: 2, ..case(Bf16, [false, true], Schedule::PingPong, 1, 192) },
];

const fn case(elements: Elements, [a_mn, b_mn]: [bool; 2], schedule: Schedule, cluster: u32, columns: usize) -> Case {
    Case { elements, a_mn, b_mn, schedule, cluster, columns, matrices: 1, dying_sums: false }
}

impl Case {
    fn defines(&self) -> Vec<(&'static str, String)> {
        let major = |mn| if mn { "MN" } else { "K" }.to_owned();
        vec![
            ("ELEMENT", self.element().to_owned()),
            ("A_LAYOUT", major(self.a_mn)),
            ("B_LAYOUT", major(self.b_mn)),
            ("FORM", self.form().to_owned()),
            ("CLUSTER_SIZE", self.cluster.to_string()),
            ("COLUMNS", self.columns.to_string()),
            ("MATRICES", self.matrices.to_string()),
            ("DYING_SUMS", self.dying_sums.to_string()),
        ]
    }

    fn element(&self) -> &'static str {
        match self.elements {
            Bf16 => "BF16",
            E4M3 => "E4M3",
            S8 => "S8",
            U8ByS8 => "U8ByS8",
        }
    }

    fn dtype(&self) -> MapType {
        if self.elements == Bf16 { MapType::Bf16 } else { MapType::U8 }
    }

    /// What A holds where the test has `x`, -2 to 2.
    fn of_a(&self, x: i32) -> i32 {
        if self.elements == U8ByS8 { 100 * (x + 2) / 4 * 2 } else { x }
    }

    /// What the sums over K of row i are times, at k.
    fn scale(&self, row: usize, k: usize) -> i32 {
        if self.schedule == Schedule::Scaled { 1 << (row % 4 + k / 128 % 4) } else { 1 }
    }

    fn form(&self) -> &'static str {
        match self.schedule {
            Schedule::PingPong => "PING_PONG",
            Schedule::Cooperative => "COOPERATIVE",
            Schedule::Scaled => "SCALED",
        }
    }

    /// The bytes of an operand whose element (i, k) is `value(i, k)`, -2 to 2, and its shape and row stride in memory. `first`: it is A.
    fn operand(
        &self,
        first: bool,
        extent: usize,
        k: usize,
        value: impl Fn(usize, usize) -> i32,
    ) -> (Vec<u8>, [usize; 3]) {
        let mn = if first { self.a_mn } else { self.b_mn };
        let [rows, cols] = if mn { [k, extent] } else { [extent, k] };
        let stride = cols.next_multiple_of(16);
        let mut bytes = Vec::new();
        for (row, col) in (0..rows).flat_map(|row| (0..stride).map(move |col| (row, col))) {
            // What lies between two rows must not be read.
            let x = if col >= cols {
                2
            } else if mn {
                value(col, row)
            } else {
                value(row, col)
            };
            let x = if first { self.of_a(x) } else { x };
            match self.elements {
                E4M3 => bytes.push([0xc0u8, 0xb8, 0x00, 0x38, 0x40][(x + 2) as usize]),
                S8 | U8ByS8 => bytes.push(x as u8),
                Bf16 => bytes.extend(bf16::from_f32(x as f32).to_bits().to_le_bytes()),
            }
        }
        (bytes, [rows, cols, stride])
    }

    /// How many rows or columns of B a copy brings.
    fn b_box(&self) -> usize {
        match self.matrices {
            1 if self.b_mn => 64,
            1 => self.columns / self.cluster as usize,
            _ if self.columns == 192 => 32,
            _ => 64,
        }
    }

    fn map(&self, address: u64, [rows, cols, row_stride]: [usize; 3], mn: bool, extent: usize) -> Result<TensorMap> {
        let matrix = MatrixAt { address, dtype: self.dtype(), rows, cols, row_stride };
        if mn { matrix.boxes([extent, 64]) } else { matrix.k_major_rows(extent) }
    }
}

#[test]
fn every_form_compiles_without_a_gpu() {
    for case in CASES {
        match compile_in(&CubinCache::disabled(), &MAINLOOP, &Arch::parse("sm_90a").unwrap(), &case.defines()) {
            Ok(cubin) => assert!(cubin.image.starts_with(b"\x7fELF")),
            Err(error @ Error::MissingLibrary { .. }) => return skip(&format!("no NVRTC ({error})")),
            Err(error) => panic!("{case:?}: {error}"),
        }
    }
}

#[test]
fn every_form_multiplies_exactly() {
    let Some(gpu) = gpu() else { return };
    if gpu.info().compute_capability != (9, 0) {
        return say(&format!("skipped: needs compute capability 9.0, found {:?}", gpu.info().compute_capability));
    }
    // Edges in all directions; with four blocks each has several tiles, and the ring goes round.
    let (m, n, k) = (700, 600, 1100);
    let numbers: Vec<i32> = noise((m + 2 * n) * k, 5).into_iter().map(|x| (x * 2.49).round() as i32).collect();
    let at = |row: usize| &numbers[row * k..][..k];
    let product = |case: &Case, i: usize, j: usize| -> f32 {
        let term = |(k, (a, b)): (usize, (&i32, &i32))| case.of_a(*a) * b * case.scale(i, k);
        at(i).iter().zip(at(m + j)).enumerate().map(term).sum::<i32>() as f32
    };
    for case in CASES {
        let kernel = match gpu.kernel(&MAINLOOP, "product", &case.defines()) {
            Ok(kernel) => kernel,
            Err(error @ Error::MissingLibrary { .. }) => return skip(&format!("no NVRTC ({error})")),
            Err(error) => panic!("{case:?}: {error}"),
        };
        let (a, a_shape) = case.operand(true, m, k, |i, k| at(i)[k]);
        let (b, b_shape) = case.operand(false, n, k, |j, k| at(m + j)[k]);
        let (b2, _) = case.operand(false, n, k, |j, k| at(m + n + j)[k]);
        let [a, b, b2] = [a, b, b2].map(|bytes| gpu.upload(&bytes).unwrap());
        let out = gpu.upload(&vec![f32::NAN; case.matrices * m * n]).unwrap();
        {
            let (a, _a) = a.device_ptr(gpu.stream());
            let (b, _b) = b.device_ptr(gpu.stream());
            let (b2, _b2) = b2.device_ptr(gpu.stream());
            let (to, _to) = out.device_ptr(gpu.stream());
            let map_a = case.map(a, a_shape, case.a_mn, if case.a_mn { 64 } else { 128 }).unwrap();
            let [map_b, map_b2] = [b, b2].map(|b| case.map(b, b_shape, case.b_mn, case.b_box()).unwrap());
            let shape = GemmShape::new(m, n, k, 2);
            let config = launch_config(gpu.info(), 4, case.cluster);
            // SAFETY: the maps describe the operands, `out` holds m * n sums of each matrix, and all outlive the launch.
            unsafe { kernel.launch(gpu.stream(), &config, &[&map_a, &map_b, &map_b2, &shape, &to]).unwrap() };
        }
        for (i, found) in gpu.download(&out).unwrap().into_iter().enumerate() {
            // The second matrix' outputs behind the first's.
            let expected = product(case, i / n % m, i / (m * n) * n + i % n);
            assert_eq!(found, expected, "{case:?}: matrix {}, row {}, column {}", i / (m * n), i / n % m, i % n);
        }
    }
}
