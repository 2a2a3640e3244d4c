// dx = dg W_gate^T + du W_up^T on Hopper, and in the same launch the pass that makes dg and du of dz and the pre-activations: three warps of each
// block, which a product alone would leave idle, walk the matrices ahead of it, and its loads wait for what they need. The gradients may overwrite
// the pre-activations: every element is read and written once, by one thread.
//   ELEMENT: BF16 or F16    ACTIVATION: SILU, GELU_TANH, RELU or SIGMOID    WEIGHTS: MN ([K, N] each) or K ([N, K] each)
//   ROWS, COLUMNS: of a tile, 128 and 256, or 192 and 192
//
// The product: tiles of ROWS x COLUMNS in clusters of two tile rows that share the weights, a consumer warpgroup for every 64 rows, gate and up by turns
// along N. The pass: pieces of PIECE_ROWS x CHUNK, which warps take by ticket in the order in which the product comes to need them. So whoever runs
// makes what is needed first, and no block ever waits for one that may not have begun. What a piece holds does not depend on who makes it.
#include "gate.cuh"
#include "ptx/barrier.cuh"
#include "ptx/matrix.cuh"
#include "ptx/shared.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "sm90/mainloop.cuh"

struct InputGradientParams {
  const u16 *gate, *up;  // pre-activations [rows, outputs], rows `stride` elements apart
  u64 stride;
  const u16* dz;
  u64 dz_stride;
  u16 *d_gate, *d_up;  // may be `gate` and `up`
  u64 d_stride;
  u16* dx;
  u64 dx_stride;
  u32* progress;  // tickets given, blocks finished, two unused, then for every ROWS x CHUNK columns the pieces done; zeros before and after
  u32 rows, outputs, inputs;
  u32 band;  // clusters of tile rows
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
typedef ELEMENT E;
enum class Weights { K, MN };
constexpr bool B_MN = Weights::WEIGHTS == Weights::K;  // the product sums over N
constexpr u32 CLUSTER = 2, TILE_M = ROWS, TILE_N = COLUMNS, TILE_K = 64, CONSUMERS = TILE_M / 64, THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr u32 BOX_BYTES = 64 * 128, A_BYTES = TILE_M * 128, B_BYTES = TILE_N * 128;
constexpr u16 EVERYONE = (1 << CLUSTER) - 1;

// A step of the pass is STEP_ROWS of a piece, of which a lane has three vectors of 8 elements UNROLL times over, fetched DEPTH steps ahead.
constexpr u32 CHUNK = 128, PIECE_ROWS = 32, PIECES = TILE_M / PIECE_ROWS, TICKETS = 0, FINISHED = 1, COUNTERS = 4;
constexpr u32 UNROLL = 2, DEPTH = 2, STEP_ROWS = 2 * UNROLL, STEPS = PIECE_ROWS / STEP_ROWS;
constexpr u32 VECTOR_BYTES = WARP * 16, STEP_BYTES = 3 * UNROLL * VECTOR_BYTES, PASS_WARPS = WARPGROUP / WARP - 1, FETCHED_BYTES = PASS_WARPS * DEPTH * STEP_BYTES;
static_assert(STEPS % DEPTH == 0, "a piece begins at the first slot");
constexpr u32 LEAD = 1;  // bands that the pass may be ahead of its own block's product: what it makes is to be read from the L2

// A warp stores 8 rows x 64 columns of dx at a time, which it gathers in memory of its own.
constexpr u32 BUFFER_BYTES = 8 * 128, STAGING_BYTES = CONSUMERS * WARPGROUP / WARP * BUFFER_BYTES;

constexpr u32 SHARED_LIMIT = 232448, FIXED_BYTES = STAGING_BYTES + FETCHED_BYTES + 8;
constexpr u32 STAGES = (SHARED_LIMIT - FIXED_BYTES) / (A_BYTES + B_BYTES + 16);
static_assert(STAGES == 4, "stages of 48 KB");

// Four counters at once, which other blocks add to.
DEV void load_acquire(u32 (&x)[4], const u32* p) {
  asm volatile("ld.acquire.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "l"(p) : "memory");
}
// Orders ordinary accesses to global memory before the copy engine's.
DEV void fence_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

struct Maps {
  const TensorMap &d_gate, &d_up, &w_gate, &w_up;
};

struct InputGradient {
  const Maps& maps;
  const InputGradientParams& p;
  u32 a, b, staging, fetched, full, empty, pace;  // shared memory; `pace`: the band that this block's product has come to
  u32 rank, row_clusters, chunks, row_counters;

  DEV InputGradient(const Maps& maps, const InputGradientParams& p, void* shared) : maps(maps), p(p) {
    a = shared_address(shared);  // declared at a multiple of 1024, as the 128-byte swizzle repeats
    b = a + STAGES * A_BYTES;
    staging = b + STAGES * B_BYTES;
    fetched = staging + STAGING_BYTES;
    full = fetched + FETCHED_BYTES;
    empty = full + 8 * STAGES;
    pace = empty + 8 * STAGES;
    rank = cluster_rank();
    row_clusters = ceil_div(p.rows, CLUSTER * TILE_M), chunks = ceil_div(p.outputs, CHUNK), row_counters = ceil_div(chunks, 4) * 4;
  }

  // The last rows first: of a forward just before, those are still in the L2.
  DEV u32 row_of(u32 cluster_row) const { return (row_clusters - 1 - cluster_row) * CLUSTER * TILE_M; }
  DEV u32* counter(u32 row, u32 chunk) const { return p.progress + COUNTERS + row / TILE_M * row_counters + chunk; }
  DEV TileOrder tiles() const { return {row_clusters, ceil_div(p.inputs, TILE_N), p.band}; }

  DEV void run() {
    const u32 warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) {
      tma::prefetch_map(&maps.d_gate);
      tma::prefetch_map(&maps.d_up);
      tma::prefetch_map(&maps.w_gate);
      tma::prefetch_map(&maps.w_up);
      for (u32 i = 0; i < STAGES; ++i) {
        mbarrier::init(full + 8 * i, 1);
        mbarrier::init(empty + 8 * i, CLUSTER * CONSUMERS);
      }
      store_shared(pace, 0);
      mbarrier::fence_init();
    }
    cluster_sync();
    grid_dependency_wait();
    grid_dependency_launch();
    if (warp == 0) {
      if (threadIdx.x == 0) produce();
    } else if (warp <= PASS_WARPS) differentiate();
    else consume(warp / (WARPGROUP / WARP) - 1);
    cluster_sync();  // no CTA leaves while another may still signal its barriers
    clean_up();
  }

  // The last block leaves zeros for the next launch.
  DEV void clean_up() const {
    bool last = false;
    if (threadIdx.x == 0) {
      __threadfence();
      last = atomicAdd(p.progress + FINISHED, 1) == gridDim.x - 1;
      __threadfence();
    }
    if (!__syncthreads_or(last)) return;
    const u32 count = COUNTERS + ceil_div(p.rows, TILE_M) * row_counters;
    for (u32 i = threadIdx.x; i < count; i += THREADS) p.progress[i] = 0;
  }

  // A piece: CHUNK columns from `column` on, rows up to `to`; its band, and the counter to tell when it is done, null for none.
  struct Piece {
    u32 row, to, column, band;
    u32* done;
  };
  // The pass, by one warp; a row of a chunk is 16 lanes wide. A piece is told of once its writes have had time to land.
  DEV void differentiate() const {
    const u32 lane = threadIdx.x % WARP, slots = fetched + (threadIdx.x / WARP - 1) * DEPTH * STEP_BYTES + lane * 16;
    u32 ticket = take(lane);
    Piece now = piece(ticket, lane), next = piece(ticket, lane);
    u32* done = nullptr;
#pragma unroll
    for (u32 s = 0; s < DEPTH; ++s) fetch(slots + s * STEP_BYTES, now.row, now.to, now.column, now.done, s, lane);
#pragma unroll 1
    while (now.done) {
      if (now.band > load_shared(pace) + LEAD) {
        tell(done, lane);  // the product may be waiting for it
        done = nullptr;
        while (now.band > load_shared(pace) + LEAD) __nanosleep(500);
      }
#pragma unroll 1
      for (u32 s = 0; s < STEPS; ++s) {
        const u32 slot = slots + s % DEPTH * STEP_BYTES;
        uint4 gate[UNROLL], up[UNROLL], dz[UNROLL];
        copy_async_wait<DEPTH - 1>();
#pragma unroll
        for (u32 i = 0; i < UNROLL; ++i) {
          gate[i] = load_shared_vector(slot + 3 * i * VECTOR_BYTES);
          up[i] = load_shared_vector(slot + (3 * i + 1) * VECTOR_BYTES);
          dz[i] = load_shared_vector(slot + (3 * i + 2) * VECTOR_BYTES);
        }
        __syncwarp();  // keeps the compiler from reading some of them late: the slot is free now
        if (s + DEPTH < STEPS) fetch(slot, now.row, now.to, now.column, now.done, s + DEPTH, lane);
        else fetch(slot, next.row, next.to, next.column, next.done, s + DEPTH - STEPS, lane);
#pragma unroll
        for (u32 i = 0; i < UNROLL; ++i) {
          differentiate(gate[i].x, up[i].x, dz[i].x);
          differentiate(gate[i].y, up[i].y, dz[i].y);
          differentiate(gate[i].z, up[i].z, dz[i].z);
          differentiate(gate[i].w, up[i].w, dz[i].w);
        }
        if (s == 0) tell(done, lane);
        const u32 column = now.column + lane % 16 * 8;
#pragma unroll
        for (u32 i = 0; i < UNROLL; ++i) {
          const u32 row = now.row + s * STEP_ROWS + 2 * i + lane / 16;
          if (row >= now.to || column >= p.outputs) continue;
          *reinterpret_cast<uint4*>(p.d_gate + row * p.d_stride + column) = gate[i];
          *reinterpret_cast<uint4*>(p.d_up + row * p.d_stride + column) = up[i];
        }
      }
      done = now.done;
      now = next;
      if (now.done) next = piece(ticket, lane);
    }
    tell(done, lane);
  }
  DEV u32 take(u32 lane) const { return lane == 0 ? atomicAdd(p.progress + TICKETS, 1) : 0; }
  // The piece of the ticket that lane 0 holds; takes the next ticket, which is on its way meanwhile.
  DEV Piece piece(u32& held, u32 lane) const {
    const u32 per_tile = CLUSTER * PIECES;
    const TileOrder order = {row_clusters, chunks, p.band};
    while (true) {
      const u32 ticket = __shfl_sync(~0u, held, 0);
      if (ticket >= order.count() * per_tile) return {0, 1, 0, 0, nullptr};
      held = take(lane);
      const TileOrder::Tile tile = order.at(ticket / per_tile);
      const u32 row = row_of(tile.row) + ticket % per_tile * PIECE_ROWS;
      if (row < p.rows) return {row, min_of(row + PIECE_ROWS, p.rows), tile.col * CHUNK, tile.row / p.band, counter(row, tile.col)};
    }
  }
  // What is beyond the matrices reads their last elements instead.
  DEV void fetch(u32 slot, u32 row0, u32 to, u32 column0, bool valid, u32 step, u32 lane) const {
    const u32 column = min_of(column0 + lane % 16 * 8, p.outputs - 8);
#pragma unroll
    for (u32 i = 0; i < UNROLL; ++i) {
      const u64 row = min_of(row0 + step * STEP_ROWS + 2 * i + lane / 16, to - 1);
      copy_async_16(slot + 3 * i * VECTOR_BYTES, p.gate + row * p.stride + column, valid);
      copy_async_16(slot + (3 * i + 1) * VECTOR_BYTES, p.up + row * p.stride + column, valid);
      copy_async_16(slot + (3 * i + 2) * VECTOR_BYTES, p.dz + row * p.dz_stride + column, valid);
    }
    copy_async_commit();
  }
  static DEV void tell(u32* done, u32 lane) {
    if (!done) return;
    __syncwarp();
    if (lane == 0) add_release(done, 1);
  }
  // A pair of pre-activations becomes their gradients.
  static DEV void differentiate(u32& gate, u32& up, u32 dz) {
    const u16 g[2] = {(u16)gate, (u16)(gate >> 16)}, u[2] = {(u16)up, (u16)(up >> 16)}, d[2] = {(u16)dz, (u16)(dz >> 16)};
    float d_gate[2], d_up[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
      const Activation act = activate_with_slope<Gate::ACTIVATION, false>(E::load(g + e));
      d_gate[e] = E::load(d + e) * E::load(u + e) * act.slope;
      d_up[e] = E::load(d + e) * act.value;
    }
    gate = E::pack(d_gate[0], d_gate[1]);
    up = E::pack(d_up[0], d_up[1]);
  }

  DEV void produce() const {
    RingPlace at;
    const TileOrder order = tiles();
    const u32 k_blocks = ceil_div(p.outputs, TILE_K);
    for (u32 t = blockIdx.x / CLUSTER; t < order.count(); t += gridDim.x / CLUSTER) {
      const TileOrder::Tile tile = order.at(t);
      const u32 m0 = row_of(tile.row) + rank * TILE_M, n0 = tile.col * TILE_N;
      const u32 expected = m0 < p.rows ? ceil_div(min_of(TILE_M, p.rows - m0), PIECE_ROWS) : 0;
      u32 ready = 0;  // chunks
      store_shared(pace, tile.row / p.band);
      for (u32 k = 0; k < k_blocks; ++k) {
        if (expected && k / (CHUNK / TILE_K) >= ready) ready = await(m0, ready, expected);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
          const u32 barrier = full + 8 * at.stage;
          mbarrier::wait(empty + 8 * at.stage, at.parity ^ 1);
          mbarrier::expect_bytes(barrier, A_BYTES + B_BYTES);
#pragma unroll
          for (u32 i = 0; i < CONSUMERS; ++i)
            tma::load_2d(a + at.stage * A_BYTES + i * BOX_BYTES, half ? &maps.d_up : &maps.d_gate, barrier, (int)(k * TILE_K), (int)(m0 + i * 64));
          load_b(b + at.stage * B_BYTES, half ? &maps.w_up : &maps.w_gate, barrier, (int)n0, (int)(k * TILE_K));
          at.next(STAGES);
        }
      }
    }
    store_shared(pace, ~0u - LEAD);
    // Every consumer's last arrival must land before this CTA may exit.
    for (u32 i = 0; i < STAGES; ++i) {
      mbarrier::wait(empty + 8 * at.stage, at.parity ^ 1);
      at.next(STAGES);
    }
  }
  // Returns once chunk `from` of a tile row is done; gives the first that may not be.
  DEV u32 await(u32 row, u32 from, u32 expected) const {
    const u32* counters = counter(row, from / 4 * 4);
    u32 to = from;
    do {
      u32 done[4];
      load_acquire(done, counters);
#pragma unroll
      for (u32 i = 0; i < 4; ++i)
        if (to == from / 4 * 4 + i && done[i] == expected) ++to;
    } while (to == from);
    fence_async_global();
    return to;
  }
  // 64 columns at a time, by the CTAs of a cluster in turn.
  DEV void load_b(u32 to, const TensorMap* map, u32 barrier, int n, int k) const {
#pragma unroll
    for (u32 i = 0; i < TILE_N / 64; ++i) {
      const int x = B_MN ? n + (int)i * 64 : k, y = B_MN ? k : n + (int)i * 64;
      if (i % CLUSTER == rank) tma::load_2d_multicast(to + i * BOX_BYTES, map, barrier, x, y, EVERYONE);
    }
  }

