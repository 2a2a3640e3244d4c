// What routes fp8 and fp8-all compute from, each matrix by a power of two of its own that brings its largest finite magnitude into (224, 448]:
//   for the logits, e4m3 copies of the images and of the texts, on route fp8-all less their mean. An image's product with the mean is a term that its row of logits has in common, and stays exact:
//     what rows of texts have in common would otherwise be rounded alike in all logits of an image, and the errors add up. On sentence embeddings half of the gradients' error;
//   for the gradient products of route fp8-all, e4m3 copies of images and texts transposed;
//   the dot products of the positive pairs, which stay exact.
//
// e4m3 keeps 4 significant bits down to 2^-15 of the largest magnitude and an absolute 2^-18 of it below, so one scale a matrix serves rows of any lengths:
// the error of a dot product, as a logit, is never more than that of the longest rows.
//   ELEMENT: BF16 or F16
#include "element.cuh"
#include "numerics.cuh"
#include "ptx/sync.cuh"

struct QuantizeParams {
  struct Side {
    const ELEMENT::Storage* from;  // rows of a multiple of 8 elements, at multiples of 16 bytes
    u8* to;                        // for the logits
    u64 from_stride, to_stride;
    u8* transposed;  // [cols][transposed_stride], rows along it
    u64 transposed_stride;  // `rows`, padded to a multiple of 16
    u32 rows;
  } side[2];        // images, texts
  u32 cols;         // features, padded to a multiple of 8
  float* partial_sums;  // [MEAN_SLICES][cols]
  float* mean;          // [cols], of the texts' finite elements; null on route fp8, whose texts are taken as they are
  float* peaks;         // [3][gridDim.x]: of images, of texts less their mean, of texts
  int* exponents;       // [3]: log2 of their factors
  float* terms;         // by image row: its product with the mean, in units of the quantised dot products
  float* positives;     // by image row: its dot product with its positive less the mean, likewise
  i64 offset;       // text row minus image row of a positive pair
};

constexpr u32 VECTOR = 8;  // elements of a load
struct Vector {
  float x[VECTOR];
  DEV explicit Vector(const ELEMENT::Storage* from) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    const u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (u32 i = 0; i < VECTOR; ++i) {
      const ELEMENT::Storage element = (ELEMENT::Storage)(words[i / 2] >> (i % 2 * 16));
      x[i] = ELEMENT::load(&element);
    }
  }
};

DEV float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

DEV bool is_finite(float x) { return fabsf(x) < __int_as_float(0x7f800000); }

// A warp takes a row at a time, of all rows of the grid's y.
struct Rows {
  u32 lane = threadIdx.x % WARP, first = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, step = gridDim.x * (blockDim.x / WARP);
};

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

// Sums of the texts' columns, 256 a block, over every MEAN_SLICES-th 8 rows. What is not finite counts for nothing: it shall reach the pairs of its row, and no others.
constexpr u32 MEAN_SLICES = 128;
KERNEL __launch_bounds__(256) siglip_fp8_sums(const __grid_constant__ QuantizeParams params) {
  constexpr u32 WARPS = 256 / WARP;
  __shared__ float sums[WARPS][WARP * VECTOR];
  grid_dependency_wait();
  const QuantizeParams::Side& side = params.side[1];
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first = blockIdx.x * WARP * VECTOR, column = first + lane * VECTOR;
  float sum[VECTOR] = {};
  if (column < params.cols)
    for (u32 row = blockIdx.y * WARPS + warp; row < side.rows; row += MEAN_SLICES * WARPS) {
      const Vector v(side.from + (u64)row * side.from_stride + column);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) sum[i] += is_finite(v.x[i]) ? v.x[i] : 0.f;
    }
#pragma unroll
  for (u32 i = 0; i < VECTOR; ++i) sums[warp][lane * VECTOR + i] = sum[i];
  __syncthreads();
  if (first + threadIdx.x >= params.cols) return;
  float total = 0.f;
