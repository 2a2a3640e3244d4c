//! The Hopper mainloop by itself: all schedules, clusters, the layouts and widths, against exact sums of small integers.

use half::bf16;
use kernel_core::compile::{CubinCache, compile_in};
use kernel_core::cudarc::driver::DevicePtr;
use kernel_core::sm90::{GemmShape, MatrixAt, launch_config};
use kernel_core::{Arch, Error, MapType, Program, Result, TensorMap};

use crate::support::{gpu, noise, skip};

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
  DEV void tile(float (&acc)[Loop::ACC], u32 m0, u32 n0, u32) {
#pragma unroll
    for (u32 i = 0; i < Loop::ACC; ++i) {
      const u32 half = i / (COLUMNS / 2), at = i % (COLUMNS / 2), matrix = at % RUN / (RUN / 2);
      const u32 row = m0 + half * 64 + warp * 16 + lane / 4 + i % 4 / 2 * 8;
      const u32 column = n0 + at / RUN * RUN + at % (RUN / 2) / 4 * 8 + lane % 4 * 2 + i % 2;
      if (row < shape.m && column < shape.n) out[((u64)matrix * shape.m + row) * shape.n + column] = acc[i];
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
    Rounded,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: MapType,
    /// Whether M (N) is contiguous, not K.
    a_mn: bool,
    b_mn: bool,
    schedule: Schedule,
    cluster: u32,
    columns: usize,
    /// Two of them lie side by side in a tile.
    matrices: usize,
    dying_sums: bool,
    /// A is e5m2, not e4m3.
    e5m2: bool,
}

const CASES: &[Case] = &[
    case(MapType::Bf16, [false, false], Schedule::PingPong, 1, 128),
    case(MapType::Bf16, [true, true], Schedule::PingPong, 1, 128),
    case(MapType::Bf16, [false, true], Schedule::PingPong, 2, 128),
    case(MapType::Bf16, [false, false], Schedule::PingPong, 2, 192),
    case(MapType::Bf16, [true, true], Schedule::PingPong, 1, 192),
    case(MapType::U8, [false, false], Schedule::PingPong, 2, 128),
    case(MapType::U8, [false, false], Schedule::PingPong, 1, 192),
    case(MapType::Bf16, [false, true], Schedule::Cooperative, 1, 128),
    case(MapType::Bf16, [true, false], Schedule::Cooperative, 2, 128),
    case(MapType::U8, [false, false], Schedule::Cooperative, 1, 128),
    case(MapType::U8, [false, false], Schedule::Rounded, 1, 128),
    Case { e5m2: true, ..case(MapType::U8, [false, false], Schedule::Rounded, 1, 192) },
    Case { dying_sums: true, ..case(MapType::Bf16, [false, false], Schedule::PingPong, 1, 192) },
    Case { matrices: 2, ..case(MapType::Bf16, [false, false], Schedule::PingPong, 1, 128) },
    Case { matrices: 2, ..case(MapType::Bf16, [false, true], Schedule::PingPong, 2, 128) },
    Case { matrices: 2, ..case(MapType::Bf16, [false, false], Schedule::PingPong, 1, 192) },
    Case { matrices: 2, ..case(MapType::Bf16, [false, true], Schedule::PingPong, 1, 192) },
];

/// `U8` stands for FP8.
const fn case(dtype: MapType, [a_mn, b_mn]: [bool; 2], schedule: Schedule, cluster: u32, columns: usize) -> Case {
    Case { dtype, a_mn, b_mn, schedule, cluster, columns, matrices: 1, dying_sums: false, e5m2: false }
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
        match (self.dtype, self.e5m2) {
            (MapType::U8, true) => "E5M2ByE4M3",
            (MapType::U8, false) => "E4M3",
            _ => "BF16",
        }
    }

    fn form(&self) -> &'static str {
        match self.schedule {
            Schedule::PingPong => "PING_PONG",
            Schedule::Cooperative => "COOPERATIVE",
            Schedule::Rounded => "ROUNDED",
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
            match self.dtype {
                MapType::U8 if first && self.e5m2 => bytes.push([0xc0u8, 0xbc, 0x00, 0x3c, 0x40][(x + 2) as usize]),
                MapType::U8 => bytes.push([0xc0u8, 0xb8, 0x00, 0x38, 0x40][(x + 2) as usize]),
                _ => bytes.extend(bf16::from_f32(x as f32).to_bits().to_le_bytes()),
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
        let matrix = MatrixAt { address, dtype: self.dtype, rows, cols, row_stride };
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
        return eprintln!("skipped: needs compute capability 9.0, found {:?}", gpu.info().compute_capability);
    }
    // Edges in all directions; with four blocks each has several tiles, and the ring goes round.
    let (m, n, k) = (700, 600, 1100);
    let numbers: Vec<i32> = noise((m + 2 * n) * k, 5).into_iter().map(|x| (x * 2.49).round() as i32).collect();
    let at = |row: usize| &numbers[row * k..][..k];
    let product = |i: usize, j: usize| at(i).iter().zip(at(m + j)).map(|(a, b)| a * b).sum::<i32>() as f32;
    // The second matrix' outputs behind the first's.
    let expected: Vec<f32> = (0..2 * m * n).map(|i| product(i / n % m, i / (m * n) * n + i % n)).collect();
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
        for (i, (found, expected)) in gpu.download(&out).unwrap().iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "{case:?}: matrix {}, row {}, column {}", i / (m * n), i / n % m, i % n);
        }
    }
}
