// The logit GEMM on Hopper with the pair loss and its gradient in the epilogue: reads image rows and text rows, writes
// G = gain * dL/dz (only with WITH_GRADIENT) and per-warp sums. Logits never reach memory.
//   ELEMENT: BF16 or F16    OPERAND: ELEMENT, or E4M3 for rows as quantize_fp8.cu leaves them    WITH_GRADIENT: 0 or 1    CLUSTER_SIZE: 1 or 2
#include "sigmoid.cuh"
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct LogitsParams {
  ScalarArg log_temp, bias;
  float gain_log2;
  u32 first;          // 1: this launch opens the sums, 0: it adds to them
  i64 diagonal;       // column - row of a positive pair, relative to this block's origin
  double* sums;       // [gridDim.x * 8][3]
  // Of E4M3: log2 of the factors of images and of texts, and the positive pairs' dot products from this block's first row on.
  const int* exponents;
  const float* positives;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// A whole tile of G is staged at once: the epilogue never waits for its own stores.
constexpr bool FP8 = OPERAND::KIND == Kind::E4M3;
typedef Mainloop<OPERAND, Major::K, Major::K, Schedule::PING_PONG, CLUSTER_SIZE, WITH_GRADIENT ? 32768 : 0> Loop;

struct LogitsEpilogue {
  const TensorMap* map_g;
  const GemmShape& shape;
  const LogitsParams& params;
  PairConstants constants;
  PairSums sums;
  u32 warp, lane;

  DEV int unit_log2() const { return FP8 ? -(params.exponents[0] + params.exponents[1]) : 0; }
  DEV void begin() { constants = PairConstants(params.log_temp.load(), params.bias.load(), params.gain_log2, unit_log2()); }
  DEV void tile(float (&acc)[128], u32 m0, u32 n0, u32 staging) {
    const WarpStaging stage(staging, warp);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 row = m0 + half * 64 + warp * 16;
      const FragmentPlace place = {params.diagonal + (i64)row - (i64)n0, (int)shape.m - (int)row, (int)shape.n - (int)n0, lane,
                                   FP8 ? params.positives + row : nullptr};
      u32 packed[32];
      pairs<ELEMENT, WITH_GRADIENT, 64>(acc + 64 * half, packed, sums, constants, place);
      if constexpr (WITH_GRADIENT) {
        stage.acquire<1>(lane);
        stage.write_16bit(stage.buffer(2 * half), packed, lane);
        stage.write_16bit(stage.buffer(2 * half + 1), packed + 16, lane);
        stage.publish();
        if (lane == 0) {
          tma::store_2d(map_g, stage.buffer(2 * half), (int)n0, (int)row);
          tma::store_2d(map_g, stage.buffer(2 * half + 1), (int)n0 + 64, (int)row);
          tma::commit();
        }
      }
    }
  }
  DEV void finish() {
    if (WITH_GRADIENT && lane == 0) tma::wait_all();
    const u32 slot = blockIdx.x * 8 + threadIdx.x / WARP - 4;
    store_sums(params.sums, slot, sums, params.first, constants.inverse_gain, lane, unit_log2());
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
siglip_logits_sm90(const __grid_constant__ TensorMap img, const __grid_constant__ TensorMap txt, const __grid_constant__ TensorMap g,
                   const __grid_constant__ GemmShape shape, const __grid_constant__ LogitsParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  LogitsEpilogue epilogue = {&g, shape, params, {}, {}, threadIdx.x / WARP % 4, threadIdx.x % WARP};
  Loop(shared).run(img, txt, shape, epilogue);
}
#endif
