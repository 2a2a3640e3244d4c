// f32 rows as the split products read them: two f16 planes with x s = high + low, s a power of two of every 64 rows' own, and zeros up to whole tiles.
#include "base.cuh"
#include "plane_scale.cuh"
#include "ptx/math.cuh"
#include "ptx/sync.cuh"

struct SplitSide {
  const float* from;  // [rows, cols]
  u64 from_stride, rows;
  u16* high;       // [planes_rows, planes_cols]; the low plane follows
  u64 plane_rows;  // a multiple of 64
  float* inverse;  // [plane_rows / 64]: 1 / s
};

struct SplitInputsParams {
  SplitSide side[2];  // images, texts
  u32 cols, plane_cols;
};

// A block takes 64 rows of one side.
KERNEL __launch_bounds__(1024) siglip_split_inputs(const __grid_constant__ SplitInputsParams params) {
  __shared__ u32 partial[WARP];
  grid_dependency_wait();
  const u32 img_blocks = (u32)(params.side[0].plane_rows / 64), is_txt = blockIdx.x >= img_blocks;
  const SplitSide& side = params.side[is_txt];
  const u64 group = blockIdx.x - is_txt * img_blocks;
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  // Bits without the sign order as magnitudes do, infinities and NaN above all numbers.
  u32 largest = 0;
  for (u64 row = group * 64 + warp; row < min_of(group * 64 + 64, side.rows); row += warps) {
    const float* from = side.from + row * side.from_stride;
#pragma unroll 8
    for (u32 column = lane; column < params.cols; column += WARP) largest = max_of(largest, __float_as_uint(from[column]) & 0x7FFFFFFFu);
  }
  largest = __reduce_max_sync(~0u, largest);
  if (lane == 0) partial[warp] = largest;
  __syncthreads();
  largest = __reduce_max_sync(~0u, lane < warps ? partial[lane] : 0u);
  const PlaneScale scale(largest);
  if (threadIdx.x == 0) side.inverse[group] = scale.inverse;
  for (u64 row = group * 64 + warp; row < group * 64 + 64; row += warps) {
    const float* from = side.from + row * side.from_stride;
    u16* high = side.high + row * params.plane_cols;
    u16* low = high + side.plane_rows * params.plane_cols;
#pragma unroll 8
    for (u32 column = lane; column < params.plane_cols; column += WARP) {
      const float x = row < side.rows && column < params.cols ? from[column] * scale.scale : 0.f;
      const u16 h = (u16)pack_f16(x, 0.f);
      high[column] = h;
      low[column] = (u16)pack_f16(x - f16_to_float(h), 0.f);
    }
  }
}
