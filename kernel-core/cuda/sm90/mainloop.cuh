// The Hopper GEMM mainloop: persistent and warp-specialised.
//
// One producer warpgroup keeps a ring of STAGES shared-memory stages full by TMA; two consumer warpgroups each compute 128 (64 SCALED) x TILE_N outputs:
//   PING_PONG    each owns a whole tile of 128 x TILE_N, and they take turns on the tensor cores, so that one's epilogue runs under the other's
//                mainloop: for short K or a long epilogue;
//   COOPERATIVE  they share a tile of 256 x TILE_N, upper and lower half: a quarter less traffic into shared memory, the epilogue exposed: for long K;
//   SCALED       they share a tile of 128 x TILE_N, upper and lower half, and every 128 bytes along K take its sums times a scale of their row into sums in f32
//                registers: for 8-bit integers whose scale differs along K.
// What happens to a finished tile is the Epilogue's business:
//
//   struct Epilogue {
//     DEV void begin();                                               // once, when the results of earlier launches may be read
//     DEV void tile(float (&acc)[ACC], u32 m0, u32 n0, u32 staging);  // one consumer warpgroup, origin of its 128 (64 SCALED) x TILE_N in the output; sums of
//                                                                     // integers are int (SCALED: float)
//     DEV void scales(float (&of)[2], u32 m0, u32 k);                 // SCALED alone: of rows m0 + 16 * warp + lane / 4 and 8 further on, of 128 bytes of K from k on
//     DEV void finish();                                              // once, after the consumer's last tile
//   };
//
// Accumulators of a thread: acc[TILE_N / 2 * half + 4 * j + e] is row 64 * half + 16 * warp + lane / 4 + 8 * (e / 2), column 8 * j + 2 * (lane % 4) + e % 2 (SCALED:
// half 0 alone).
#pragma once
#include "base.cuh"
#include "ptx/barrier.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "sm90/ring.cuh"
#include "sm90/scheduler.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// How an operand lies in memory: K_MAJOR has K contiguous ([M, K] or [N, K]), MN_MAJOR has M or N contiguous ([K, M] or [K, N]).
enum class Major { K, MN };

enum class Schedule { PING_PONG, COOPERATIVE, SCALED };

struct GemmShape {
  u32 m, n, k;               // of this launch
  int a_mn, a_k, b_mn, b_k;  // where this launch's block begins in the matrices behind the tensor maps
  u32 band;                  // of TileOrder
};

// A consumer warpgroup's way through the stages of one tile: `multiply(stage, k)` queues a stage's products as one group, `release(stage)` tells that it
// has been read. Afterwards all products are done. FIRST_APART: the first stage stands by itself, so that the compiler sees that its products overwrite the sums.
template <bool FIRST_APART = false, class Multiply, class Release>
DEV void walk_stages(RingPlace& at, u32 stages, u32 full, u32 k_blocks, const Multiply& multiply, const Release& release) {
  u32 previous = at.stage;
  if constexpr (FIRST_APART) {
    mbarrier::wait(full + 8 * at.stage, at.parity);
    multiply(at.stage, 0);
    at.next(stages);
  }
#pragma unroll 1
  for (u32 k = FIRST_APART; k < k_blocks; ++k) {
    mbarrier::wait(full + 8 * at.stage, at.parity);
    multiply(at.stage, k);
    wgmma::wait<1>();  // the stage before this one has been read
    if (k != 0) release(previous);
    previous = at.next(stages).stage;
  }
  wgmma::wait<0>();
  release(previous);
}

// STAGING_BYTES: shared memory that each consumer's epilogue may use. TILE_N: columns of a tile, 128 or, by instructions of 64 x 192, 192: a sixth less
// traffic through the L2 (in clusters of 2 a fifth) and a seventh less in shared memory, for 192 accumulators a thread. CONSUMER_REGISTERS: of a thread, up to 240; what is left is the producer's.
// SUMS_DIE: the epilogue may use the registers of sums it is done with, which else are kept until the next tile overwrites them: for 70 instructions more.
template <class E_, Major A_MAJOR, Major B_MAJOR, Schedule SCHEDULE, u32 CLUSTER_ = 1, u32 STAGING_BYTES_ = 16384, u32 TILE_N_ = 128,
          u32 CONSUMER_REGISTERS = TILE_N_ == 192 ? 240 : 232, bool SUMS_DIE = false>