#pragma unroll
  for (u32 i = 0; i < WARPS; ++i) total += sums[i][threadIdx.x];
  params.partial_sums[(u64)blockIdx.y * params.cols + first + threadIdx.x] = total;
}

// A thread a column. Texts are left as they are where a sum left f32's range, or the mean is so large that an element less it might.
KERNEL __launch_bounds__(256) siglip_fp8_mean(const __grid_constant__ QuantizeParams params) {
  grid_dependency_wait();
  const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= params.cols) return;
  float sum = 0.f;
#pragma unroll 16
  for (u32 i = 0; i < MEAN_SLICES; ++i) sum += params.partial_sums[(u64)i * params.cols + column];
  const float mean = sum / (float)params.side[1].rows;
  params.mean[column] = fabsf(mean) < 1e30f ? mean : 0.f;  // of a NaN too
}

// An element of a text as logits take it.
DEV float centred(const QuantizeParams& params, float x, u32 column) { return params.mean ? x - params.mean[column] : x; }

// The largest finite magnitudes that each block meets.
KERNEL __launch_bounds__(256) siglip_fp8_peaks(const __grid_constant__ QuantizeParams params) {
  grid_dependency_wait();
  const QuantizeParams::Side& side = params.side[blockIdx.y];
  const Rows rows;
  float peak = 0.f, centred_peak = 0.f;
  for (u32 row = rows.first; row < side.rows; row += rows.step)
    for (u32 column = rows.lane * VECTOR; column < params.cols; column += WARP * VECTOR) {
      const Vector vector(side.from + (u64)row * side.from_stride + column);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) {
        const float x = vector.x[i];
        if (!is_finite(x)) continue;
        peak = fmaxf(peak, fabsf(x));
        if (blockIdx.y == 1) centred_peak = fmaxf(centred_peak, fabsf(centred(params, x, column + i)));
      }
    }
  peak = block_max(peak);
  if (threadIdx.x == 0) params.peaks[2 * blockIdx.y * gridDim.x + blockIdx.x] = peak;
  if (blockIdx.y == 0) return;
  __syncthreads();
  centred_peak = block_max(centred_peak);
  if (threadIdx.x == 0) params.peaks[gridDim.x + blockIdx.x] = centred_peak;
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
  const auto peak_of = [&](u32 i) {
    float peak = 0.f;
    for (u32 k = threadIdx.x; k < gridDim.x; k += blockDim.x) peak = fmaxf(peak, params.peaks[i * gridDim.x + k]);
    __syncthreads();
    return block_max(peak);
  };
  const bool texts = blockIdx.y == 1;
  const float peak = peak_of(2 * blockIdx.y);
  // What is left of texts that hardly differ is no larger than the mean's own rounding, and need not fill the range.
  const int as_they_are = exponent_for(peak), exponent = texts ? min_of(exponent_for(peak_of(1)), as_they_are + 20) : as_they_are;
  const float factor = power_of_two(exponent);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    params.exponents[blockIdx.y] = exponent;
    if (texts) params.exponents[2] = as_they_are;
  }
  const Rows rows;
  for (u32 row = rows.first; row < side.rows; row += rows.step)
    for (u32 column = rows.lane * VECTOR; column < params.cols; column += WARP * VECTOR) {
      Vector v(side.from + (u64)row * side.from_stride + column);
      if (texts)
#pragma unroll
        for (u32 i = 0; i < VECTOR; ++i) v.x[i] = centred(params, v.x[i], column + i);
      u32 words[2];
#pragma unroll
      for (u32 i = 0; i < 2; ++i)
        words[i] = pack_e4m3(v.x[4 * i] * factor, v.x[4 * i + 1] * factor) | pack_e4m3(v.x[4 * i + 2] * factor, v.x[4 * i + 3] * factor) << 16;
      *reinterpret_cast<uint2*>(side.to + (u64)row * side.to_stride + column) = make_uint2(words[0], words[1]);
    }
}

