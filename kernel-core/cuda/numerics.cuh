// Small numerics shared by epilogues.
#pragma once
#include "base.cuh"
#include "ptx/math.cuh"

// log(1 + s) for s >= 0, relative error below 1e-6: a series where 1 + s would cancel, lg2 above. NaN stays NaN.
DEV float log1p_nonnegative(float s) {
  float series = fmaf(1.f / 7, s, -1.f / 6);
  series = fmaf(series, s, 1.f / 5);
  series = fmaf(series, s, -1.f / 4);
  series = fmaf(series, s, 1.f / 3);
  series = fmaf(series, s, -1.f / 2);
  series = fmaf(series, s, 1.f) * s;
  return s < 0.0625f ? series : log2_approx(1.f + s) * LN2;
}

template <class T> DEV T warp_sum(T x) {
#pragma unroll
  for (u32 offset = WARP / 2; offset; offset >>= 1) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}
