// The logit GEMM with the pair loss and its gradient in the epilogue, for every GPU from sm_80: mma.sync, persistent over tiles.
//   ELEMENT: BF16 or F16    WITH_GRADIENT: 0 or 1
#include "portable/mainloop.cuh"
#include "ptx/sync.cuh"
#include "sigmoid.cuh"

typedef PortableMainloop<ELEMENT> Loop;

struct LogitsPortableParams {
  ScalarArg log_temp, bias;
  Loop::Operand img, txt;
  u32 k, first;
  i64 diagonal;   // column - row of a positive pair, relative to this block's origin
  u16* g;         // whole tiles: rows and columns up to the next multiple of 128 are written
  u64 g_stride;   // elements
  double* sums;   // [gridDim.x * 8][3]
};

KERNEL __launch_bounds__(Loop::THREADS, 2) siglip_logits_portable(const __grid_constant__ LogitsPortableParams params) {
  extern __shared__ __align__(128) u8 shared[];
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const u32 tiles_m = ceil_div(params.img.rows, Loop::TILE_M), tiles = tiles_m * ceil_div(params.txt.rows, Loop::TILE_N);
  grid_dependency_wait();
  const PairConstants constants(params.log_temp.load(), params.bias.load());
  PairSums sums;
  for (u32 t = blockIdx.x; t < tiles; t += gridDim.x) {
    const u32 m0 = t % tiles_m * Loop::TILE_M, n0 = t / tiles_m * Loop::TILE_N;
    float acc[4][16];
    Loop::multiply(acc, shared, params.img, params.txt, m0, n0, params.k);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 row = m0 + warp % 2 * 64 + i * 16, column = n0 + warp / 2 * 32;
      const FragmentPlace place = {nearby(params.diagonal + (i64)row - (i64)column), (int)params.img.rows - (int)row, (int)params.txt.rows - (int)column, lane};
      u32 packed[8];
      pairs<ELEMENT, WITH_GRADIENT, 16>(acc[i], packed, sums, constants, place);
      if constexpr (WITH_GRADIENT)
#pragma unroll
        for (u32 j = 0; j < 4; ++j)
#pragma unroll
          for (u32 half = 0; half < 2; ++half) {
            u16* to = params.g + (u64)(row + lane / 4 + half * 8) * params.g_stride + column + j * 8 + lane % 4 * 2;
            *reinterpret_cast<u32*>(to) = packed[2 * j + half];
          }
    }
  }
  store_sums<ELEMENT>(params.sums, blockIdx.x * 8 + warp, sums, params.first, lane);
}
