// The two gradient GEMMs on Hopper: d_img = G * txt (A_LAYOUT K) or d_txt = G^T * img (A_LAYOUT MN). Either accumulated in f32 over blocks, or, where
// one block holds all of K, scaled and rounded to the gradient's type at once.
//   ELEMENT: BF16 or F16    A_LAYOUT: K or MN    COLUMNS of a tile: 128 or 192    DIRECT: 0 or 1
#include "factor.cuh"
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct GradientParams {
  GradientFactor factor;  // of DIRECT
  u32 first;              // otherwise: 1 overwrites the accumulators, 0 adds to them
  u32 row;                // where this block's rows begin in the output
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef Mainloop<ELEMENT, Major::A_LAYOUT, Major::MN, Schedule::PING_PONG, 1, 16384, COLUMNS> Loop;

struct GradientEpilogue {
  const TensorMap* map;
  const GradientParams& params;
  u32 warp, lane;
  float factor;

  DEV void begin() {
    if (DIRECT) factor = params.factor.load();
  }
  DEV void tile(float (&acc)[COLUMNS], u32 m0, u32 n0, u32 staging) {
    const WarpStaging stage(staging, warp);
    const u32 row0 = params.row + m0 + warp * 16;
    if constexpr (DIRECT) {
      constexpr u32 A_ROW = COLUMNS / 64;  // pieces
#pragma unroll
      for (u32 i = 0; i < 2 * A_ROW; ++i) {  // 16 rows x 64 columns at a time
        u32 packed[16];
#pragma unroll
        for (u32 j = 0; j < 16; ++j) packed[j] = ELEMENT::pack(acc[32 * i + 2 * j] * factor, acc[32 * i + 2 * j + 1] * factor);
        const u32 buffer = stage.buffer(i & 1);
        stage.acquire<1>(lane);
        stage.write_16bit(buffer, packed, lane);
        stage.publish();
        if (lane == 0) {
          tma::store_2d(map, buffer, (int)(n0 + i % A_ROW * 64), (int)(row0 + i / A_ROW * 64));
          tma::commit();
        }
      }
    } else stage.store_sums<2, COLUMNS>(acc, map, n0, row0, params.first, lane);
  }
  DEV void finish() {
    if (lane == 0) tma::wait_all();
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1)
siglip_gradient_sm90(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap out,
                     const __grid_constant__ GemmShape shape, const __grid_constant__ GradientParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  GradientEpilogue epilogue = {&out, params, threadIdx.x / WARP % 4, threadIdx.x % WARP, 0.f};
  Loop(shared).run(a, b, shape, epilogue);
}
#endif
