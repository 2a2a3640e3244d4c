// The pair loss and its gradient over a block of f32 dot products in memory, in place: x becomes q = -y sigmoid(-y z). One pass over the block.
// The q of positive pairs, large beside all others, goes to a place of its own and x becomes 0 there: summed among thousands of faint pairs,
// it would cost each of their additions a rounding of its own size. `siglip_scale` adds it at the end.
//   WITH_GRADIENT: 0 or 1
#include "ptx/sync.cuh"
#include "slot.cuh"

struct PairsF32Params {
  ScalarArg log_temp, bias;
  float* x;  // [rows, cols], rows x_stride elements apart
  u64 x_stride;
  u32 rows, cols, first;
  i64 diagonal;
  float* positive;  // [rows]: q of each row's positive pair, where there is one
  double* sums;     // [gridDim.x * 8][3]
};

KERNEL __launch_bounds__(256) siglip_pairs_f32(const __grid_constant__ PairsF32Params params) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  grid_dependency_wait();
  const float scale = expf(params.log_temp.load()), bias = params.bias.load();
  double loss = 0.0, q_sum = 0.0, q_x_sum = 0.0;
  for (u32 row = blockIdx.x; row < params.rows; row += gridDim.x) {
    float* x = params.x + (u64)row * params.x_stride;
    float row_loss = 0.f, row_q = 0.f, row_q_x = 0.f;
    for (u32 column = threadIdx.x; column < params.cols; column += blockDim.x) {
      const float dot = x[column], z = fmaf(scale, dot, bias);
      const bool positive = (i64)column - (i64)row == params.diagonal;
      const float a = positive ? -z : z, u = expf(-fabsf(a));
      // fmaxf drops a NaN; the sum with log1p(u), which is NaN then, does not.
      row_loss += fmaxf(a, 0.f) + log1pf(u);
      if constexpr (WITH_GRADIENT) {
        const float sigmoid = (a >= 0.f ? 1.f : u) / (1.f + u), q = positive ? -sigmoid : sigmoid;
        x[column] = positive ? 0.f : q;
        if (positive) params.positive[row] = q;
        row_q += q;
        row_q_x = fmaf(q, dot, row_q_x);
      }
    }
    loss += row_loss;
    q_sum += row_q;
    q_x_sum += row_q_x;
  }
  add_to_slot(params.sums, blockIdx.x * 8 + warp, loss, q_sum, q_x_sum, params.first, lane);
}
