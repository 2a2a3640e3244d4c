// What route int8 computes from:
//   for the logits, copies in signed 8-bit integers of the images and of the texts less their mean, each row by a scale of its own, which takes its largest magnitude to 127. An image's
//     product with the mean is a term that its row of logits has in common, and stays exact: what texts have in common would otherwise take up the integers' range, and be rounded alike in
//     all logits of an image, where the errors add up;
//   for the gradient products, copies of images and texts transposed, each feature by a scale of its own, which the sums are multiplied by at the end;
//   the dot products of the positive pairs, less the terms, which stay exact.
//
// A row, or a feature, with an element that is not finite has a scale that is not a number, which reaches all that is made of it.
//   ELEMENT: BF16 or F16
#include "numerics.cuh"
#include "ptx/sync.cuh"
#include "rows.cuh"

struct QuantizeInt8Params {
  struct Side {
    const ELEMENT::Storage* from;  // rows of a multiple of 8 elements, at multiples of 16 bytes
    u8* to;                        // for the logits
    u64 from_stride, to_stride;
    u8* transposed;         // [cols][transposed_stride], rows along it
    u64 transposed_stride;  // `rows`, padded to a multiple of 16
    float* row_scales;      // [rows, padded to a multiple of 2]: what 1 is worth in `to`
    float* col_scales;      // [cols]: and in `transposed`
    u32* partial_peaks;     // [SLICES][cols]: magnitudes as bits, which are in order, what is not finite last
    u32 rows;
  } side[2];            // images, texts
  u32 cols;             // features, padded to a multiple of 8
  float* partial_sums;  // [SLICES][cols]
  float* mean;          // [cols], of the texts' finite elements
  float* terms;         // by image row: its product with the mean
  float* positives;     // by image row: its dot product with its positive less the mean
  i64 offset;           // text row minus image row of a positive pair
};

DEV u32 magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }

// A scale and its inverse, by the bits of the largest magnitude. One that leaves f32's range is cut.
struct Scale {
  float scale, inverse;
  DEV explicit Scale(u32 peak) {
    const float largest = __uint_as_float(peak);
    scale = peak < 0x7f800000 ? largest / 127.f : __int_as_float(0x7fffffff);
    inverse = peak ? fminf(127.f / largest, 3e38f) : 0.f;
  }
};
// Nothing of what is not finite, whose scale says so.
DEV u32 integer(float x, float inverse) { return (u32)__float2int_rn(fminf(fmaxf(x * inverse, -127.f), 127.f)) & 255; }

// Of the columns of either side, 256 a block, over every SLICES-th 8 rows: sums and largest magnitudes. What is not finite counts for nothing in the sums: it shall reach the pairs of its
// row, and no others.
constexpr u32 SLICES = 128;
KERNEL __launch_bounds__(256) siglip_int8_columns(const __grid_constant__ QuantizeInt8Params params) {
  constexpr u32 WARPS = 256 / WARP;
  __shared__ float sums[WARPS][WARP * VECTOR];
  __shared__ u32 peaks[WARPS][WARP * VECTOR];
  grid_dependency_wait();
  const QuantizeInt8Params::Side& side = params.side[blockIdx.z];
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first = blockIdx.x * WARP * VECTOR, column = first + lane * VECTOR;
  float sum[VECTOR] = {};
  u32 peak[VECTOR] = {};
  if (column < params.cols)
    for (u32 row = blockIdx.y * WARPS + warp; row < side.rows; row += SLICES * WARPS) {
      const Vector v(side.from + (u64)row * side.from_stride + column);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) {
        sum[i] += is_finite(v.x[i]) ? v.x[i] : 0.f;
        peak[i] = max_of(peak[i], magnitude(v.x[i]));
      }
    }
#pragma unroll
  for (u32 i = 0; i < VECTOR; ++i) sums[warp][lane * VECTOR + i] = sum[i], peaks[warp][lane * VECTOR + i] = peak[i];
  __syncthreads();
  if (first + threadIdx.x >= params.cols) return;
  float total = 0.f;
  u32 largest = 0;
#pragma unroll
  for (u32 i = 0; i < WARPS; ++i) total += sums[i][threadIdx.x], largest = max_of(largest, peaks[i][threadIdx.x]);
  const u64 to = (u64)blockIdx.y * params.cols + first + threadIdx.x;
  side.partial_peaks[to] = largest;
  if (blockIdx.z == 1) params.partial_sums[to] = total;
}

// A thread a column. Texts are left as they are where a sum left f32's range, or the mean is so large that an element less it might.
KERNEL __launch_bounds__(256) siglip_int8_means(const __grid_constant__ QuantizeInt8Params params) {
  grid_dependency_wait();
  const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= params.cols) return;
  float sum = 0.f;
  u32 largest[2] = {};
#pragma unroll 16
  for (u32 i = 0; i < SLICES; ++i) {
    const u64 at = (u64)i * params.cols + column;
    sum += params.partial_sums[at];
#pragma unroll
    for (u32 k = 0; k < 2; ++k) largest[k] = max_of(largest[k], params.side[k].partial_peaks[at]);
  }
  const float mean = sum / (float)params.side[1].rows;
  params.mean[column] = fabsf(mean) < 1e30f ? mean : 0.f;  // of a NaN too