struct Mainloop {
  typedef E_ E;
  static constexpr bool PING_PONG = SCHEDULE == Schedule::PING_PONG, SCALED = SCHEDULE == Schedule::SCALED, A_MN = A_MAJOR == Major::MN, B_MN = B_MAJOR == Major::MN;
  static constexpr u32 CLUSTER = CLUSTER_, STAGING_BYTES = STAGING_BYTES_, CONSUMERS = 2, THREADS = (1 + CONSUMERS) * WARPGROUP;
  static constexpr u32 TILE_M = PING_PONG || SCALED ? 128 : 256, TILE_N = TILE_N_, CONSUMER_M = SCALED ? 64 : 128;
  static_assert(TILE_N == 128 || TILE_N == 192, "no such instruction here");
  static constexpr u32 ACC = TILE_N * CONSUMER_M / 128;  // accumulators of a thread
  static_assert(!SCALED || INTEGER<E>, "scales are for integers");
  static constexpr u32 PRODUCER_REGISTERS = THREADS / WARPGROUP * 168 - CONSUMERS * CONSUMER_REGISTERS;  // a launch gives every thread 168
  static constexpr u32 TILE_K = 128 / sizeof(typename E::Storage);  // a row of a stage is 128 bytes
  static constexpr u32 HALF_BYTES = 64 * 128, A_BYTES = TILE_M * 128, B_BYTES = TILE_N * 128;
  // As many stages as fit beside the rest in what a block may have.
  static constexpr u32 SHARED_LIMIT = 232448, FIXED_BYTES = 1024 + CONSUMERS * STAGING_BYTES + 8 * CONSUMERS;
  static constexpr u32 STAGES = (SHARED_LIMIT - FIXED_BYTES) / (A_BYTES + B_BYTES + 16);
  static constexpr u32 SHARED_BYTES = FIXED_BYTES + STAGES * (A_BYTES + B_BYTES + 16);
  static constexpr u32 TURNS = PING_PONG ? CONSUMERS : 1;  // tiles that a block has under way

  // Shared memory, carved: operand stages, staging buffers, then the barriers. `turn[c]` admits consumer c to the tensor cores.
  u32 a, b, staging, full, empty, turn;
  DEV explicit Mainloop(void* dynamic_shared) {
    a = (shared_address(dynamic_shared) + 1023u) & ~1023u;  // 128-byte swizzle repeats every 1024 bytes
    b = a + STAGES * A_BYTES;
    staging = b + STAGES * B_BYTES;
    full = staging + CONSUMERS * STAGING_BYTES;
    empty = full + 8 * STAGES;
    turn = empty + 8 * STAGES;
  }

  // Where a tile's B comes from: `load` brings one stage of TILE_N rows (or columns) from n on; OUTPUT_N is how far n moves from tile to tile. All
  // CTAs of a cluster share B: each loads its part and multicasts it.
  static_assert(CLUSTER <= 2, "B is shared by two CTAs at most");
  static constexpr u16 EVERYONE = (1 << CLUSTER) - 1;
  struct OneMatrix {
    static constexpr u32 OUTPUT_N = TILE_N, BOX = 64;
    static constexpr bool TWO_WIDTHS = false;
    static_assert(CLUSTER == 1 || TILE_N == 128 || !B_MN, "no such boxes here");
    const TensorMap& map;
    DEV void prefetch() const { tma::prefetch_map(&map); }
    static DEV u32 tile_columns(u32 n) { return ceil_div(n, OUTPUT_N); }
    static DEV u32 column(u32 tile) { return tile * OUTPUT_N; }
    DEV void load(u32 to, u32 barrier, int n, int k, u32 rank) const {
      if constexpr (CLUSTER == 1) load_rows<B_MN, TILE_N>(to, map, barrier, n, k);
      else {
        const u32 part = rank * (B_BYTES / CLUSTER);
        const int n_part = n + (int)(rank * (TILE_N / CLUSTER));
        if constexpr (B_MN) tma::load_2d_multicast(to + part, &map, barrier, n_part, k, EVERYONE);
        else tma::load_2d_multicast(to + part, &map, barrier, k, n_part, EVERYONE);
      }
    }
  };
  // BOX columns of one matrix beside the same of another, and so on: of every BOX accumulators of a half, the first BOX / 2 are the first matrix' and as many
  // the second's, for the same elements. Boxes of BOX x 64 for either major: 64, or 32, which three times make 96 (in 64-byte swizzle where N is
  // contiguous).
  struct TwoMatrices {
    static constexpr u32 OUTPUT_N = TILE_N / 2, BOX = OUTPUT_N % 64 ? 32 : 64, BOX_BYTES = BOX * 128;
    static constexpr bool TWO_WIDTHS = false;
    const TensorMap &first, &second;
    static DEV u32 tile_columns(u32 n) { return ceil_div(n, OUTPUT_N); }
    static DEV u32 column(u32 tile) { return tile * OUTPUT_N; }
    DEV void prefetch() const {
      tma::prefetch_map(&first);
      tma::prefetch_map(&second);
    }
    DEV void load(u32 to, u32 barrier, int n, int k, u32 rank) const { load<OUTPUT_N>(to, barrier, n, k, rank); }
    template <u32 COLUMNS_OF_EACH> DEV void load(u32 to, u32 barrier, int n, int k, u32 rank) const {
#pragma unroll
      for (u32 i = 0; i < COLUMNS_OF_EACH / BOX; ++i) {
        const int from = n + (int)(i * BOX), x = B_MN ? from : k, y = B_MN ? k : from;
        const u32 at = to + 2 * i * BOX_BYTES;
        if constexpr (CLUSTER == 1) {
          tma::load_2d(at, &first, barrier, x, y);
          tma::load_2d(at + BOX_BYTES, &second, barrier, x, y);
        } else tma::load_2d_multicast(at + rank * BOX_BYTES, rank ? &second : &first, barrier, x, y, EVERYONE);
      }
    }
  };