  DEV void consume(u32 consumer) const {
    const u32 thread = threadIdx.x % WARPGROUP, warp = thread / WARP, lane = thread % WARP;
    const TileOrder order = tiles();
    const u32 k_blocks = 2 * ceil_div(p.outputs, TILE_K);
    const u32 buffer = staging + (consumer * (WARPGROUP / WARP) + warp) * BUFFER_BYTES;
    RingPlace at;
    float acc[TILE_N / 2];
#pragma unroll 1
    for (u32 t = blockIdx.x / CLUSTER; t < order.count(); t += gridDim.x / CLUSTER) {
      const TileOrder::Tile tile = order.at(t);
      walk_stages(
          at, STAGES, full, k_blocks,
          [&](u32 stage, u32 k) {
            const u64 da = wgmma::descriptor_k_major(a + stage * A_BYTES + consumer * BOX_BYTES);
            const u32 from_b = b + stage * B_BYTES;
            const u64 db = B_MN ? wgmma::descriptor_mn_major(from_b, BOX_BYTES) : wgmma::descriptor_k_major(from_b);
            wgmma::fence();
#pragma unroll
            for (u32 i = 0; i < 4; ++i) wgmma::m64<TILE_N, E, 0, false, B_MN>(acc, da + i * 2, db + i * (B_MN ? 2048 >> 4 : 32 >> 4), k != 0 || i != 0);
            wgmma::commit();
          },
          [&](u32 stage) { release(stage, thread); });
      wgmma::tie(acc);
      const u32 row = row_of(tile.row) + rank * TILE_M + consumer * 64 + warp * 16;
#pragma unroll
      for (u32 i = 0; i < TILE_N / 64; ++i)
#pragma unroll
        for (u32 upper = 0; upper < 2; ++upper) store(acc + 32 * i + 2 * upper, buffer, tile.col * TILE_N + i * 64, row + upper * 8, lane);
    }
  }
  // 8 rows x 64 columns, two of every four sums, as whole rows of 128 bytes. Not by the copy engine: the next tile would wait for its reads.
  DEV void store(const float* sums, u32 buffer, u32 column, u32 row, u32 lane) const {
#pragma unroll
    for (u32 j = 0; j < 8; j += 4) {
      u32 packed[4];
#pragma unroll
      for (u32 e = 0; e < 4; ++e) packed[e] = E::pack(sums[4 * (j + e)], sums[4 * (j + e) + 1]);
      store_matrix_x4(buffer + lane % 8 * 128 + ((j + lane / 8) ^ lane % 8) * 16, packed[0], packed[1], packed[2], packed[3]);
    }
    __syncwarp();
    column += lane % 8 * 8;
#pragma unroll
    for (u32 i = 0; i < 8; i += 4) {
      const u32 at = i + lane / 8;
      const uint4 vector = load_shared_vector(buffer + at * 128 + (lane % 8 ^ at) * 16);
      if (row + at < p.rows && column < p.inputs) *reinterpret_cast<uint4*>(p.dx + (row + at) * p.dx_stride + column) = vector;
    }
    __syncwarp();
  }
  // To both CTAs: each wrote half of the other's B.
  DEV void release(u32 stage, u32 thread) const {
    if (thread < CLUSTER) mbarrier::arrive_remote(empty + 8 * stage, thread);
  }
};

KERNEL __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
swiglu_input_gradient_sm90(const __grid_constant__ TensorMap d_gate, const __grid_constant__ TensorMap d_up, const __grid_constant__ TensorMap w_gate,
                           const __grid_constant__ TensorMap w_up, const __grid_constant__ InputGradientParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  InputGradient({d_gate, d_up, w_gate, w_up}, params, shared).run();
}
#endif
