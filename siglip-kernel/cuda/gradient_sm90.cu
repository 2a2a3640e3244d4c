// The two gradient GEMMs on Hopper, accumulated in f32 over blocks: d_img += G * txt (A_LAYOUT K) or d_txt += G^T * img (A_LAYOUT MN).
//   ELEMENT: BF16 or F16    A_LAYOUT: K or MN    CLUSTER_SIZE: 1 or 2    TILE_SCHEDULE: PING_PONG or COOPERATIVE
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct GradientParams {
  u32 first;  // 1: overwrite the accumulators, 0: add to them
  u32 row;    // where this block's rows begin in the accumulators
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef Mainloop<ELEMENT, Major::A_LAYOUT, Major::MN, Schedule::TILE_SCHEDULE, CLUSTER_SIZE> Loop;

struct GradientEpilogue {
  const TensorMap* map;
  const GradientParams& params;
  u32 warp, lane;

  DEV void begin() {}
  DEV void tile(float (&acc)[128], u32 m0, u32 n0, u32 staging) {
    const WarpStaging stage(staging, warp);
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {  // 16 rows x 32 columns at a time
      const int row = (int)(params.row + m0 + (i / 4) * 64 + warp * 16), column = (int)(n0 + (i % 4) * 32);
      const u32 buffer = stage.buffer(i & 1);
      stage.acquire<1>(lane);
      stage.write_f32(buffer, acc + 16 * i, lane);
      stage.publish();
      if (lane == 0) {
        if (params.first) tma::store_2d(map, buffer, column, row);
        else tma::add_2d(map, buffer, column, row);
        tma::commit();
      }
    }
  }
  DEV void finish() {
    if (lane == 0) tma::wait_all();
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
siglip_gradient_sm90(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap out,
                     const __grid_constant__ GemmShape shape, const __grid_constant__ GradientParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  GradientEpilogue epilogue = {&out, params, threadIdx.x / WARP % 4, threadIdx.x % WARP};
  Loop(shared).run(a, b, shape, epilogue);
}
#endif
