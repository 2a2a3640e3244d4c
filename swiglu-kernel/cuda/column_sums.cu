// Sums over the rows of a matrix, in f64 and in a fixed order: the bias' gradient.
//   ELEMENT: F32, BF16 or F16    RESULT: ELEMENT or F32
#include "element.cuh"
#include "ptx/sync.cuh"

constexpr u32 WARPS = 32;

struct ColumnSumsParams {
  const ELEMENT::Storage* from;
  u64 stride, rows;
  RESULT::Storage* to;
  u32 columns, accumulate;
};

// A block takes 32 columns; each of its warps every 32nd row.
KERNEL __launch_bounds__(WARPS * WARP) swiglu_column_sums(const __grid_constant__ ColumnSumsParams params) {
  __shared__ double partial[WARPS][WARP + 1];
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = blockIdx.x * WARP + lane;
  grid_dependency_wait();
  double sum = 0.0;
  if (column < params.columns)
    for (u64 row = warp; row < params.rows; row += WARPS) sum += ELEMENT::load(params.from + row * params.stride + column);
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= params.columns) return;
  double total = params.accumulate ? (double)RESULT::load(params.to + column) : 0.0;
  for (u32 i = 0; i < WARPS; ++i) total += partial[i][lane];
  RESULT::store(params.to + column, (float)total);
}
