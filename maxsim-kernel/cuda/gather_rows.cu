// Token rows gathered by a table: those that a mask keeps, to packed rows; and packed rows back to where they were, zeros between them.
//   ELEMENT: F32, F16 or BF16
#include "element.cuh"
#include "ptx/sync.cuh"

struct GatherParams {
  const void* from;
  void* to;
  const u32* rows;                    // [count]: which row of `from`; NONE: zeros
  u64 from_stride, to_stride, count;  // strides in elements
  u32 dim;
};
constexpr u32 NONE = ~0u;

// A warp a row, in pieces of SIZE elements. Of no row they are zeros.
template <class P, u32 SIZE> DEV void gather(const GatherParams& params) {
  const u32 lane = threadIdx.x % WARP, pieces = params.dim / SIZE;
  const u64 stride = (u64)gridDim.x * (blockDim.x / WARP);
  for (u64 row = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; row < params.count; row += stride) {
    const u32 source = params.rows[row];
    const P* from = static_cast<const P*>(params.from) + source * (params.from_stride / SIZE);
    P* to = static_cast<P*>(params.to) + row * (params.to_stride / SIZE);
    for (u32 i = lane; i < pieces; i += WARP) {
      P piece = {};
      if (source != NONE) piece = from[i];
      to[i] = piece;
    }
  }
}

KERNEL __launch_bounds__(256) maxsim_gather_rows(const __grid_constant__ GatherParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  typedef ELEMENT::Storage Storage;
  constexpr u32 SIZE = sizeof(uint4) / sizeof(Storage);
  const bool aligned = ((u64)params.from | (u64)params.to) % sizeof(uint4) == 0;
  if (aligned && (params.from_stride | params.to_stride | params.dim) % SIZE == 0) gather<uint4, SIZE>(params);
  else gather<Storage, 1>(params);
}