  // The same where the last tiles of a row are a third narrower, all after `wide` ones: two widths divide among the SMs what one would not.
  struct TwoWidths : TwoMatrices {
    static constexpr bool TWO_WIDTHS = true;
    static constexpr u32 NARROW = 64;
    static_assert(PING_PONG && (TILE_N == 192 || TILE_N == 128), "no such tiles here");  // of 128 none is narrower
    u32 wide;
    DEV TwoWidths(const TensorMap& first, const TensorMap& second, u32 wide) : TwoMatrices{first, second}, wide(wide) {}
    DEV u32 tile_columns(u32 n) const { return wide + (n > wide * TwoMatrices::OUTPUT_N ? ceil_div(n - wide * TwoMatrices::OUTPUT_N, NARROW) : 0); }
    DEV bool is_narrow(u32 tile) const { return tile >= wide; }
    DEV u32 column(u32 tile) const { return tile < wide ? tile * TwoMatrices::OUTPUT_N : wide * (TwoMatrices::OUTPUT_N - NARROW) + tile * NARROW; }
  };

  template <class Epilogue>
  DEV void run(const TensorMap& map_a, const TensorMap& map_b, const GemmShape& shape, Epilogue& epilogue) {
    run(map_a, OneMatrix{map_b}, shape, epilogue);
  }
  template <class SourceB, class Epilogue>
  DEV void run(const TensorMap& map_a, const SourceB& source_b, const GemmShape& shape, Epilogue& epilogue) {
    const u32 rank = CLUSTER > 1 ? cluster_rank() : 0, warpgroup = uniform(threadIdx.x / WARPGROUP);
    if (threadIdx.x == 0) {
      tma::prefetch_map(&map_a);
      source_b.prefetch();
      init_barriers();
    }
    if constexpr (CLUSTER > 1) cluster_sync();
    else __syncthreads();
    grid_dependency_wait();
    grid_dependency_launch();
    epilogue.begin();

    const TileOrder order = {ceil_div(shape.m, TILE_M * CLUSTER), source_b.tile_columns(shape.n), shape.band};
    const u32 k_blocks = ceil_div(shape.k, TILE_K);
    if (warpgroup == 0) {
      registers_shrink<PRODUCER_REGISTERS>();
      if (threadIdx.x == 0) produce(map_a, source_b, shape, order, k_blocks, rank);
    } else {
      registers_grow<CONSUMER_REGISTERS>();
      consume(source_b, order, k_blocks, rank, warpgroup - 1, epilogue);
    }
    if constexpr (CLUSTER > 1) cluster_sync();  // no CTA leaves while another may still signal its barriers
  }

  // LINES rows (or columns) of one stage of K. (ROWS and COLUMNS are defines of some kernels.)
  template <bool MN, u32 LINES> static DEV void load_rows(u32 to, const TensorMap& map, u32 barrier, int mn, int k) {
    if constexpr (MN) {
#pragma unroll
      for (u32 i = 0; i < LINES / 64; ++i) tma::load_2d(to + i * HALF_BYTES, &map, barrier, mn + (int)i * 64, k);
    } else tma::load_2d(to, &map, barrier, k, mn);
  }

