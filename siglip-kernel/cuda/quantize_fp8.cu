// What route fp8 computes from: e4m3 copies of the images and of the texts, each matrix by a power of two of its own that brings its largest finite magnitude into (224, 448], and
// the dot products of the positive pairs, which stay exact.
//
// e4m3 keeps 4 significant bits down to 2^-15 of the largest magnitude and an absolute 2^-18 of it below, so one scale a matrix serves rows of any lengths:
// the error of a dot product, as a logit, is never more than that of the longest rows.
//   ELEMENT: BF16 or F16
#include "numerics.cuh"
#include "ptx/sync.cuh"
#include "rows.cuh"

struct QuantizeParams {
  struct Side {
    const ELEMENT::Storage* from;  // rows of a multiple of 8 elements, at multiples of 16 bytes
    u8* to;
    u64 from_stride, to_stride;
    u32 rows;
  } side[2];        // images, texts
  u32 cols;         // features, padded to a multiple of 8
  float* peaks;      // [2][gridDim.x]: of images, of texts
  int* exponents;    // [2]: log2 of their factors
  float* positives;  // by image row: its dot product with its positive, in units of the quantised dot products
  i64 offset;        // text row minus image row of a positive pair
};

DEV float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

DEV float block_max(float x) {
  __shared__ float partial[WARP];
#pragma unroll
  for (u32 offset = WARP / 2; offset; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = x;
  __syncthreads();
  x = 0.f;
  for (u32 i = 0; i < blockDim.x / WARP; ++i) x = fmaxf(x, partial[i]);
  return x;
}

// The largest finite magnitudes that each block meets.
KERNEL __launch_bounds__(256) siglip_fp8_peaks(const __grid_constant__ QuantizeParams params) {
  grid_dependency_wait();
  const QuantizeParams::Side& side = params.side[blockIdx.y];
  const Rows rows;
  float peak = 0.f;
  for (u32 row = rows.first; row < side.rows; row += rows.step)
    for (u32 column = rows.lane * VECTOR; column < params.cols; column += WARP * VECTOR) {
      const Vector vector(side.from + (u64)row * side.from_stride + column);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i)
        if (is_finite(vector.x[i])) peak = fmaxf(peak, fabsf(vector.x[i]));
    }
  peak = block_max(peak);
  if (threadIdx.x == 0) params.peaks[blockIdx.y * gridDim.x + blockIdx.x] = peak;
}

// log2 of the factor that brings `peak` into (224, 448]. Matrices below 2^-119 stay smaller: the factor is an f32 number. 0 for zeros.
DEV int exponent_for(float peak) {
  if (peak == 0.f) return 0;
  const int bits = __float_as_int(peak), log2_peak = (bits >> 23) - 127, above_1_75 = (bits & 0x7fffff) > 0x600000;
  return min_of(8 - log2_peak - above_1_75, 127);
}

// Two elements; a NaN or an infinity becomes a NaN.
DEV u32 pack_e4m3(float low, float high) {
  u16 packed;
  low = fabsf(low) <= 448.f ? low : __int_as_float(0x7fffffff);
  high = fabsf(high) <= 448.f ? high : __int_as_float(0x7fffffff);
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

KERNEL __launch_bounds__(256) siglip_fp8_quantize(const __grid_constant__ QuantizeParams params) {
  grid_dependency_wait();
  const QuantizeParams::Side& side = params.side[blockIdx.y];
  float peak = 0.f;
  for (u32 k = threadIdx.x; k < gridDim.x; k += blockDim.x) peak = fmaxf(peak, params.peaks[blockIdx.y * gridDim.x + k]);
  const int exponent = exponent_for(block_max(peak));
  const float factor = power_of_two(exponent);
  if (blockIdx.x == 0 && threadIdx.x == 0) params.exponents[blockIdx.y] = exponent;
  const Rows rows;
  for (u32 row = rows.first; row < side.rows; row += rows.step)
    for (u32 column = rows.lane * VECTOR; column < params.cols; column += WARP * VECTOR) {
      const Vector v(side.from + (u64)row * side.from_stride + column);
      u32 words[2];
#pragma unroll
      for (u32 i = 0; i < 2; ++i)
        words[i] = pack_e4m3(v.x[4 * i] * factor, v.x[4 * i + 1] * factor) | pack_e4m3(v.x[4 * i + 2] * factor, v.x[4 * i + 3] * factor) << 16;
      *reinterpret_cast<uint2*>(side.to + (u64)row * side.to_stride + column) = make_uint2(words[0], words[1]);
    }
}

// In f32.
KERNEL __launch_bounds__(256) siglip_fp8_positives(const __grid_constant__ QuantizeParams params) {
  grid_dependency_wait();
  const float img_factor = power_of_two(params.exponents[0]), txt_factor = power_of_two(params.exponents[1]);
  const QuantizeParams::Side &img = params.side[0], &txt = params.side[1];
  const Rows rows;
  for (u32 row = rows.first; row < img.rows; row += rows.step) {
    const i64 partner = (i64)row + params.offset;
    if (partner < 0 || partner >= (i64)txt.rows) continue;
    float dot = 0.f;
    for (u32 column = rows.lane * VECTOR; column < params.cols; column += WARP * VECTOR) {
      const Vector a(img.from + (u64)row * img.from_stride + column), b(txt.from + (u64)partner * txt.from_stride + column);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) dot = fmaf(a.x[i] * img_factor, b.x[i] * txt_factor, dot);
    }
    dot = warp_sum(dot);
    if (rows.lane == 0) params.positives[row] = dot;
  }
}
