// The logit GEMM of route fp8-all on Hopper, of rows as quantize_fp8.cu leaves them, with the pair loss and its gradient in the epilogue: writes G = gain * dL/dz and its transpose
// in e5m2 (only with WITH_GRADIENT), as both gradient products read them along K, and per-warp sums. Logits never reach memory.
//
// Bytes of G lie within every 16 columns, and those of the transpose within every 16 rows, in the order in which the fragments have them; quantize_fp8.cu orders the rows that they
// are multiplied by alike.
//   WITH_GRADIENT: 0 or 1    CLUSTER_SIZE: 1 or 2    COLUMNS: of a tile, 128, or 192 with gradients
#include "ptx/matrix.cuh"
#include "sigmoid.cuh"
#include "sm90/mainloop.cuh"

struct LogitsFp8Params {
  ScalarArg log_temp, bias;
  u32 first;               // 1: this launch opens the sums, 0: it adds to them
  i64 diagonal;            // column - row of a positive pair, relative to this block's origin
  double* sums;            // [gridDim.x * 8][3]
  const int* exponents;    // log2 of the factors of images and of texts
  const float* terms;      // of the logits of each image row, beside their dot products and in units of those, from this block's first row on
  float* positives;        // the positive pairs' dot products from this block's first row on, with a gradient to be replaced by their q
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Staging of a consumer, for 64 rows at a time: G as PARTS * 4 boxes of 16 x 64 bytes, its transpose as one of COLUMNS x 64, and 16 x 32 dot products for each warp.
constexpr u32 PARTS = COLUMNS / 64, BOX_BYTES = 16 * 64, TRANSPOSE_AT = PARTS * 4 * BOX_BYTES, DOTS_AT = TRANSPOSE_AT + COLUMNS * 64;
typedef Mainloop<E4M3, Major::K, Major::K, Schedule::PING_PONG, CLUSTER_SIZE, WITH_GRADIENT ? DOTS_AT + 4 * 2048 : 0, COLUMNS, COLUMNS == 192 ? 240 : 232,
                 WITH_GRADIENT != 0> Loop;

struct LogitsEpilogue {
  static constexpr u32 HALF = Loop::ACC / 2, PIECE = 16;
  const TensorMap *map_g, *map_transpose;
  const GemmShape& shape;
  const LogitsFp8Params& params;
  PairConstants constants;
  PairSums sums;
  u32 warp, lane;

  DEV int unit_log2() const { return -(params.exponents[0] + params.exponents[1]); }
  DEV void begin() { constants = PairConstants(params.log_temp.load(), params.bias.load(), unit_log2()); }
  // Of a warp's 16 rows from `row` on.
  DEV RowConstants constants_of(u32 row) const {
    const u32 first = row + lane / 4;
    return {constants, {first < shape.m ? params.terms[first] : 0.f, first + 8 < shape.m ? params.terms[first + 8] : 0.f}};
  }
  DEV FragmentPlace place(u32 row, u32 column) const {
    const int diagonal = nearby(params.diagonal + (i64)row - (i64)column);
    return {diagonal, (int)shape.m - (int)row, (int)shape.n - (int)column, lane, params.positives, row};
  }