#pragma unroll
  for (u32 k = 0; k < 2; ++k) params.side[k].col_scales[column] = Scale(largest[k]).scale;
}

// Copies for the logits with their scales; terms and positives in f32.
KERNEL __launch_bounds__(256) siglip_int8_rows(const __grid_constant__ QuantizeInt8Params params) {
  grid_dependency_wait();
  const bool texts = blockIdx.y == 1;
  const QuantizeInt8Params::Side &side = params.side[blockIdx.y], &txt = params.side[1];
  const Rows rows;
  for (u32 row = rows.first; row < side.rows; row += rows.step) {
    const i64 partner = (i64)row + params.offset;
    const bool positive = !texts && partner >= 0 && partner < (i64)txt.rows;
    const ELEMENT::Storage* from = side.from + (u64)row * side.from_stride;
    u32 peak = 0;
    float term = 0.f, dot = 0.f;
    for (u32 column = rows.lane * VECTOR; column < params.cols; column += WARP * VECTOR) {
      const Vector v(from + column);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) {
        const float mean = params.mean[column + i];
        peak = max_of(peak, magnitude(texts ? v.x[i] - mean : v.x[i]));
        if (!texts) term = fmaf(v.x[i], mean, term);
      }
      if (!positive) continue;
      const Vector other(txt.from + (u64)partner * txt.from_stride + column);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) dot = fmaf(v.x[i], other.x[i] - params.mean[column + i], dot);
    }
    const Scale scale(__reduce_max_sync(~0u, peak));
    for (u32 column = rows.lane * VECTOR; column < params.cols; column += WARP * VECTOR) {
      const Vector v(from + column);
      u32 words[2] = {};
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) words[i / 4] |= integer(texts ? v.x[i] - params.mean[column + i] : v.x[i], scale.inverse) << i % 4 * 8;
      *reinterpret_cast<uint2*>(side.to + (u64)row * side.to_stride + column) = make_uint2(words[0], words[1]);
    }
    term = warp_sum(term), dot = warp_sum(dot);
    if (rows.lane != 0) continue;
    side.row_scales[row] = scale.scale;
    if (row + 1 == side.rows && side.rows % 2) side.row_scales[row + 1] = 0.f;  // they are read in pairs
    if (!texts) params.terms[row] = term;
    if (positive) params.positives[row] = dot;
  }
}

// What byte `at` of 16 holds, of the images or of the texts: the order in which logits_int8.cu leaves G (texts along K) and its transpose (images along K).
DEV u32 in_order_of_g(u32 at, bool texts) { return texts ? at / 4 * 2 + at % 2 + at / 2 % 2 * 8 : at / 2 + at % 2 * 8; }

// Copies for the gradient products, with zeros behind the last row: 128 rows x 64 columns a block.
KERNEL __launch_bounds__(256) siglip_int8_transpose(const __grid_constant__ QuantizeInt8Params params) {
  constexpr u32 ROWS = 128, COLS = 64, STRIDE = ROWS + 4;  // of a line of shared memory: four bytes more, so that columns begin in different banks
  __shared__ __align__(4) u8 tile[COLS][STRIDE];
  grid_dependency_wait();
  const QuantizeInt8Params::Side& side = params.side[blockIdx.z];
  const u32 row0 = blockIdx.x * ROWS;
  if (row0 >= side.rows) return;
#pragma unroll 1
  for (u32 column0 = blockIdx.y * COLS; column0 < params.cols; column0 += gridDim.y * COLS) {
    // A thread keeps its four columns.
    const u32 column = threadIdx.x % (COLS / 4) * 4;
    const bool within = column0 + column < params.cols;
    float inverse[4];
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
      const float scale = within ? side.col_scales[column0 + column + k] : 0.f;
      inverse[k] = scale > 0.f ? fminf(1.f / scale, 3e38f) : 0.f;
    }
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ROWS * COLS / 4; i += blockDim.x) {
      const u32 at = i / (COLS / 4), row = row0 + at / 16 * 16 + in_order_of_g(at % 16, blockIdx.z == 1);
      uint2 bits = {};
      if (row < side.rows && within) bits = *reinterpret_cast<const uint2*>(side.from + (u64)row * side.from_stride + column0 + column);
      const ELEMENT::Storage x[4] = {(ELEMENT::Storage)bits.x, (ELEMENT::Storage)(bits.x >> 16), (ELEMENT::Storage)bits.y, (ELEMENT::Storage)(bits.y >> 16)};
#pragma unroll
      for (u32 k = 0; k < 4; ++k) tile[column + k][at] = (u8)integer(ELEMENT::load(x + k), inverse[k]);
    }
    __syncthreads();
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ROWS * COLS / 4; i += blockDim.x) {
      const u32 line = i / (ROWS / 4), at = i % (ROWS / 4) * 4;
      if (column0 + line < params.cols && row0 + at < side.transposed_stride)
        *reinterpret_cast<u32*>(side.transposed + (u64)(column0 + line) * side.transposed_stride + row0 + at) = *reinterpret_cast<const u32*>(&tile[line][at]);
    }
    __syncthreads();  // before the tile is written again
  }
}
