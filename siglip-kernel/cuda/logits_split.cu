// The logit product on Hopper at f32 accuracy, from split f16 planes, with the pair loss and its gradient in the epilogue: writes q as two f16 planes
// with a scale of every 64 x 64 pairs' own (only with WITH_GRADIENT), and per-warp sums.
//   WITH_GRADIENT: 0 or 1
#include "plane_scale.cuh"
#include "sigmoid_f32.cuh"
#include "sm90/split_mainloop.cuh"
#include "sm90/store.cuh"

struct LogitsSplitParams {
  ScalarArg log_temp, bias;
  const float *img_inverse, *txt_inverse;  // 1 / scale of every 64 rows, from the block's first on
  float* g_inverse;                        // of every 64 x 64 pairs: row by row of the block, g_inverse_stride apart
  u32 g_inverse_stride;
  u32 g_plane;      // rows between G's planes
  float* positive;  // q of positive pairs, by row of the block
  u32 first;        // 1: this launch opens the sums, 0: it adds to them
  i64 diagonal;     // column - row of a positive pair, relative to this block's origin
  double* sums;     // [gridDim.x * 8][3]
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Staging: a box of 64 x 64 elements, and behind it the warps' maxima in two places that alternate.
typedef SplitMainloop<Major::K, Major::K, 192, WITH_GRADIENT ? 9216 : 0> Loop;

struct LogitsSplitEpilogue {
  const TensorMap* map_g;
  const GemmShape& shape;
  const SplitPlanes& planes;
  const LogitsSplitParams& params;
  u32 warp, lane, turns;
  LogitConstants constants;
  LogitSums sums;

  DEV void begin() { constants = LogitConstants(params.log_temp.load(), params.bias.load()); }
  DEV float factor(u32, u32) const { return 1.f; }

  DEV void tile(float (&sum)[Loop::TILE_N / 2], u32 m0, u32 n0, u32 staging) {
    const int row = (int)(m0 + warp * 16);
    const float row_inverse = params.img_inverse[m0 / 64];
#pragma unroll
    for (u32 part = 0; part < Loop::TILE_N / 64; ++part) {
      const u32 column = n0 + part * 64;
      if (column >= shape.n) break;
      const LogitPlace place = {params.diagonal + row - (i64)column, (int)shape.m - row, (int)(shape.n - column), lane, params.positive + row};
      const bool plain = place.rows >= 16 && place.cols >= 64 && (place.diagonal <= -16 || place.diagonal >= 64);
      // The smaller first: nothing overflows or vanishes on the way that would not at its end.
      const float column_inverse = params.txt_inverse[column / 64];
      const float small = fminf(row_inverse, column_inverse), large = fmaxf(row_inverse, column_inverse);
      float x[32];
#pragma unroll
      for (u32 i = 0; i < 32; ++i) x[i] = sum[32 * part + i] * small * large;
      if (plain) logit_pairs<WITH_GRADIENT, false>(x, sums, constants, place);
      else logit_pairs<WITH_GRADIENT, true>(x, sums, constants, place);
      if constexpr (WITH_GRADIENT) {
        const PlaneScale scale(largest(x, staging + Loop::STAGING_BYTES - 1024));
        if (threadIdx.x % WARPGROUP == 0) params.g_inverse[(u64)(m0 / 64) * params.g_inverse_stride + column / 64] = scale.inverse;
        const WarpStaging stage(staging, warp);
#pragma unroll
        for (u32 plane = 0; plane < 2; ++plane) {
          u32 packed[16];
#pragma unroll
          for (u32 i = 0; i < 16; ++i) {
            if (plane == 0) x[2 * i] *= scale.scale, x[2 * i + 1] *= scale.scale;
            packed[i] = pack_f16(x[2 * i], x[2 * i + 1]);
            if (plane == 0) x[2 * i] -= f16_to_float((u16)packed[i]), x[2 * i + 1] -= f16_to_float((u16)(packed[i] >> 16));
          }
          stage.acquire<0>(lane);
          stage.write_16bit(stage.buffer(0), packed, lane);
          stage.publish();
          if (lane == 0) {
            tma::store_2d(map_g, stage.buffer(0), (int)column, row + (int)(plane * params.g_plane));
            tma::commit();
          }
        }
      }
    }
  }

  // Bits of the largest of the 64 x 64 q of this warpgroup; numbers only.
  DEV u32 largest(const float (&q)[32], u32 maxima) {
    float most = 0.f;
#pragma unroll
    for (u32 i = 0; i < 32; ++i) most = fmaxf(most, q[i]);
    const u32 of_warp = __reduce_max_sync(~0u, __float_as_uint(most)), slots = maxima + (turns & 1) * 16;
    ++turns;
    if (lane == 0) asm volatile("st.shared.u32 [%0], %1;" ::"r"(slots + warp * 4), "r"(of_warp) : "memory");
    named_barrier(2 + threadIdx.x / WARPGROUP, WARPGROUP);
    u32 r[4];
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(slots) : "memory");
    return max_of(max_of(r[0], r[1]), max_of(r[2], r[3]));
  }

  DEV void finish() {
    if (WITH_GRADIENT && lane == 0) tma::wait_all();
    const double totals[3] = {warp_sum(sums.loss), warp_sum(sums.q), warp_sum(sums.q_x)};
    if (lane != 0) return;
    double* slot = params.sums + (u64)(blockIdx.x * 8 + threadIdx.x / WARP - 4) * 3;
#pragma unroll
    for (u32 i = 0; i < 3; ++i) slot[i] = (params.first ? 0.0 : slot[i]) + totals[i];
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1)
siglip_logits_split(const __grid_constant__ TensorMap img, const __grid_constant__ TensorMap txt, const __grid_constant__ TensorMap g,
                    const __grid_constant__ GemmShape shape, const __grid_constant__ SplitPlanes planes,
                    const __grid_constant__ LogitsSplitParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  LogitsSplitEpilogue epilogue = {&g, shape, planes, params, threadIdx.x / WARP % 4, threadIdx.x % WARP, 0, {}, {}};
  Loop(shared).run(img, txt, shape, planes, epilogue);
}
#endif
