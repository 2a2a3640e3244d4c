// The two gradient products on Hopper at f32 accuracy, from split f16 planes: d_img = q * txt (A_LAYOUT K) or d_txt = q^T * img (A_LAYOUT MN). They
// add up in the output itself, block by block; the last block adds the positive pairs, which G leaves out, and scales.
//   A_LAYOUT: K or MN    COLUMNS: 128 or 192
#include "factor.cuh"
#include "positives.cuh"
#include "sm90/split_mainloop.cuh"

struct GradientSplitParams {
  GradientFactor factor;
  const float* g_inverse;    // 1 / scale of every 64 x 64 pairs: g_inverse_m apart along the output's rows, g_inverse_k along the sum
  const float* other_inverse;  // 1 / scale of every 64 of the rows that are summed, from the block's first on
  u32 g_inverse_m, g_inverse_k;
  float* out;  // the first row of this block
  u64 out_stride;
  u32 first, last;  // 1: nothing is in the output yet; 1: nothing comes after
  PositivePairs<F32> positives;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef SplitMainloop<Major::A_LAYOUT, Major::MN, COLUMNS, 0> Loop;

struct GradientSplitEpilogue {
  const GemmShape& shape;
  const GradientSplitParams& params;
  u32 warp, lane;
  float scale;
  u32 m0, n0;

  DEV void begin() { scale = params.factor.load(); }
  DEV void open(u32 m0_, u32 n0_) { m0 = m0_, n0 = n0_; }
  DEV float factor(u32 stretch) const {
    if (m0 >= shape.m) return 0.f;
    return params.g_inverse[(u64)(m0 / 64) * params.g_inverse_m + (u64)stretch * params.g_inverse_k] * params.other_inverse[stretch];
  }
  DEV void close(float (&sum)[COLUMNS / 2], u32, u32) {
    constexpr u32 N = COLUMNS / 8;  // columns of a thread come in pairs
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 row = m0 + warp * 16 + lane / 4 + half * 8;
      if (row >= shape.m) continue;
      float* out = params.out + (u64)row * params.out_stride + n0 + lane % 4 * 2;
      const int columns = (int)shape.n - (int)(n0 + lane % 4 * 2);
      float v[2 * N];
#pragma unroll
      for (u32 i = 0; i < 2 * N; ++i) v[i] = sum[4 * (i / 2) + 2 * half + i % 2];
      if (!params.first)
#pragma unroll
        for (u32 i = 0; i < 2 * N; ++i) v[i] += (int)(8 * (i / 2) + i % 2) < columns ? out[8 * (i / 2) + i % 2] : 0.f;
      if (params.last) {
        const PositivePairs<F32>::Pair pair = params.positives.of(row);
        if (pair.other) {
          const float* other = pair.other + n0 + lane % 4 * 2;
#pragma unroll
          for (u32 i = 0; i < 2 * N; ++i) v[i] = (int)(8 * (i / 2) + i % 2) < columns ? fmaf(pair.q, other[8 * (i / 2) + i % 2], v[i]) : 0.f;
        }
#pragma unroll
        for (u32 i = 0; i < 2 * N; ++i) v[i] *= scale;
      }
#pragma unroll
      for (u32 i = 0; i < 2 * N; ++i)
        if ((int)(8 * (i / 2) + i % 2) < columns) out[8 * (i / 2) + i % 2] = v[i];
    }
  }
  DEV void finish() {}
};

KERNEL __launch_bounds__(Loop::THREADS, 1)
siglip_gradient_split(const __grid_constant__ TensorMap g, const __grid_constant__ TensorMap other, const __grid_constant__ GemmShape shape,
                      const __grid_constant__ SplitPlanes planes, const __grid_constant__ GradientSplitParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  GradientSplitEpilogue epilogue = {shape, params, threadIdx.x / WARP % 4, threadIdx.x % WARP, 0.f, 0, 0};
  Loop(shared).run(g, other, shape, planes, epilogue);
}
#endif
