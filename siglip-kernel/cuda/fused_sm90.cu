// Logits, loss, G and the row side's gradient of a block in one launch on Hopper: d_img (+)= G * txt, where G = gain * dL/dz never has to reach memory as a whole.
//   ELEMENT: BF16 or F16
//
// A panel of 128 rows belongs to `slices` CTAs, each of which keeps 128 columns of the panel's gradient in the registers of one consumer warpgroup for the whole
// launch. In a round they make the logits of as many text tiles, one each, which the other consumer turns into G, and then multiply those of the round before
// by the texts. So the epilogue of one consumer runs under the products of the other, and the two products of a round are alike in length.
// G passes from CTA to CTA of a panel through a ring of rounds in global memory (the L2), guarded by counters. So a panel's CTAs must be on the device at once: a
// launch has no more than fit, and as CTAs start in order, beside other work at most one panel waits for its last ones while those before it go on. (Launches that
// a scheduler mixes, of streams with other priorities, could wait for each other only if incomplete panels, one each, held all multiprocessors.)
//
// A block of few rows has several panels for each 128 of them, a group of rounds each: every panel has accumulators of its own, which are added up later.
#include "sigmoid.cuh"
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct FusedParams {
  ScalarArg log_temp, bias;
  u32 rows, cols, dim;     // of the block; features
  int row, col;            // where it begins in images and texts
  u32 slices;              // CTAs of a panel: tiles that `dim` takes
  u32 rounds;              // of a group of columns; the last one may have fewer
  u32 ring;                // rounds of a group that G holds
  u32 opens_sums, opens;   // 1: this launch sets the slots of the sums; the accumulators; 0: it adds to them
  i64 diagonal;            // column - row of a positive pair, relative to the block's origin
  double* sums;            // [gridDim.x * 4][3]
  u32* counters;           // [panels][COUNTERS], zero between launches
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef Mainloop<ELEMENT, Major::K, Major::K, Schedule::PING_PONG, 1, 16384> Loop;  // both consumers' staging is the epilogues' in turn
constexpr u32 TILE = 128, COUNTERS = 5;  // of a panel
static_assert(Loop::SHARED_BYTES + 3 * 8 <= Loop::SHARED_LIMIT, "no room for the barriers of staging, behind the loop's");

struct Fused {
  const TensorMap &img, &txt, &txt_rows, &g_store, &g_load, &out;
  const FusedParams& params;
  Loop loop;
  u32 panel, row, group;  // the panel; where its rows begin in the block; which of their groups of rounds is the panel's
  u32 slice, rounds, logit_stages, product_stages;

  // Of the panel: CTAs that have stored their tile of a round, and that have read a round, for even and for odd rounds by themselves; CTAs that are done.
  // One count of all rounds would not do: a CTA stores its tile of round r + 1 before its products of round r, and would stand for one that has not stored r.
  // With two, none is a whole count ahead: the logits of r + 2 come after the products of r, for which all of the panel have stored r; and before a CTA's tile of
  // r + 2 is stored, without which nobody reads r + 2, its own copies of G of round r have landed.
  DEV u32* written(u32 round) const { return params.counters + panel * COUNTERS + round % 2; }
  DEV u32* read(u32 round) const { return written(round) + 2; }
  DEV u32* done() const { return written(0) + 4; }
  // What both stand at, at least, when all have stored, or read, that round.
  DEV u32 all_of(u32 round) const { return params.slices * (round / 2 + 1); }
  DEV int g_column(u32 round) const { return (int)((group * params.ring + round % params.ring) * params.slices * TILE); }
  DEV u32 texts(u32 round) const { return (group * params.rounds + round) * params.slices * TILE; }  // of the block, where the round's begin
  DEV u32 text(u32 round) const { return texts(round) + slice * TILE; }                              // and this CTA's

  DEV void produce() const {
    RingPlace at;
    for (u32 round = 0; round <= rounds; ++round) {
      if (round < rounds) {
        if (round >= params.ring) wait_for(read(round - params.ring), all_of(round - params.ring));
        for (u32 k = 0; k < logit_stages; ++k) {
          const u32 barrier = begin(at);
          tma::load_2d(loop.a + at.stage * Loop::A_BYTES, &img, barrier, (int)(k * Loop::TILE_K), params.row + (int)row);
          tma::load_2d(loop.b + at.stage * Loop::B_BYTES, &txt, barrier, (int)(k * Loop::TILE_K), params.col + (int)text(round));
          at.next(Loop::STAGES);
        }
      }
      if (round == 0) continue;
      const u32 of = round - 1;
      wait_for(written(of), all_of(of));
      fence_async();
      const int k0 = (int)texts(of), g0 = g_column(of);
      for (u32 k = 0; k < product_stages; ++k) {
        const u32 barrier = begin(at), to_b = loop.b + at.stage * Loop::B_BYTES;
        tma::load_2d(loop.a + at.stage * Loop::A_BYTES, &g_load, barrier, g0 + (int)(k * Loop::TILE_K), (int)row);
        Loop::load_rows<true, TILE>(to_b, txt_rows, barrier, (int)(slice * TILE), params.col + k0 + (int)(k * Loop::TILE_K));
        at.next(Loop::STAGES);
      }
    }
  }
  DEV u32 begin(const RingPlace& at) const {
    mbarrier::wait(loop.empty + 8 * at.stage, at.parity ^ 1);
    mbarrier::expect_bytes(loop.full + 8 * at.stage, Loop::A_BYTES + Loop::B_BYTES);
    return loop.full + 8 * at.stage;
  }

  // One thread stores what the warps of the other consumer stage, half a tile after the other, and tells the panel when a tile is complete.
  DEV void store() const {
    for (u32 round = 0; round < rounds; ++round) {
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        mbarrier::wait(staged(half), round & 1);
#pragma unroll
        for (u32 i = 0; i < 2; ++i)
          tma::store_2d(&g_store, loop.staging + (2 * half + i) * 8192, g_column(round) + (int)(slice * TILE + i * 64), (int)(row + half * 64));
        tma::commit();
      }
      tma::wait_all();
      add_release(written(round), 1);
      mbarrier::arrive(unstaged());
    }
  }
  // Stages go round in the order of both consumers, more than once for one's products: only whose turn it is may wait for a stage. And no warp of it may be
  // late, whether there was another's turn between or not: the first one frees the stages that all of them read.
  DEV void take_turn(u32 consumer, bool others, u32 turn) const {
    if (others) mbarrier::wait(loop.turn + 8 * consumer, turn & 1);
    named_barrier(1 + consumer, WARPGROUP);
  }
  DEV void pass_turn(u32 to) const { mbarrier::arrive(loop.turn + 8 * to); }

  DEV u32 staged(u32 half) const { return loop.turn + 8 * (Loop::CONSUMERS + half); }
  DEV u32 unstaged() const { return staged(2); }
  DEV void init_barriers() const {
    loop.init_barriers();
    for (u32 half = 0; half < 2; ++half) mbarrier::init(staged(half), WARPGROUP / WARP);
    mbarrier::init(unstaged(), 1);
    mbarrier::fence_init();
  }

  DEV void pairs_of_rounds(u32 thread) {
    const u32 warp = thread / WARP, lane = thread % WARP;
    const PairConstants constants(params.log_temp.load(), params.bias.load(), 0);
    const WarpStaging stage(loop.staging, warp);
    PairSums sums;
    RingPlace at;
    float acc[Loop::ACC];
#pragma unroll 1
    for (u32 round = 0; round < rounds; ++round) {
      take_turn(0, round > 1, round - 2);
      at = at.broadcast();
      const bool passes = round > 0 || rounds == 1;
      walk_stages(
          at, Loop::STAGES, loop.full, logit_stages,
          [&](u32 stage, u32 k) {
            if (passes && k == logit_stages - 1 && thread == 0) pass_turn(1);
            Loop::multiply_stage<false, false>(acc, loop.a + stage * Loop::A_BYTES, loop.b + stage * Loop::B_BYTES, k != 0);
          },
          [&](u32 stage) { loop.release(stage, thread); });
      wgmma::tie(acc);
      if (round > 0) at.skip(product_stages, Loop::STAGES);
      const u32 column = text(round);
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        u32 packed[32];
        const u32 r = row + warp * 16 + half * 64;
        const FragmentPlace place = {nearby(params.diagonal + (i64)r - (i64)column), (int)params.rows - (int)r, (int)params.cols - (int)column, lane, nullptr, r};
        pairs<ELEMENT, true, Loop::ACC / 2>(acc + Loop::ACC / 2 * half, packed, sums, constants, place);
        if (half == 0 && round > 0) mbarrier::wait(unstaged(), (round - 1) & 1);
        stage.write_16bit(stage.buffer(2 * half), packed, lane);
        stage.write_16bit(stage.buffer(2 * half + 1), packed + 16, lane);
        stage.publish();
        if (lane == 0) mbarrier::arrive(staged(half));
      }
    }
    store_sums<ELEMENT>(params.sums, blockIdx.x * 4 + threadIdx.x % WARPGROUP / WARP, sums, params.opens_sums, threadIdx.x % WARP);
  }

  DEV void products_of_rounds(u32 thread) {
    const u32 warp = thread / WARP, lane = thread % WARP;
    RingPlace at;
    float acc[Loop::ACC];
#pragma unroll 1
    for (u32 round = 0; round < rounds; ++round) {
      if (round == 0) at.skip(logit_stages, Loop::STAGES);
      if (round + 1 < rounds) at.skip(logit_stages, Loop::STAGES);
      take_turn(1, round == 0 || round + 1 < rounds, round);
      at = at.broadcast();
      const bool passes = round + 2 < rounds;
      walk_stages(
          at, Loop::STAGES, loop.full, product_stages,
          [&](u32 stage, u32 k) {
            if (passes && k == product_stages - 1 && thread == 0) pass_turn(0);
            Loop::multiply_stage<false, true>(acc, loop.a + stage * Loop::A_BYTES, loop.b + stage * Loop::B_BYTES, (round | k) != 0);
          },
          [&](u32 stage) { loop.release(stage, thread); });
      wgmma::tie(acc);
      if (thread == 0) add_release(read(round), 1);
    }
    // This CTA's last tile of G is stored, so the staging memory is free.
    WarpStaging(loop.staging, warp).store_sums<4, TILE>(acc, &out, slice * TILE, panel * TILE + warp * 16, params.opens, lane);
    if (lane == 0) tma::wait_all();
    // The panel's last CTA leaves its counters as it found them.
    if (thread == 0 && add_acquire_release(done(), 1) == params.slices - 1)
      for (u32* counter = written(0); counter <= done(); ++counter) *counter = 0;
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1)
siglip_fused_sm90(const __grid_constant__ TensorMap img, const __grid_constant__ TensorMap txt, const __grid_constant__ TensorMap txt_rows,
                  const __grid_constant__ TensorMap g_store, const __grid_constant__ TensorMap g_load, const __grid_constant__ TensorMap out,
                  const __grid_constant__ FusedParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  const u32 warpgroup = uniform(threadIdx.x / WARPGROUP), slices = params.slices, panel = blockIdx.x / slices;
  const u32 panels = ceil_div(params.rows, TILE), group = panel / panels;
  Fused fused = {img, txt, txt_rows, g_store, g_load, out, params, Loop(shared), panel, panel % panels * TILE, group, blockIdx.x % slices,
                 min_of(params.rounds, ceil_div(params.cols, slices * TILE) - group * params.rounds), ceil_div(params.dim, Loop::TILE_K), slices * (TILE / Loop::TILE_K)};
  if (threadIdx.x == 0) {
    for (const TensorMap* map : {&img, &txt, &txt_rows, &g_load}) tma::prefetch_map(map);
    fused.init_barriers();
  }
  __syncthreads();
  grid_dependency_wait();
  grid_dependency_launch();
  if (warpgroup == 0) {
    registers_shrink<Loop::PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) fused.produce();
    else if (threadIdx.x == WARP) fused.store();
  } else {
    registers_grow<232>();
    if (warpgroup == 1) fused.pairs_of_rounds(kept(threadIdx.x % WARPGROUP));
    else fused.products_of_rounds(kept(threadIdx.x % WARPGROUP));
  }
}
#endif