  DEV void tile(float (&acc)[Loop::ACC], u32 m0, u32 n0, u32 staging) {
    const u32 row = m0 + warp * 16;
    if constexpr (!WITH_GRADIENT) {
#pragma unroll
      for (u32 half = 0; half < 2; ++half)
        pairs<E5M2, false, HALF>(acc + HALF * half, nullptr, sums, constants_of(row + half * 64), place(row + half * 64, n0));
    } else {
      // Decided for both halves at once, so that a sum's register is free again once its pair is done.
      if (__builtin_expect(!is_plain(place(row, n0), COLUMNS) || !is_plain(place(row + 64, n0), COLUMNS), 0)) return special(acc, m0, n0, staging);
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        const RowConstants of_rows = constants_of(row + half * 64);
        acquire();
        pairs_plain<E5M2, true, HALF>(InRegisters{acc + half * HALF}, [&](u32 i, const u32 (&packed)[4]) { write(staging, i, packed); }, sums, of_rows);
        store(staging, m0 + half * 64, n0);
      }
    }
  }
  // Tiles with positives or an edge, 16 x 32 pairs at a time by one copy of the code, which for that takes them from shared memory: registers cannot be counted through, and
  // a copy for each piece would leave none to spare. Other warps of the tile may go the usual way.
  DEV void special(const float* acc, u32 m0, u32 n0, u32 staging) {
    const InShared x(staging + DOTS_AT + warp * 2048, lane);
#pragma unroll 1
    for (u32 piece = 0; piece < Loop::ACC / PIECE; ++piece) {
      constexpr u32 OF_HALF = HALF / PIECE;
      const u32 row = m0 + piece / OF_HALF * 64, column = n0 + piece % OF_HALF * 32;
      if (piece % OF_HALF == 0) acquire();
      if (column < shape.n) {  // nobody reads what would lie beyond
#pragma unroll
        for (u32 i = 0; i < Loop::ACC / PIECE; ++i)
          if (piece == i) x.set(acc + PIECE * i);
        const auto put = [&](u32 i, const u32 (&packed)[4]) { write(staging, piece % OF_HALF * 2 + i, packed); };
        pairs_short<E5M2, true, PIECE>(x, put, sums, constants_of(row + warp * 16), place(row + warp * 16, column));
      }
      if (piece % OF_HALF == OF_HALF - 1) store(staging, row, n0);
    }
  }

  // Once the stores of the 64 rows before have read the staging memory.
  DEV void acquire() const {
    if (lane == 0) tma::wait_read<0>();
    named_barrier(barrier(), WARPGROUP);
  }
  DEV u32 barrier() const { return 2 + threadIdx.x / WARPGROUP; }
  // 16 rows x columns 16 * i to 16 * i + 15, and their transpose. Rows of 64 bytes lie in 64-byte swizzle.
  DEV void write(u32 staging, u32 i, const u32 (&packed)[4]) const {
    const u32 line = lane & 15, at = staging + line * 64 + ((line >> 1 & 3) << 4);
    store_matrix_x2((at + warp * BOX_BYTES ^ i % 4 << 4) + i / 4 * 4 * BOX_BYTES, packed[0], packed[1]);
    store_matrix_x2_transposed((at ^ warp << 4) + TRANSPOSE_AT + i * 1024, packed[2], packed[3]);
  }
  DEV void store(u32 staging, u32 row, u32 column) const {
    fence_async_shared();
    named_barrier(barrier(), WARPGROUP);
    if (lane != 0) return;
#pragma unroll
    for (u32 i = 0; i < PARTS; ++i)
      tma::store_2d(map_g, staging + (i * 4 + warp) * BOX_BYTES, (int)(column + i * 64), (int)(row + warp * 16));
    if (warp == 0) tma::store_2d(map_transpose, staging + TRANSPOSE_AT, (int)row, (int)column);
    tma::commit();
  }
  DEV void finish() {
    if (WITH_GRADIENT && lane == 0) tma::wait_all();
    const u32 slot = blockIdx.x * 8 + threadIdx.x / WARP - 4;
    store_sums<E5M2>(params.sums, slot, sums, params.first, lane, unit_log2());
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
siglip_logits_fp8(const __grid_constant__ TensorMap img, const __grid_constant__ TensorMap txt, const __grid_constant__ TensorMap g,
                  const __grid_constant__ TensorMap transpose, const __grid_constant__ GemmShape shape, const __grid_constant__ LogitsFp8Params params) {
  extern __shared__ __align__(1024) u8 shared[];
  LogitsEpilogue epilogue = {&g, &transpose, shape, params, {}, {}, uniform(threadIdx.x / WARP % 4), threadIdx.x % WARP};
  Loop(shared).run(img, txt, shape, epilogue);
}
#endif
