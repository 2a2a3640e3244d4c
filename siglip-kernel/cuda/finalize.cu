// What is left around the blocks: the scalars from the per-warp sums, gradients from f32 accumulators to the output's type, and padded copies of
// inputs whose rows the tensor cores' loads cannot address.
//   ELEMENT: F32, BF16 or F16
#include "element.cuh"
#include "factor.cuh"
#include "numerics.cuh"
#include "positives.cuh"
#include "ptx/sync.cuh"
#include "scalars.cuh"

// The block's total of one value a thread, in thread 0. Order of addition is fixed.
DEV double block_sum(double x) {
  __shared__ double partial[WARP];
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = x;
  __syncthreads();
  x = threadIdx.x < blockDim.x / WARP ? partial[threadIdx.x % WARP] : 0.0;
  __syncthreads();
  return warp_sum(x);
}

// One block of 1024 threads.
KERNEL __launch_bounds__(1024) siglip_reduce(const __grid_constant__ ReduceParams params) {
  grid_dependency_wait();
  Totals totals(params, threadIdx.x, blockDim.x);
  totals.loss = block_sum(totals.loss), totals.q = block_sum(totals.q), totals.q_x = block_sum(totals.q_x);
  if (threadIdx.x == 0) totals.store(params);
}

struct ScaleParams {
  const float* from;  // [rows, cols]; may be the output itself
  ELEMENT::Storage* to;
  u64 from_stride, to_stride, rows;
  u64 part_stride;  // between parts of the sums, which are added up
  u32 parts, cols;
  GradientFactor factor;
  PositivePairs<ELEMENT> positives;
  const float* units;  // [cols], whole vectors: what 1 is worth in each column of `from` (route int8); null: 1
};

// Four neighbours of a row, read or written at once.
struct alignas(4 * sizeof(ELEMENT::Storage)) Four {
  ELEMENT::Storage at[4];
};

// Whether all rows that a launch of `siglip_scale` looks at are whole vectors.
DEV bool in_fours(const ScaleParams& params) {
  const u64 addresses = (u64)params.to | (u64)params.positives.other;
  const u64 strides = params.from_stride | params.part_stride | params.to_stride | params.positives.other_stride;
  return (u64)params.from % sizeof(float4) == 0 && addresses % sizeof(Four) == 0 && (strides | params.cols) % 4 == 0;
}

// to = (from + q other) * factor, rounded once. A warp takes a row.
KERNEL __launch_bounds__(256) siglip_scale(const __grid_constant__ ScaleParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  const float factor = params.factor.load();
  const u32 lane = threadIdx.x % WARP;
  const u64 warps = (u64)gridDim.x * (blockDim.x / WARP);
  const bool fours = in_fours(params);
  for (u64 row = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; row < params.rows; row += warps) {
    const float* from = params.from + row * params.from_stride;
    ELEMENT::Storage* to = params.to + row * params.to_stride;
    const PositivePairs<ELEMENT>::Pair pair = params.positives.of(row);
    if (fours) {
#pragma unroll 4
      for (u32 column = lane * 4; column < params.cols; column += WARP * 4) {
        const float4 sum = *reinterpret_cast<const float4*>(from + column);
        float sums[4] = {sum.x, sum.y, sum.z, sum.w};
        for (u32 part = 1; part < params.parts; ++part) {
          const float4 more = *reinterpret_cast<const float4*>(from + part * params.part_stride + column);
          sums[0] += more.x, sums[1] += more.y, sums[2] += more.z, sums[3] += more.w;
        }
        if (params.units) {
          const float4 units = *reinterpret_cast<const float4*>(params.units + column);
          sums[0] *= units.x, sums[1] *= units.y, sums[2] *= units.z, sums[3] *= units.w;
        }
        Four out;
        if (pair.other) {
          const Four other = *reinterpret_cast<const Four*>(pair.other + column);
#pragma unroll
          for (u32 i = 0; i < 4; ++i) ELEMENT::store(out.at + i, fmaf(pair.q, ELEMENT::load(other.at + i), sums[i]) * factor);
        } else
#pragma unroll
          for (u32 i = 0; i < 4; ++i) ELEMENT::store(out.at + i, sums[i] * factor);
        *reinterpret_cast<Four*>(to + column) = out;
      }
      continue;
    }
    for (u32 column = lane; column < params.cols; column += WARP) {
      float sum = from[column];
      for (u32 part = 1; part < params.parts; ++part) sum += from[part * params.part_stride + column];
      if (params.units) sum *= params.units[column];
      ELEMENT::store(to + column, (pair.other ? fmaf(pair.q, ELEMENT::load(pair.other + column), sum) : sum) * factor);
    }
  }
}

struct PadParams {
  const ELEMENT::Storage* from;
  ELEMENT::Storage* to;
  u64 from_stride, to_stride, rows;
  u32 cols, padded_cols;
};

// Rows copied to a stride the loads can address, zeros behind each.
KERNEL __launch_bounds__(256) siglip_pad(const __grid_constant__ PadParams params) {
  grid_dependency_wait();
  const u32 lane = threadIdx.x % WARP;
  const u64 warps = (u64)gridDim.x * (blockDim.x / WARP);
  for (u64 row = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; row < params.rows; row += warps)
    for (u32 column = lane; column < params.padded_cols; column += WARP)
      params.to[row * params.to_stride + column] = column < params.cols ? params.from[row * params.from_stride + column] : (ELEMENT::Storage)0;
}