  // Queues CONSUMER_M x TILE_N += one stage; both operands as rows (or columns) of the stage, B in boxes of BOX columns where N is contiguous.
  // WIDTH: columns of the tile, no more than TILE_N.
  template <bool MN_A, bool MN_B, u32 BOX = 64, u32 WIDTH = TILE_N> static DEV void multiply_stage(Accumulator<E> (&acc)[ACC], u32 from_a, u32 from_b, bool accumulate) {
    const u64 da = descriptor<MN_A>(from_a), da_low = descriptor<MN_A>(from_a + HALF_BYTES), db = descriptor<MN_B, BOX>(from_b);
    wgmma::fence();
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {  // four instructions along K cover the 128 bytes of a stage
      const bool add = accumulate || i != 0;
      wgmma::m64<WIDTH, E, 0, MN_A, MN_B>(acc, da + i * STEP<MN_A>, db + i * STEP<MN_B, BOX>, add);
      if constexpr (!SCALED) wgmma::m64<WIDTH, E, ACC / 2, MN_A, MN_B>(acc, da_low + i * STEP<MN_A>, db + i * STEP<MN_B, BOX>, add);
    }
    wgmma::commit();
  }

  template <bool MN, u32 BOX = 64> static DEV u64 descriptor(u32 shared) {
    return MN ? wgmma::descriptor_mn_major<BOX>(shared, BOX * 128) : wgmma::descriptor_k_major(shared);
  }
  template <bool MN, u32 BOX = 64> static constexpr u64 STEP = (MN ? 16 * BOX * 2 : 32) >> 4;  // of a descriptor, along K

  DEV void release(u32 stage, u32 thread) const {
    if constexpr (CLUSTER > 1) {
      if (thread < CLUSTER) mbarrier::arrive_remote(empty + 8 * stage, thread);
    } else if (thread == 0) mbarrier::arrive(empty + 8 * stage);
  }

  DEV void init_barriers() const {
    for (u32 i = 0; i < STAGES; ++i) {
      mbarrier::init(full + 8 * i, 1);
      mbarrier::init(empty + 8 * i, CLUSTER * (PING_PONG ? 1 : CONSUMERS));  // every consumer that reads the stage, in every CTA
    }
    for (u32 i = 0; i < CONSUMERS; ++i) mbarrier::init(turn + 8 * i, 1);
    mbarrier::fence_init();
  }

 private:
  template <class SourceB>
  DEV void produce(const TensorMap& map_a, const SourceB& source_b, const GemmShape& shape, const TileOrder& order, u32 k_blocks, u32 rank) {
    RingPlace at;
    for (u32 t = blockIdx.x / CLUSTER; t < order.count(); t += gridDim.x / CLUSTER) {
      const TileOrder::Tile tile = order.at(t);
      const int m0 = shape.a_mn + (int)((tile.row * CLUSTER + rank) * TILE_M), n0 = shape.b_mn + (int)source_b.column(tile.col);
      for (u32 k = 0; k < k_blocks; ++k) {
        const u32 barrier = full + 8 * at.stage, to_a = a + at.stage * A_BYTES, to_b = b + at.stage * B_BYTES;
        mbarrier::wait(empty + 8 * at.stage, at.parity ^ 1);
        if constexpr (SourceB::TWO_WIDTHS) {
          const bool narrow = source_b.is_narrow(tile.col);
          mbarrier::expect_bytes(barrier, narrow ? A_BYTES + 2 * SourceB::NARROW * 128 : A_BYTES + B_BYTES);
          load_a(to_a, map_a, barrier, m0, shape.a_k + (int)(k * TILE_K));
          if (narrow) source_b.template load<SourceB::NARROW>(to_b, barrier, n0, shape.b_k + (int)(k * TILE_K), rank);
          else source_b.load(to_b, barrier, n0, shape.b_k + (int)(k * TILE_K), rank);
        } else {
          mbarrier::expect_bytes(barrier, A_BYTES + B_BYTES);
          load_a(to_a, map_a, barrier, m0, shape.a_k + (int)(k * TILE_K));
          source_b.load(to_b, barrier, n0, shape.b_k + (int)(k * TILE_K), rank);
        }
        at.next(STAGES);
      }
    }
    // Every consumer's last arrival must land before this CTA may exit.
    if constexpr (CLUSTER > 1)
      for (u32 i = 0; i < STAGES; ++i) {
        mbarrier::wait(empty + 8 * at.stage, at.parity ^ 1);
        at.next(STAGES);
      }
  }

