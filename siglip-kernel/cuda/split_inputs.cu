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

// Four columns of a row from `column` on, zeros beyond the last; `aligned` where one load can take them.
struct Quad {
  float x[4];
  DEV Quad(const float* row, u32 column, u32 cols, bool aligned) {
    if (aligned) {
      const float4 all = *reinterpret_cast<const float4*>(row + column);
      x[0] = all.x, x[1] = all.y, x[2] = all.z, x[3] = all.w;
    } else {
#pragma unroll
      for (u32 i = 0; i < 4; ++i) x[i] = column + i < cols ? row[column + i] : 0.f;
    }
  }
};

// A block takes 64 rows of one side, a warp one of them at a time.
KERNEL __launch_bounds__(1024) siglip_split_inputs(const __grid_constant__ SplitInputsParams params) {
  __shared__ u32 partial[WARP];
  grid_dependency_wait();
  grid_dependency_launch();
  const u32 img_blocks = (u32)(params.side[0].plane_rows / 64), is_txt = blockIdx.x >= img_blocks;
  const SplitSide& side = params.side[is_txt];
  const u64 first = (u64)(blockIdx.x - is_txt * img_blocks) * 64, stride = side.from_stride;
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  const bool aligned = params.cols % 4 == 0 && stride % 4 == 0 && (u64)side.from % 16 == 0;
  // Bits without the sign order as magnitudes do, infinities and NaN above all numbers.
  u32 largest = 0;
  for (u64 row = first + warp; row < min_of(first + 64, side.rows); row += warps) {
#pragma unroll 6
    for (u32 column = lane * 4; column < params.cols; column += WARP * 4) {
      const Quad quad(side.from + row * stride, column, params.cols, aligned);
#pragma unroll
      for (u32 i = 0; i < 4; ++i) largest = max_of(largest, __float_as_uint(quad.x[i]) & 0x7FFFFFFFu);
    }
  }
  largest = __reduce_max_sync(~0u, largest);
  if (lane == 0) partial[warp] = largest;
  __syncthreads();
  largest = __reduce_max_sync(~0u, lane < warps ? partial[lane] : 0u);
  const PlaneScale scale(largest);
  if (threadIdx.x == 0) side.inverse[first / 64] = scale.inverse;
  for (u64 row = first + warp; row < first + 64; row += warps) {
    u16* high = side.high + row * params.plane_cols;
    u16* low = high + side.plane_rows * params.plane_cols;
#pragma unroll 6
    for (u32 column = lane * 4; column < params.plane_cols; column += WARP * 4) {
      uint2 h = {0, 0}, l = {0, 0};
      if (row < side.rows && column < params.cols) {
        const Quad quad(side.from + row * stride, column, params.cols, aligned);
        split(quad.x[0] * scale.scale, quad.x[1] * scale.scale, h.x, l.x);
        split(quad.x[2] * scale.scale, quad.x[3] * scale.scale, h.y, l.y);
      }
      *reinterpret_cast<uint2*>(high + column) = h;
      *reinterpret_cast<uint2*>(low + column) = l;
    }
  }
}
