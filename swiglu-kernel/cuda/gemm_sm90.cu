// A plain product on Hopper, for the shapes where it beats the library: C = A B, rounded to the element type.
//   ELEMENT: BF16 or F16    A_LAYOUT, B_LAYOUT: K or MN    TILE_SCHEDULE: PING_PONG or COOPERATIVE    CLUSTER_SIZE: 1 or 2
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef Mainloop<ELEMENT, Major::A_LAYOUT, Major::B_LAYOUT, Schedule::TILE_SCHEDULE, CLUSTER_SIZE> Loop;

struct GemmEpilogue {
  const TensorMap& map;
  u32 warp, lane;

  DEV void begin() {}
  DEV void tile(float (&acc)[128], u32 m0, u32 n0, u32 staging) {
    const WarpStaging stage(staging, warp);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {  // 16 rows x 64 columns at a time
      u32 packed[16];
#pragma unroll
      for (u32 j = 0; j < 16; ++j) packed[j] = ELEMENT::pack(acc[32 * i + 2 * j], acc[32 * i + 2 * j + 1]);
      const u32 buffer = stage.buffer(i & 1);
      stage.acquire<1>(lane);
      stage.write_16bit(buffer, packed, lane);
      stage.publish();
      if (lane == 0) {
        tma::store_2d(&map, buffer, (int)(n0 + i % 2 * 64), (int)(m0 + i / 2 * 64 + warp * 16));
        tma::commit();
      }
    }
  }
  DEV void finish() {
    if (lane == 0) tma::wait_all();
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
swiglu_gemm_sm90(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c,
                 const __grid_constant__ GemmShape shape) {
  extern __shared__ __align__(1024) u8 shared[];
  GemmEpilogue epilogue = {c, threadIdx.x / WARP % 4, threadIdx.x % WARP};
  Loop(shared).run(a, b, shape, epilogue);
}
#endif