  DEV void load_a(u32 to, const TensorMap& map, u32 barrier, int m, int k) const {
#pragma unroll
    for (u32 i = 0; i < TILE_M / 128; ++i) load_rows<A_MN, 128>(to + i * 2 * HALF_BYTES, map, barrier, m + (int)i * 128, k);
  }

  template <class SourceB, class Epilogue> DEV void consume(const SourceB& source_b, const TileOrder& order, u32 k_blocks, u32 rank, u32 consumer, Epilogue& epilogue) {
    u32 thread = kept(threadIdx.x % WARPGROUP);
    const u32 grid = gridDim.x / CLUSTER;
    RingPlace at;
    u32 t = blockIdx.x / CLUSTER, turns = 0;
    if (PING_PONG && consumer == 1) at.skip(k_blocks, STAGES), t += grid;
    Accumulator<E> acc[ACC];
#pragma unroll 1
    for (; t < order.count(); t += TURNS * grid, ++turns) {
      const TileOrder::Tile tile = order.at(t);
      if constexpr (SUMS_DIE) thread = kept(threadIdx.x % WARPGROUP);  // not through the epilogue
      if (PING_PONG) {
        mbarrier::wait(turn + 8 * consumer, consumer == 0 ? (turns & 1) ^ 1 : turns & 1);
        // All four warps have seen the turn before one of them passes it on: a warp late from its epilogue could find the barrier two
        // phases further, where the parity it waits for is again the one not yet reached.
        named_barrier(1 + consumer, WARPGROUP);
      }
      at = at.broadcast();
      const auto multiply = [&](u32 stage, u32 k) {
        if (PING_PONG && k == k_blocks - 1 && thread == 0) mbarrier::arrive(turn + 8 * (consumer ^ 1));
        multiply_stage<A_MN, B_MN, SourceB::BOX>(acc, a + stage * A_BYTES + (PING_PONG ? 0 : consumer * (CONSUMER_M * 128)), b + stage * B_BYTES, k != 0);
      };
      const auto free = [&](u32 stage) { release(stage, thread); };
      const auto first_row = [&] { return (tile.row * CLUSTER + rank) * TILE_M + (PING_PONG ? 0 : consumer * CONSUMER_M); };
      const auto close = [&](auto& values) { epilogue.tile(values, first_row(), source_b.column(tile.col), staging + consumer * STAGING_BYTES); };
      if constexpr (SCALED) {
        float sum[ACC] = {};
#pragma unroll 1
        for (u32 k = 0; k < k_blocks; ++k) {
          float scale[2];
          epilogue.scales(scale, first_row(), k * TILE_K);
          mbarrier::wait(full + 8 * at.stage, at.parity);
          // Consumers queue their products in turn: both at once would be done at once, and no products under the additions.
          if (consumer == 1 || k != 0 || turns != 0) named_barrier(1 + consumer, CONSUMERS * WARPGROUP);
          multiply(at.stage, 0);
          if (consumer == 0 || k + 1 < k_blocks || t + grid < order.count()) named_barrier_arrive(1 + (consumer ^ 1), CONSUMERS * WARPGROUP);
          wgmma::wait<0>();
          free(at.next(STAGES).stage);
          wgmma::tie(acc);
#pragma unroll
          for (u32 i = 0; i < ACC; ++i) sum[i] = fmaf((float)acc[i], scale[i / 2 % 2], sum[i]);
        }
        close(sum);
      } else {
        if constexpr (SourceB::TWO_WIDTHS) {
          const auto multiply_narrow = [&](u32 stage, u32 k) {
            if (k == k_blocks - 1 && thread == 0) mbarrier::arrive(turn + 8 * (consumer ^ 1));
            multiply_stage<A_MN, B_MN, SourceB::BOX, 2 * SourceB::NARROW>(acc, a + stage * A_BYTES, b + stage * B_BYTES, k != 0);
          };
          if (source_b.is_narrow(tile.col)) walk_stages(at, STAGES, full, k_blocks, multiply_narrow, free);
          else walk_stages(at, STAGES, full, k_blocks, multiply, free);
        } else walk_stages<SUMS_DIE>(at, STAGES, full, k_blocks, multiply, free);
        wgmma::tie(acc);
        if (PING_PONG) at.skip(k_blocks, STAGES);  // the other consumer's tile
        close(acc);
      }
    }
    epilogue.finish();
  }
};
#endif
