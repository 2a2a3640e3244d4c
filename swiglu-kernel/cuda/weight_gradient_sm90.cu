// dW = x^T [dg, du] on Hopper, or its transpose, where tiles that are whole divide badly among the SMs: what is left over of them is split along the rows
// that are summed, in as many parts as blocks remain, and whoever finishes the last part of a tile adds them up, always in the same order.
//   ELEMENT: BF16 or F16
//
// Tiles of 128 x 256, a consumer warpgroup for every 64 rows, in clusters of two that lie above one another and share the right operand, or, in an odd
// last row of tiles, beside one another and share the left one.
#include "ptx/barrier.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct WeightGradientParams {
  u32 rows, columns, depth;  // of the result, and rows of both operands
  u32 whole, parts;          // pairs of tiles that are not split, and the parts of one that is
  float* sums;               // of the parts: TILE_M x TILE_N for each, as threads hold them
  u32* arrived;              // parts of each warpgroup of each split tile that are done; zeros before and after
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef ELEMENT E;
constexpr u32 CLUSTER = 2, TILE_M = 128, TILE_N = 256, TILE_K = 64, CONSUMERS = 2, THREADS = (1 + CONSUMERS) * WARPGROUP, ACC = TILE_N / 2;
constexpr u32 BOX_BYTES = 64 * 128, A_BYTES = TILE_M * 128, B_BYTES = TILE_N * 128, STAGING_BYTES = 2 * 8192;
constexpr u32 SHARED_LIMIT = 232448, FIXED_BYTES = CONSUMERS * (STAGING_BYTES + 4), STAGES = (SHARED_LIMIT - FIXED_BYTES) / (A_BYTES + B_BYTES + 16);
constexpr u16 EVERYONE = (1 << CLUSTER) - 1;
static_assert(STAGES == 4, "stages of 48 KB");

struct WeightGradient {
  const TensorMap &map_a, &map_b, &map_result;
  const WeightGradientParams& p;
  u32 a, b, staging, full, empty, rank;

  DEV WeightGradient(const TensorMap& map_a, const TensorMap& map_b, const TensorMap& map_result, const WeightGradientParams& p, void* shared)
      : map_a(map_a), map_b(map_b), map_result(map_result), p(p) {
    a = shared_address(shared);  // declared at a multiple of 1024, as the 128-byte swizzle repeats
    b = a + STAGES * A_BYTES;
    staging = b + STAGES * B_BYTES;
    full = staging + CONSUMERS * STAGING_BYTES;
    empty = full + 8 * STAGES;
    rank = cluster_rank();
  }

  DEV void run() {
    const u32 warpgroup = uniform(threadIdx.x / WARPGROUP);
    if (threadIdx.x == 0) {
      tma::prefetch_map(&map_a);
      tma::prefetch_map(&map_b);
      tma::prefetch_map(&map_result);
      for (u32 i = 0; i < STAGES; ++i) {
        mbarrier::init(full + 8 * i, 1);
        mbarrier::init(empty + 8 * i, CLUSTER * CONSUMERS);
      }
      mbarrier::fence_init();
    }
    cluster_sync();
    grid_dependency_wait();
    grid_dependency_launch();
    if (warpgroup == 0) {
      if (threadIdx.x == 0) produce();
    } else consume(warpgroup - 1);
    cluster_sync();  // no CTA leaves while another may still signal its barriers
  }

  // What a block does at a time: its tile of a pair, all of the sum or a part of it.
  struct Work {
    u32 row, column;
    bool shares_left;      // with the other block of its cluster; else the right operand
    u32 from, to;          // blocks of TILE_K
    u32 split, part;       // which of the split pairs; all ones for none
  };
  DEV u32 tile_rows() const { return ceil_div(p.rows, TILE_M); }
  DEV u32 count() const { return p.whole + (tile_rows() * ceil_div(p.columns, 2 * TILE_N) - p.whole) * p.parts; }
  // Pairs go down two columns of tiles at a time.
  DEV Work work(u32 i) const {
    const bool whole = i < p.whole;
    const u32 split = whole ? ~0u : (i - p.whole) / p.parts, part = whole ? 0 : (i - p.whole) % p.parts, pair = whole ? i : p.whole + split;
    const u32 blocks = ceil_div(p.depth, TILE_K), parts = whole ? 1 : p.parts;
    const u32 across = pair / tile_rows(), down = pair % tile_rows();
    const bool shares_left = (down | 1) >= tile_rows();
    const u32 row = shares_left ? down : (down & ~1u) + rank, column = 2 * across + (shares_left ? rank : down & 1);
    return {row * TILE_M, column * TILE_N, shares_left, blocks * part / parts, blocks * (part + 1) / parts, split, part};
  }

  DEV void produce() const {
    RingPlace at;
    for (u32 i = blockIdx.x / CLUSTER; i < count(); i += gridDim.x / CLUSTER) {
      const Work now = work(i);
      for (u32 k = now.from; k < now.to; ++k) {
        const u32 barrier = full + 8 * at.stage;
        mbarrier::wait(empty + 8 * at.stage, at.parity ^ 1);
        mbarrier::expect_bytes(barrier, A_BYTES + B_BYTES);
        load<TILE_M>(a + at.stage * A_BYTES, map_a, barrier, now.row, k, now.shares_left);
        load<TILE_N>(b + at.stage * B_BYTES, map_b, barrier, now.column, k, !now.shares_left);
        at.next(STAGES);
      }
    }
    // Every consumer's last arrival must land before this CTA may exit.
    for (u32 i = 0; i < STAGES; ++i) {
      mbarrier::wait(empty + 8 * at.stage, at.parity ^ 1);
      at.next(STAGES);
    }
  }

