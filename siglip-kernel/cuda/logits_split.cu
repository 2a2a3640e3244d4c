// The logit product on Hopper at f32 accuracy, from split f16 planes, with the pair loss and its gradient in the epilogue: writes q as two f16 planes
// with a scale of every 64 x 64 pairs' own (only with WITH_GRADIENT), and per-warp sums.
//   WITH_GRADIENT: 0 or 1
#include "plane_scale.cuh"
#include "ptx/shared.cuh"
#include "sigmoid_f32.cuh"
#include "slot.cuh"
#include "sm90/split_mainloop.cuh"
#include "sm90/store.cuh"

struct LogitsSplitParams {
  ScalarArg log_temp, bias;
  const float *img_inverse, *txt_inverse;  // 1 / scale of every 64 rows, from the block's first on
  u16* g;                                  // the high plane, whole tiles of 128 x 128; the low one g_plane rows below
  u64 g_stride, g_plane;
  float* g_inverse;                        // of every 64 x 64 pairs: row by row of the block, g_inverse_stride apart
  u64 g_inverse_stride;
  float* positive;  // q of positive pairs, by row of the block
  u32 first;        // 1: this launch opens the sums, 0: it adds to them
  i64 diagonal;     // column - row of a positive pair, relative to this block's origin
  double* sums;     // [gridDim.x * 8][3]
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Staging: 16 x 64 elements a warp.
typedef SplitMainloop<Major::K, Major::K, 192, WITH_GRADIENT ? 8192 : 0> Loop;

struct LogitsSplitEpilogue {
  static constexpr u32 PARTS = Loop::TILE_N / 64;
  const GemmShape& shape;
  const LogitsSplitParams& params;
  u32 warp, lane, m0, n0, turns;
  LogitConstants constants;
  LogitSums sums;
  float row_inverse, inverse[PARTS];

  DEV void begin() { constants = LogitConstants(params.log_temp.load(), params.bias.load()); }
  DEV void open(u32 m0_, u32 n0_) {
    constexpr float LARGE = 1152921504606846976.f;  // 2^60: what is more waits for the other side's, which may make up for it
    m0 = m0_, n0 = n0_;
    const float of_rows = m0 < shape.m ? params.img_inverse[m0 / 64] : 1.f;
    row_inverse = fminf(of_rows, LARGE);
#pragma unroll
    for (u32 part = 0; part < PARTS; ++part) {
      const u32 column = n0 + part * 64;
      inverse[part] = column < shape.n ? params.txt_inverse[column / 64] * (of_rows > LARGE ? of_rows * (1.f / LARGE) : 1.f) : 0.f;
    }
  }
  DEV float factor(u32) const { return row_inverse; }

  DEV void close(float (&sum)[Loop::TILE_N / 2], u32 staging, u32 scratch) {
    if (m0 >= shape.m) return;
    const int row = (int)(m0 + warp * 16);
#pragma unroll
    for (u32 part = 0; part < PARTS; ++part) {
      const u32 column = n0 + part * 64;
      if (column >= shape.n) break;
      const LogitPlace place = {params.diagonal + row - (i64)column, (int)shape.m - row, (int)(shape.n - column), lane, params.positive + row};
      float x[32];
#pragma unroll
      for (u32 i = 0; i < 32; ++i) x[i] = sum[32 * part + i] * inverse[part];
      const float bound = logit_pairs<WITH_GRADIENT>(x, sums, constants, place);
      if constexpr (WITH_GRADIENT) {
        const PlaneScale scale(largest(bound, scratch));
        if (threadIdx.x % WARPGROUP == 0) params.g_inverse[m0 / 64 * params.g_inverse_stride + column / 64] = scale.inverse;
        u32 high[16], low[16];
#pragma unroll
        for (u32 i = 0; i < 16; ++i) split(x[2 * i] * scale.scale, x[2 * i + 1] * scale.scale, high[i], low[i]);
        const WarpStaging stage(staging, warp);
        u16* to = params.g + (u64)row * params.g_stride + column;
        stage.write_16bit(stage.buffer(0), high, lane);
        stage.copy_16bit(to, params.g_stride, stage.buffer(0), lane);
        stage.write_16bit(stage.buffer(0), low, lane);
        stage.copy_16bit(to + params.g_plane * params.g_stride, params.g_stride, stage.buffer(0), lane);
      }
    }
  }

  // Bits of the largest bound of this warpgroup's threads; of numbers only. Two places in turn: who is late still reads the other.
  DEV u32 largest(float bound, u32 scratch) {
    const u32 of_warp = __reduce_max_sync(~0u, __float_as_uint(bound)), slots = scratch + turns % 2 * 16;
    ++turns;
    if (lane == 0) store_shared(slots + warp * 4, of_warp);
    named_barrier(2 + threadIdx.x / WARPGROUP, WARPGROUP);
    const uint4 r = load_shared_vector(slots);
    return max_of(max_of(r.x, r.y), max_of(r.z, r.w));
  }

  DEV void finish() {
    add_to_slot(params.sums, blockIdx.x * 8 + threadIdx.x / WARP - 4, sums.loss, sums.q, sums.q_x, params.first, lane);
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1)
siglip_logits_split(const __grid_constant__ TensorMap img, const __grid_constant__ TensorMap txt, const __grid_constant__ GemmShape shape,
                    const __grid_constant__ SplitPlanes planes, const __grid_constant__ LogitsSplitParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  LogitsSplitEpilogue epilogue = {shape, params, threadIdx.x / WARP % 4, threadIdx.x % WARP, 0, 0, 0, {}, {}, 0.f, {}};
  Loop(shared).run(img, txt, shape, planes, epilogue);
}
#endif