// What stays exact, in f32.
KERNEL __launch_bounds__(256) siglip_fp8_terms(const __grid_constant__ QuantizeParams params) {
  grid_dependency_wait();
  const float img_factor = power_of_two(params.exponents[0]), txt_factor = power_of_two(params.exponents[1]);
  const QuantizeParams::Side &img = params.side[0], &txt = params.side[1];
  const Rows rows;
  for (u32 row = rows.first; row < img.rows; row += rows.step) {
    const i64 partner = (i64)row + params.offset;
    const bool positive = partner >= 0 && partner < (i64)txt.rows;
    float term = 0.f, dot = 0.f;
    for (u32 column = rows.lane * VECTOR; column < params.cols; column += WARP * VECTOR) {
      const Vector a(img.from + (u64)row * img.from_stride + column);
#pragma unroll
      for (u32 i = 0; params.mean && i < VECTOR; ++i) term = fmaf(a.x[i] * img_factor, params.mean[column + i] * txt_factor, term);
      if (!positive) continue;
      const Vector b(txt.from + (u64)partner * txt.from_stride + column);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) dot = fmaf(a.x[i] * img_factor, centred(params, b.x[i], column + i) * txt_factor, dot);
    }
    term = warp_sum(term), dot = warp_sum(dot);
    if (rows.lane != 0) continue;
    if (params.mean) params.terms[row] = term;
    if (positive) params.positives[row] = dot;
  }
}

// What byte `at` of 16 holds, of the images or of the texts: the order in which logits_fp8.cu leaves G (texts along K) and its transpose (images along K).
DEV u32 in_order_of_g(u32 at, bool texts) { return texts ? at / 4 * 2 + at % 2 + at / 2 % 2 * 8 : at / 2 + at % 2 * 8; }

// Copies for the gradient products, with zeros behind the last row: 128 rows x 64 columns a block.
KERNEL __launch_bounds__(256) siglip_fp8_transpose(const __grid_constant__ QuantizeParams params) {
  constexpr u32 ROWS = 128, COLS = 64, STRIDE = ROWS + 4;  // of a line of shared memory: four bytes more, so that columns begin in different banks
  __shared__ __align__(4) u8 tile[COLS][STRIDE];
  grid_dependency_wait();
  const QuantizeParams::Side& side = params.side[blockIdx.z];
  const u32 row0 = blockIdx.x * ROWS;
  if (row0 >= side.rows) return;
  const float factor = power_of_two(params.exponents[2 * blockIdx.z]);
#pragma unroll 1
  for (u32 column0 = blockIdx.y * COLS; column0 < params.cols; column0 += gridDim.y * COLS) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ROWS * COLS / 4; i += blockDim.x) {
      const u32 at = i / (COLS / 4), row = row0 + at / 16 * 16 + in_order_of_g(at % 16, blockIdx.z == 1), column = i % (COLS / 4) * 4;
      u32 four = 0;
      if (row < side.rows && column0 + column < params.cols) {
        const uint2 bits = *reinterpret_cast<const uint2*>(side.from + (u64)row * side.from_stride + column0 + column);
        const ELEMENT::Storage x[4] = {(ELEMENT::Storage)bits.x, (ELEMENT::Storage)(bits.x >> 16), (ELEMENT::Storage)bits.y, (ELEMENT::Storage)(bits.y >> 16)};
        four = pack_e4m3(ELEMENT::load(x) * factor, ELEMENT::load(x + 1) * factor) | pack_e4m3(ELEMENT::load(x + 2) * factor, ELEMENT::load(x + 3) * factor) << 16;
      }
#pragma unroll
      for (u32 k = 0; k < 4; ++k) tile[column + k][at] = (u8)(four >> 8 * k);
    }
    __syncthreads();
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ROWS * COLS / 4; i += blockDim.x) {
      const u32 column = i / (ROWS / 4), at = i % (ROWS / 4) * 4;
      if (column0 + column < params.cols && row0 + at < side.transposed_stride)
        *reinterpret_cast<u32*>(side.transposed + (u64)(column0 + column) * side.transposed_stride + row0 + at) = *reinterpret_cast<const u32*>(&tile[column][at]);
    }
    __syncthreads();  // before the tile is written again
  }
}
