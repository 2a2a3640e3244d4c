// The gated projections for a few rows on Hopper: as decode.cu, but a producer warp keeps a ring of stages full by TMA, which holds more bytes in flight
// and leaves the load and store units to the tensor cores' operands.
//
// A block owns `width` columns of z (a multiple of 8, at most 128) and all of K; each of its eight consumer warps owns 16 of them, of both
// projections.
//   ELEMENT: BF16 or F16    WEIGHTS: MN ([K, N] each) or K ([N, K] each)    TOKENS: 16, 32 or 64
#include "decode.cuh"
#include "ptx/barrier.cuh"
#include "ptx/tma.cuh"
#include "sm90/ring.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr u32 CONSUMERS = 8, THREADS = (1 + CONSUMERS) * WARP, TILE_K = 64, X_BYTES = TOKENS * TILE_K * 2;

struct DecodeSm90Params {
  DecodeOutput out;
  u32 inputs, width, stages;
};

// Tiles of x, and of [N, K] weights, have rows of 128 bytes along K in 128-byte swizzle; tiles of [K, N] weights have rows of `width` elements
// (an odd multiple of 16 bytes where it can be chosen, so that eight rows of one ldmatrix touch all banks).
DEV u32 swizzled(u32 tile, u32 row, u32 k) { return tile + row * 128 + (((k >> 3) ^ (row & 7)) << 4); }

DEV void load_weights(u32 (&fragment)[4], u32 tile, u32 n, u32 k, u32 width, u32 lane) {
  if constexpr (LINEAR) load_matrix_x4(fragment, swizzled(tile, n + lane % 16, k + lane / 16 * 8));
  else load_matrix_x4_transposed(fragment, tile + ((k + lane / 16 * 8 + lane % 8) * width + n + lane / 8 % 2 * 8) * 2);
}

KERNEL __launch_bounds__(THREADS, 1)
swiglu_decode_sm90(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap gate, const __grid_constant__ TensorMap up,
                   const __grid_constant__ DecodeSm90Params params) {
  extern __shared__ __align__(1024) u8 shared[];
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, width = params.width, stages = params.stages;
  const u32 base = (shared_address(shared) + 1023u) & ~1023u, half = width * TILE_K * 2, stage_bytes = (X_BYTES + 2 * half + 1023u) & ~1023u;
  const u32 full = base + stages * stage_bytes, empty = full + 8 * stages, steps = ceil_div(params.inputs, TILE_K), n0 = blockIdx.x * width;
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < stages; ++i) {
      mbarrier::init(full + 8 * i, 1);
      mbarrier::init(empty + 8 * i, CONSUMERS);
    }
    mbarrier::fence_init();
  }
  __syncthreads();
  grid_dependency_wait();
  grid_dependency_launch();

  RingPlace ring;
  if (warp == CONSUMERS) {
    if (lane != 0) return;
    for (u32 step = 0; step < steps; ++step) {
      const RingPlace at = ring.next(stages);
      const u32 barrier = full + 8 * at.stage, to = base + at.stage * stage_bytes;
      const int k = (int)(step * TILE_K);
      mbarrier::wait(empty + 8 * at.stage, at.parity ^ 1);
      mbarrier::expect_bytes(barrier, X_BYTES + 2 * half);
      const int column = LINEAR ? k : (int)n0, row = LINEAR ? (int)n0 : k;
      tma::load_2d(to + X_BYTES, &gate, barrier, column, row);
      tma::load_2d(to + X_BYTES + half, &up, barrier, column, row);
      tma::load_2d(to, &x, barrier, k, 0);
    }
    return;
  }
  Accumulators acc = {};
  const u32 mine = warp * 16;
  for (u32 step = 0; step < steps; ++step) {
    const RingPlace at = ring.next(stages);
    const u32 tile_x = base + at.stage * stage_bytes, tile = tile_x + X_BYTES;
    mbarrier::wait(full + 8 * at.stage, at.parity);
    if (mine < width) {
#pragma unroll
      for (u32 k = 0; k < TILE_K; k += 16) {
        u32 gate_fragment[4], up_fragment[4];
        load_weights(gate_fragment, tile, mine, k, width, lane);
        load_weights(up_fragment, tile + half, mine, k, width, lane);
#pragma unroll
        for (u32 j = 0; j < TOKENS / 16; ++j) {
          u32 b[4];
          load_matrix_x4(b, swizzled(tile_x, j * 16 + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
          multiply(acc, j, gate_fragment, up_fragment, b);
        }
      }
    }
    __syncwarp();
    if (lane == 0) mbarrier::arrive(empty + 8 * at.stage);
  }
  if (mine < width) finish(acc, params.out, n0 + mine, min_of(n0 + width, params.out.outputs), lane);
}
#endif
