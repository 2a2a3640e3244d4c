// From f32 sums to gradients: the queries' partial sums added in order, the documents' atomic sums through the norm.
//   ELEMENT, VECTORIZED, ROW_LANES, ROW_SLICES: see rows.cuh
#include "gradients.cuh"
#include "ptx/sync.cuh"

constexpr u32 WARPS = 8;

struct FinishParams {
  Texts texts;
  u64 tokens;
  u32 dim;
  u32 splits;            // sums of a token, `tokens` rows of `dim` apart
  const float* scratch;  // [splits, tokens, dim]
  E::Storage* gradient;
  u64 gradient_stride;
};

KERNEL __launch_bounds__(WARPS * WARP) maxsim_finish(const __grid_constant__ FinishParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  for (u64 row = (u64)blockIdx.x * WARPS + threadIdx.x / WARP; row < params.tokens; row += (u64)gridDim.x * WARPS) {
    Sum sum;
    sum.clear();
    for (u32 split = 0; split < params.splits; ++split) sum.add_spilled(params.scratch + (split * params.tokens + row) * params.dim, params.dim);
    const bool zero = sum.is_zero();
    if (params.texts.scales && !zero) {  // see finish() of the documents
      const E::Storage* own = static_cast<const E::Storage*>(params.texts.rows) + row * params.texts.row_stride;
      sum.through_norm(own, params.texts.scales[row], params.dim);
    }
    if (Sum::group() == 0) sum.store(params.gradient + row * params.gradient_stride, params.dim);
  }
}

struct ClearParams {
  float* values;
  u64 count;
};
KERNEL __launch_bounds__(256) maxsim_clear(const __grid_constant__ ClearParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < params.count; i += (u64)gridDim.x * blockDim.x) params.values[i] = 0.f;
}
