// Both gradient GEMMs of route int8 on Hopper: d_img = G * txt or d_txt = G^T * img, of G in unsigned and rows in signed 8-bit integers, all of them along K as logits_int8.cu and
// quantize_int8.cu leave them. Integer sums over 128 of K are exact; by the scales of G they are summed in f32, and over blocks.
// Two tile rows share the rows of the other side, which a cluster loads once.
//   COLUMNS of a tile: 128 or 192
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct GradientInt8Params {
  const float* scales;  // [128 of K][stride]: of the rows of G, or of its transpose
  u32 stride;
  u32 first;  // 1 overwrites the sums, 0 adds to them
  u32 row;    // where this block's rows begin in the output
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr u32 CLUSTER_SIZE = 2;
typedef Mainloop<U8ByS8, Major::K, Major::K, Schedule::SCALED, CLUSTER_SIZE, 16384, COLUMNS, 232> Loop;

struct GradientEpilogue {
  const TensorMap* map;
  const GemmShape& shape;
  const GradientInt8Params& params;
  u32 warp, lane;

  DEV void begin() {}
  DEV void scales(float (&of)[2], u32 m0, u32 k) const {
    const u32 row = m0 + warp * 16 + lane / 4;
    const float* from = params.scales + (u64)(k / Loop::TILE_K) * params.stride + row;
    of[0] = row < shape.m ? from[0] : 0.f;
    of[1] = row + 8 < shape.m ? from[8] : 0.f;
  }
  DEV void tile(float (&sum)[Loop::ACC], u32 m0, u32 n0, u32 staging) {
    WarpStaging(staging, warp).store_sums<2, COLUMNS>(sum, map, n0, params.row + m0 + warp * 16, params.first, lane);
  }
  DEV void finish() {
    if (lane == 0) tma::wait_all();
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
siglip_gradient_int8(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap out,
                     const __grid_constant__ GemmShape shape, const __grid_constant__ GradientInt8Params params) {
  extern __shared__ __align__(1024) u8 shared[];
  GradientEpilogue epilogue = {&out, shape, params, threadIdx.x / WARP % 4, threadIdx.x % WARP};
  Loop(shared).run(a, b, shape, epilogue);
}
#endif
