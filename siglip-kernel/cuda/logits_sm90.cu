// The logit GEMM on Hopper with the pair loss and its gradient in the epilogue: reads image rows and text rows, writes
// G = gain * dL/dz (only with WITH_GRADIENT) and per-warp sums. Logits never reach memory.
//   ELEMENT: BF16 or F16    OPERAND: ELEMENT, or E4M3 for rows as quantize_fp8.cu leaves them    WITH_GRADIENT: 0 or 1    CLUSTER_SIZE: 1 or 2
//   COLUMNS: of a tile, 128, or 192 with gradients
#include "sigmoid.cuh"
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct LogitsParams {
  ScalarArg log_temp, bias;
  u32 first;          // 1: this launch opens the sums, 0: it adds to them
  i64 diagonal;       // column - row of a positive pair, relative to this block's origin
  double* sums;       // [gridDim.x * 8][3]
  // Of E4M3: log2 of the factors of images and of texts, and the positive pairs' dot products from this block's first row on.
  const int* exponents;
  float* positives;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool FP8 = OPERAND::KIND == Kind::E4M3;
// A whole narrow tile of G is staged at once, so that the epilogue never waits for its own stores; of a wide one only half, as memory for four stages of
// operands is worth more (three: 645 against 738 TF/s on an H200).
constexpr bool WIDE = COLUMNS == 192;
constexpr u32 PARTS = COLUMNS / 64, BUFFERS = WIDE ? PARTS : 2 * PARTS;
typedef Mainloop<OPERAND, Major::K, Major::K, Schedule::PING_PONG, CLUSTER_SIZE, WITH_GRADIENT ? BUFFERS * 8192 : 0, COLUMNS, WIDE ? 240 : 232,
                 WIDE> Loop;

struct LogitsEpilogue {
  static constexpr u32 HALF = Loop::ACC / 2, PIECE = 16;
  // Positives and what does not exist are taken out of the accumulators. With positives' dot products given that leaves no registers for the rest of a wide tile.
  static constexpr bool TAKES = !FP8;
  const TensorMap* map_g;
  const GemmShape& shape;
  const LogitsParams& params;
  PairConstants constants;
  PairSums sums;
  u32 warp, lane;

  DEV int unit_log2() const { return FP8 ? -(params.exponents[0] + params.exponents[1]) : 0; }
  DEV void begin() { constants = PairConstants(params.log_temp.load(), params.bias.load(), unit_log2()); }
  DEV FragmentPlace place(u32 row, u32 column) const {
    const int diagonal = nearby(params.diagonal + (i64)row - (i64)column);
    return {diagonal, (int)shape.m - (int)row, (int)shape.n - (int)column, lane, FP8 ? params.positives : nullptr, row};
  }

  DEV void tile(float (&acc)[Loop::ACC], u32 m0, u32 n0, u32 staging) {
    const u32 row = m0 + warp * 16;
    const WarpStaging stage(staging, warp);
    if constexpr (WIDE) {
      // Decided for both halves at once, so that a sum's register is free again once its pair is done.
      const bool plain = is_plain(place(row, n0), COLUMNS) && is_plain(place(row + 64, n0), COLUMNS), takes = TAKES && constants.scale_log2 > LEAST_SCALE;
      if (__builtin_expect(!plain && !takes, 0)) return special(acc, row, n0, stage);
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        const auto put = [&](u32 i, const u32 (&packed)[4]) { stage.write_16_columns(stage.buffer(i / 4), i % 4, packed, lane); };
        stage.acquire<0>(lane);
        const FragmentPlace at = place(row + half * 64, n0);
        const bool positives = TAKES && __builtin_expect(has_positives(at, COLUMNS), 0);
        Positives taken;
        if (positives) taken.take<ELEMENT, true, HALF>(acc + half * HALF, sums, constants, at);
        if (TAKES && __builtin_expect(!is_whole(at, COLUMNS), 0)) leave_out<HALF>(acc + half * HALF, at);
        pairs_plain<ELEMENT, true, HALF>(InRegisters{acc + half * HALF}, put, sums, constants);
        if (positives) taken.put_staged<HALF>(at, [&](u32 i, u32 k) { return stage.buffer(k / 64) + WarpStaging::of_16bit(i, k % 64); });
        store<PARTS>(stage.buffer(0), row + half * 64, n0, stage);
      }
    } else {
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        u32 packed[32];
        pairs<ELEMENT, WITH_GRADIENT, HALF>(acc + HALF * half, packed, sums, constants, place(row + half * 64, n0));
        if constexpr (WITH_GRADIENT) {
          stage.acquire<1>(lane);
          stage.write_16bit(stage.buffer(2 * half), packed, lane);
          stage.write_16bit(stage.buffer(2 * half + 1), packed + 16, lane);
          store<PARTS>(stage.buffer(2 * half), row + half * 64, n0, stage);
        }
      }
    }
  }
  // A warp's rows of a wide tile with positives or an edge that cannot be taken out, 16 x 32 pairs at a time by one copy of the code, which for that takes them from
  // shared memory: registers cannot be counted through, and a copy for each piece would leave none to spare.
  DEV void special(const float* acc, u32 row, u32 n0, const WarpStaging& stage) {
    const bool faint = sums.faint;
    sums.faint = false;
    const InShared x(stage.buffer(2), lane);
    stage.acquire<0>(lane);
    u32 stored = 0;
#pragma unroll 1
    for (u32 piece = 0; piece < Loop::ACC / PIECE; ++piece) {
      const u32 to = stage.buffer(stored % 2), of_part = piece % 2, r = row + piece / (HALF / PIECE) * 64, column = n0 + piece % (HALF / PIECE) * 32;
      if (column - of_part * 32 >= shape.n) continue;  // nobody reads what would lie there
      if (of_part == 0) stage.acquire<1>(lane);
#pragma unroll
      for (u32 i = 0; i < Loop::ACC / PIECE; ++i)
        if (piece == i) x.set(acc + PIECE * i);
      const auto put = [&](u32 i, const u32 (&packed)[4]) { stage.write_16_columns(to, of_part * 2 + i, packed, lane); };
      pairs_short<ELEMENT, true, PIECE>(x, put, sums, constants, place(r, column));
      sums.faint = false;
      if (of_part == 1) {
        store<1>(to, r, column - 32, stage);
        ++stored;
      }
    }
    sums.faint = faint;
  }
  // 16 rows and 64 columns of each of the buffers from `from` on.
  template <u32 COUNT> DEV void store(u32 from, u32 row, u32 column, const WarpStaging& stage) const {
    stage.publish();
    if (lane == 0) {
#pragma unroll
      for (u32 i = 0; i < COUNT; ++i) tma::store_2d(map_g, from + i * 8192, (int)(column + i * 64), (int)row);
      tma::commit();
    }
  }
  DEV void finish() {
    if (WITH_GRADIENT && lane == 0) tma::wait_all();
    const u32 slot = blockIdx.x * 8 + threadIdx.x / WARP - 4;
    store_sums<ELEMENT>(params.sums, slot, sums, params.first, lane, unit_log2());
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
siglip_logits_sm90(const __grid_constant__ TensorMap img, const __grid_constant__ TensorMap txt, const __grid_constant__ TensorMap g,
                   const __grid_constant__ GemmShape shape, const __grid_constant__ LogitsParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  LogitsEpilogue epilogue = {&g, shape, params, {}, {}, threadIdx.x / WARP % 4, threadIdx.x % WARP};
  Loop(shared).run(img, txt, shape, epilogue);
}
#endif