  // One stage of an operand, by both blocks in turn where they share it.
  template <u32 COLUMNS> DEV void load(u32 to, const TensorMap& map, u32 barrier, u32 column, u32 k, bool shared) const {
#pragma unroll
    for (u32 i = 0; i < COLUMNS / 64; ++i) {
      const u32 at = to + i * BOX_BYTES;
      if (!shared) tma::load_2d(at, &map, barrier, (int)(column + i * 64), (int)(k * TILE_K));
      else if (i % CLUSTER == rank) tma::load_2d_multicast(at, &map, barrier, (int)(column + i * 64), (int)(k * TILE_K), EVERYONE);
    }
  }

  DEV void consume(u32 consumer) const {
    const u32 thread = kept(threadIdx.x % WARPGROUP);
    RingPlace at;
    float acc[ACC];
#pragma unroll 1
    for (u32 i = blockIdx.x / CLUSTER; i < count(); i += gridDim.x / CLUSTER) {
      const Work now = work(i);
      at = at.broadcast();
      walk_stages(
          at, STAGES, full, now.to - now.from,
          [&](u32 stage, u32 k) {
            const u64 da = wgmma::descriptor_mn_major(a + stage * A_BYTES + consumer * BOX_BYTES, BOX_BYTES);
            const u64 db = wgmma::descriptor_mn_major(b + stage * B_BYTES, BOX_BYTES);
            wgmma::fence();
#pragma unroll
            for (u32 s = 0; s < 4; ++s) wgmma::m64<TILE_N, E, 0, true, true>(acc, da + s * (2048 >> 4), db + s * (2048 >> 4), k != 0 || s != 0);
            wgmma::commit();
          },
          // To both CTAs: each wrote half of an operand of the other.
          [&](u32 stage) {
            if (thread < CLUSTER) mbarrier::arrive_remote(empty + 8 * stage, thread);
          });
      wgmma::tie(acc);
      if (now.split != ~0u && !add_up(acc, now, consumer, thread)) continue;
      store(acc, now, consumer, thread);
    }
    if (thread % WARP == 0) tma::wait_all();
  }

  // Leaves a part of a tile where all of them can be found. True for the last one to do so, which then holds the sum.
  DEV bool add_up(float (&acc)[ACC], const Work& now, u32 consumer, u32 thread) const {
    const u32 half = (now.split * CLUSTER + rank) * CONSUMERS + consumer, last = empty + 8 * STAGES + 4 * consumer;
    constexpr u64 PART = ACC / 4 * WARPGROUP;
    float4* const sums = reinterpret_cast<float4*>(p.sums) + half * p.parts * PART + thread;
#pragma unroll
    for (u32 j = 0; j < ACC / 4; ++j)
      __stcg(sums + now.part * PART + j * WARPGROUP, make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
    __threadfence();
    named_barrier(1 + consumer, WARPGROUP);
    if (thread == 0) {
      const bool done = atomicAdd(p.arrived + half, 1) == p.parts - 1;
      __threadfence();
      if (done) p.arrived[half] = 0;  // for the next launch
      store_shared(last, done);
    }
    named_barrier(1 + consumer, WARPGROUP);
    if (!load_shared(last)) return false;
#pragma unroll
    for (u32 j = 0; j < ACC; ++j) acc[j] = 0;
#pragma unroll 1
    for (u32 part = 0; part < p.parts; ++part)
#pragma unroll
      for (u32 j = 0; j < ACC / 4; ++j) {
        const float4 x = __ldcg(sums + part * PART + j * WARPGROUP);
        acc[4 * j] += x.x, acc[4 * j + 1] += x.y, acc[4 * j + 2] += x.z, acc[4 * j + 3] += x.w;
      }
    return true;
  }

  DEV void store(const float (&acc)[ACC], const Work& now, u32 consumer, u32 thread) const {
    const u32 warp = thread / WARP, lane = thread % WARP;
    const WarpStaging stage(staging + consumer * STAGING_BYTES, warp);
#pragma unroll
    for (u32 i = 0; i < TILE_N / 64; ++i) {
      u32 packed[16];
#pragma unroll
      for (u32 j = 0; j < 16; ++j) packed[j] = E::pack(acc[32 * i + 2 * j], acc[32 * i + 2 * j + 1]);
      stage.acquire<1>(lane);
      stage.write_16bit(stage.buffer(i % 2), packed, lane);
      stage.publish();
      if (lane == 0) {
        tma::store_2d(&map_result, stage.buffer(i % 2), (int)(now.column + i * 64), (int)(now.row + consumer * 64 + warp * 16));
        tma::commit();
      }
    }
  }
};

KERNEL __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
swiglu_weight_gradient_sm90(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap result,
                            const __grid_constant__ WeightGradientParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  WeightGradient(a, b, result, params, shared).run();
}
#endif
