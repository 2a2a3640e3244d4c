// Both gradient GEMMs of route fp8-all on Hopper: d_img = G * txt or d_txt = G^T * img, of G in e5m2 and rows in e4m3, all of them along K as logits_fp8.cu and quantize_fp8.cu leave
// them. Summed in f32 over blocks.
//   COLUMNS of a tile: 128 or 192
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct GradientFp8Params {
  u32 first;  // 1 overwrites the sums, 0 adds to them
  u32 row;    // where this block's rows begin in the output
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef Mainloop<E5M2ByE4M3, Major::K, Major::K, Schedule::ROUNDED, 1, 16384, COLUMNS, 232> Loop;

struct GradientEpilogue {
  const TensorMap* map;
  const GradientFp8Params& params;
  u32 warp, lane;

  DEV void begin() {}
  DEV void tile(float (&sum)[Loop::ACC], u32 m0, u32 n0, u32 staging) {
    WarpStaging(staging, warp).store_sums<2, COLUMNS>(sum, map, n0, params.row + m0 + warp * 16, params.first, lane);
  }
  DEV void finish() {
    if (lane == 0) tma::wait_all();
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1)
siglip_gradient_fp8(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap out,
                    const __grid_constant__ GemmShape shape, const __grid_constant__ GradientFp8Params params) {
  extern __shared__ __align__(1024) u8 shared[];
  GradientEpilogue epilogue = {&out, params, threadIdx.x / WARP % 4, threadIdx.x % WARP};
  Loop(shared).run(a, b, shape, epilogue);
}
#endif
