// The two gradient GEMMs on Hopper: d_img = G * txt (A_LAYOUT K) or d_txt = G^T * img (A_LAYOUT MN). Either added to f32 sums over blocks, or, by the block
// that completes the sums, scaled and rounded to the gradient's type at once.
//   ELEMENT: BF16 or F16    A_LAYOUT: K or MN    COLUMNS of a tile: 128 or 192    DIRECT: 0 or 1
#include "factor.cuh"
#include "numerics.cuh"
#include "scalars.cuh"
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct GradientParams {
  u32 first;  // unless DIRECT: 1 overwrites the accumulators, 0 adds to them
  u32 row;    // where this block's rows begin in the output
  // Of DIRECT.
  GradientFactor factor;
  const float* before;  // sums over earlier blocks, from this block's first row on; null: there are none
  u64 before_stride;
  ReduceParams scalars;  // of the last product of a step; no sums: they are not asked for
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef Mainloop<ELEMENT, Major::A_LAYOUT, Major::MN, Schedule::PING_PONG, 1, 16384, COLUMNS> Loop;

struct GradientEpilogue {
  static constexpr u32 ACROSS = COLUMNS / 64;  // pieces of 16 rows x 64 columns beside each other
  const TensorMap* map;
  const GemmShape& shape;
  const GradientParams& params;
  u32 warp, lane;
  float factor;

  DEV void begin() {
    if (DIRECT) factor = params.factor.load();
  }
  DEV void tile(float (&acc)[COLUMNS], u32 m0, u32 n0, u32 staging) {
    const WarpStaging stage(staging, warp);
    const u32 row0 = m0 + warp * 16;
    if constexpr (DIRECT) {
#pragma unroll
      for (u32 i = 0; i < 2 * ACROSS; ++i) {
        const u32 row = row0 + i / ACROSS * 64, column = n0 + i % ACROSS * 64;
        if (params.before) add_before(acc + 32 * i, row + lane / 4, column + lane % 4 * 2);
        u32 packed[16];
#pragma unroll
        for (u32 j = 0; j < 16; ++j) packed[j] = ELEMENT::pack(acc[32 * i + 2 * j] * factor, acc[32 * i + 2 * j + 1] * factor);
        const u32 buffer = stage.buffer(i & 1);
        stage.acquire<1>(lane);
        stage.write_16bit(buffer, packed, lane);
        stage.publish();
        if (lane == 0) {
          tma::store_2d(map, buffer, (int)column, (int)(params.row + row));
          tma::commit();
        }
      }
    } else stage.store_sums<2, COLUMNS>(acc, map, n0, params.row + row0, params.first, lane);
  }
  // Adds the sums over earlier blocks to a piece, of which this lane holds rows `row` and 8 further on, two columns of every eight.
  DEV void add_before(float* piece, u32 row, u32 column) const {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 r = row + half * 8;
      const float* from = params.before + r * params.before_stride + column;
      float2 sums[8];
#pragma unroll
      for (u32 j = 0; j < 8; ++j) sums[j] = r < shape.m && column + j * 8 < shape.n ? *reinterpret_cast<const float2*>(from + j * 8) : float2{};
#pragma unroll
      for (u32 j = 0; j < 8; ++j) piece[4 * j + 2 * half] += sums[j].x, piece[4 * j + 2 * half + 1] += sums[j].y;
    }
  }
  DEV void finish() {
    if constexpr (DIRECT) reduce();
    if (lane == 0) tma::wait_all();
  }
  // The step's scalars, by a warp that is done early: the last block's tiles are the fewest, and its second consumer's.
  DEV void reduce() const {
    const u32 lane = threadIdx.x % WARP;
    if (!params.scalars.sums || blockIdx.x != gridDim.x - 1 || threadIdx.x / WARP != 2 * WARPGROUP / WARP) return;
    Totals totals(params.scalars, lane, WARP);
    totals.loss = warp_sum(totals.loss), totals.q = warp_sum(totals.q), totals.q_x = warp_sum(totals.q_x);
    if (lane == 0) totals.store(params.scalars);
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1)
siglip_gradient_sm90(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap out,
                     const __grid_constant__ GemmShape shape, const __grid_constant__ GradientParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  GradientEpilogue epilogue = {&out, shape, params, threadIdx.x / WARP % 4, threadIdx.x % WARP, 0.f};
  Loop(shared).run(a, b, shape, epilogue);
}
#endif
