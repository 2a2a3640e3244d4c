// Scores on Hopper: query tiles as the rows of warpgroup multiplies, document tokens as their columns.
//   ELEMENT: BF16 or F16    WITH_ARGMAX: 0 or 1
//   TILE_TOKENS: document tokens of a full tile    QUERY_BLOCKS: d / 64 rounded up when queries are held in registers (1, 2), else 0
//
// One producer thread streams document tiles through a ring of shared memory by TMA; each consumer warpgroup holds one query tile and meets
// every document tile with it, so that a tile is loaded once for all of a block's queries. The reduced axis lies in registers: a thread keeps
// the best of its columns for its two rows, and a quad exchanges them once a document. Each consumer has one accumulator and takes turns with
// the others on the tensor cores: three are enough to hide the search for the best.
#include "items.cuh"
#include "numerics.cuh"
#include "ptx/barrier.cuh"
#include "ptx/matrix.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma_narrow.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

typedef ELEMENT E;

struct HopperParams {
  Items items;
  Texts queries, docs;
  u32 dim;
  float* sums;  // scores, or partial sums of long queries
  int* argmax;
  u32 warpgroups;  // consumers: query tiles of a block
  u32 slots;       // of the ring
  u32 epoch;       // of this call
  u32* nan_epoch;  // set to `epoch` when some argmax is left at UNSETTLED
};

// The argmax of a NaN maximum: which token it was is found by maxsim_settle.
constexpr int UNSETTLED = -2;

// A tile of up to TILE_TOKENS tokens is cut into quarters: what is loaded, multiplied and searched is whole quarters, so that the time of a
// ragged document follows its length.
constexpr u32 FULL = TILE_TOKENS, QUARTER = (FULL / 4 + 7) / 8 * 8;
constexpr u32 BLOCK_BYTES = 128;  // of a row in shared memory: 64 elements of d
constexpr u32 SLOT_BYTES = FULL * BLOCK_BYTES, QUERY_BYTES = TILE_ROWS * BLOCK_BYTES;
constexpr bool IN_REGISTERS = QUERY_BLOCKS > 0;
constexpr u32 HELD_BLOCKS = IN_REGISTERS ? QUERY_BLOCKS : 1;
constexpr u32 MAX_WARPGROUPS = 3, MAX_SLOTS = 32;

// What the producer says of a tile: tokens in bits 0..16, then flags.
constexpr u32 TOKENS_MASK = 0xffff, LAST_TILE = 1u << 16, MASKED = 1u << 17;

// Lane 0's value: what decides whether a warp multiplies must be seen to be the same in all lanes.
DEV u32 uniform(u32 x) { return __shfl_sync(~0u, x, 0); }

struct Ring {
  u32 stage = 0, parity = 0;
  DEV void next(u32 slots) {
    if (++stage == slots) stage = 0, parity ^= 1;
  }
};

// Shared memory behind the tiles.
struct Control {
  u64 full[MAX_SLOTS], empty[MAX_SLOTS], queries_full, queries_empty;
  u32 tiles[MAX_SLOTS];
  float best[MAX_WARPGROUPS][2][TILE_ROWS];
  // What is needed of a query tile once a document is done; in registers it would crowd out the accumulators.
  u32 bounds[MAX_WARPGROUPS][TILE_ROWS + 1];  // rows of the tile where its queries begin
  RowInfo rows[MAX_WARPGROUPS][TILE_ROWS];
  alignas(8) float factors[MAX_WARPGROUPS][2][FULL];  // of the columns of a masked or normalised tile: inverse norms, -1 where masked
  QueryTile held[MAX_WARPGROUPS];
};

static_assert(sizeof(Control) <= 13 * 1024, "CONTROL_BYTES of the launcher, less 1024 to align the tiles");

DEV bool has_scales(const HopperParams& params) { return params.docs.scales != nullptr; }

DEV void produce(const HopperParams& params, const TensorMap& map_queries, const TensorMap& map_full, const TensorMap& map_quarter, u32 tiles, u32 ring, Control& control) {
  const Items& items = params.items;
  const u32 k_blocks = IN_REGISTERS ? QUERY_BLOCKS : ceil_div(params.dim, 64);
  const u32 full = shared_address(control.full), empty = shared_address(control.empty);
  const u32 queries_full = shared_address(&control.queries_full), queries_empty = shared_address(&control.queries_empty);
  Ring at;
  Unit held = {~0u, 0, 0, ~0u};
  u32 loads = 0;
  for (u32 chunk = 0; chunk < items.chunks; ++chunk) {
    const u32* range = items.starts + (u64)chunk * (gridDim.x + 1) + blockIdx.x;
    const u32 last = range[1];
    for (u32 index = range[0]; index < last; ++index) {
      const Unit unit = unit_at(items, chunk, index);
      const u32 start = (u32)params.docs.start(unit.doc), end = params.docs.end(unit.doc);
      const u32 masked = has_scales(params) || params.docs.has_holes(unit.doc) ? MASKED : 0;
      if (!same_tiles(items, held, unit)) {
        held = unit;
        mbarrier::wait(queries_empty, (loads++ & 1) ^ 1);
        u32 count = 0;
        for (u32 w = 0; w < params.warpgroups; ++w) count += tile_of(items, params.queries, unit, w, params.warpgroups).rows > 0;
        mbarrier::expect_bytes(queries_full, count * k_blocks * QUERY_BYTES);
        for (u32 w = 0; w < params.warpgroups; ++w) {
          const QueryTile tile = tile_of(items, params.queries, unit, w, params.warpgroups);
          for (u32 k = 0; tile.rows > 0 && k < k_blocks; ++k)
            tma::load_2d(tiles + (w * k_blocks + k) * QUERY_BYTES, &map_queries, queries_full, (int)(k * 64), (int)tile.row);
        }
      }
      u32 token = 0;
      do {  // an empty document is one tile without tokens
        const u32 tokens = min_of(FULL, end - token);
        const u32 quarters = ceil_div(tokens, QUARTER);
        const bool whole = tokens > 3 * QUARTER;
        for (u32 k = 0; k < (tokens ? k_blocks : 1); ++k) {
          const u32 barrier = full + 8 * at.stage, to = ring + at.stage * SLOT_BYTES;
          mbarrier::wait(empty + 8 * at.stage, at.parity ^ 1);
          if (k == 0) control.tiles[at.stage] = tokens | (token + FULL >= end ? LAST_TILE : 0) | masked;
          if (tokens == 0) mbarrier::arrive(barrier);
          else if (whole) {
            mbarrier::expect_bytes(barrier, SLOT_BYTES);
            tma::load_2d(to, &map_full, barrier, (int)(k * 64), (int)(start + token));
          } else {
            mbarrier::expect_bytes(barrier, quarters * QUARTER * BLOCK_BYTES);
            for (u32 i = 0; i < quarters; ++i)
              tma::load_2d(to + i * QUARTER * BLOCK_BYTES, &map_quarter, barrier, (int)(k * 64), (int)(start + token + i * QUARTER));
          }
          at.next(params.slots);
        }
        token += FULL;
      } while (token < end);
    }
  }
}

// The best so far of a thread's two rows, rows lane / 4 and lane / 4 + 8 of its warp's 16.
struct Found {
  float value[2];
  int index[2];
  DEV void clear() {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) value[r] = MINUS_INFINITY, index[r] = -1;
  }
};

// Takes the best of `count` columns from column `FROM` on: accumulator 4 j + 2 r + e is row r, column 8 j + 2 (lane % 4) + e. Pairs of columns
// are compared first: five instructions for two columns with the index, of which the pair and its first value are remembered.
template <u32 FROM, u32 COUNT, u32 SIZE> DEV void search(const float (&acc)[SIZE], Found& found, int token) {
  if constexpr (COUNT > 0) {
    if constexpr (!WITH_ARGMAX) {
#pragma unroll
      for (u32 j = FROM / 8; j < (FROM + COUNT) / 8; ++j)
#pragma unroll
        for (u32 r = 0; r < 2; ++r) found.value[r] = max_nan(found.value[r], max_nan(acc[4 * j + 2 * r], acc[4 * j + 2 * r + 1]));
    } else {
#pragma unroll
      for (u32 r = 0; r < 2; ++r) {
        float best = found.value[r], first = 0.f;
        int pair = -1;
#pragma unroll
        for (u32 j = FROM / 8; j < (FROM + COUNT) / 8; ++j) {
          const float left = acc[4 * j + 2 * r], value = max_nan(left, acc[4 * j + 2 * r + 1]);
          const bool better = value > best;
          best = max_nan(best, value);
          pair = better ? (int)(8 * j) : pair;
          first = better ? left : first;
        }
        if (pair >= 0) found.index[r] = token + pair + (first == best ? 0 : 1);
        found.value[r] = best;
      }
    }
  }
}

// Columns from `tokens` on, beyond the document, become -inf.
template <u32 FROM, u32 COUNT, u32 SIZE> DEV void cut(float (&acc)[SIZE], u32 tokens) {
  const u32 column = threadIdx.x % 4 * 2;
#pragma unroll
  for (u32 j = FROM / 8; j < (FROM + COUNT) / 8; ++j)
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
      const bool counts = 8 * j + e + column < tokens;
      acc[4 * j + e] = counts ? acc[4 * j + e] : MINUS_INFINITY;
      acc[4 * j + 2 + e] = counts ? acc[4 * j + 2 + e] : MINUS_INFINITY;
    }
}
// Every column times its factor, or -inf where that is negative.
template <u32 COLUMNS, u32 SIZE> DEV void apply(float (&acc)[SIZE], const float* factors) {
  const float2* pairs = reinterpret_cast<const float2*>(factors) + threadIdx.x % 4;
#pragma unroll
  for (u32 j = 0; j < COLUMNS / 8; ++j) {
    const float2 factor = pairs[4 * j];
    acc[4 * j] = factor.x < 0.f ? MINUS_INFINITY : acc[4 * j] * factor.x;
    acc[4 * j + 1] = factor.y < 0.f ? MINUS_INFINITY : acc[4 * j + 1] * factor.y;
    acc[4 * j + 2] = factor.x < 0.f ? MINUS_INFINITY : acc[4 * j + 2] * factor.x;
    acc[4 * j + 3] = factor.y < 0.f ? MINUS_INFINITY : acc[4 * j + 3] * factor.y;
  }
}

struct Consumer {
  const HopperParams& params;
  Control& control;
  u32 ring, queries;  // shared memory: the ring, this warpgroup's query tile
  u32 k_blocks, warpgroup;
  Ring at;
  u32 factor_turn;

  DEV u32 full() const { return shared_address(control.full) + 8 * at.stage; }
  DEV void release(u32 stage) const {
    if (threadIdx.x % WARPGROUP == 0) mbarrier::arrive(shared_address(control.empty) + 8 * stage);
  }

  // Two buffers in turn: whoever writes one has passed the barrier of the other, and so have all who read this one before.
  DEV const float* write_factors(u32 doc, u32 token, u32 tokens) {
    float* factors = control.factors[warpgroup][factor_turn ^= 1];
    for (u32 column = threadIdx.x % WARPGROUP; column < FULL; column += WARPGROUP) {
      const bool counts = column < tokens && params.docs.keeps(doc, token + column);
      factors[column] = !counts ? -1.f : params.docs.scales ? params.docs.scales[params.docs.start(doc) + token + column] : 1.f;
    }
    named_barrier(warpgroup + 1, WARPGROUP);
    return factors;
  }

  // One document tile: its product with the query tile, and the search. `fragments`: the query tile, when it is held in registers.
  template <u32 COLUMNS, u32 HELD>
  DEV void tile(const u32 (&fragments)[HELD][4], Found& found, u32 doc, u32 token, u32 about) {
    float acc[COLUMNS / 2];
    const float* factors = nullptr;
    if (about & MASKED) factors = write_factors(doc, token, about & TOKENS_MASK);
    if constexpr (IN_REGISTERS) {
      const u32 first = at.stage;
      u64 b[HELD_BLOCKS];
#pragma unroll
      for (u32 k = 0; k < HELD_BLOCKS; ++k) {
        if (k > 0) mbarrier::wait(full(), at.parity);
        b[k] = wgmma::descriptor_k_major(ring + at.stage * SLOT_BYTES);
        at.next(params.slots);
      }
      wgmma::fence();  // no wait from here on: a loop between the multiplies would serialise them
#pragma unroll
      for (u32 k = 0; k < HELD_BLOCKS; ++k)
#pragma unroll
        for (u32 i = 0; i < 4; ++i) wgmma::from_registers<E, COLUMNS>(acc, fragments[4 * k + i], b[k] + 2 * i, k + i > 0);
      wgmma::commit();
      wgmma::wait<0>();
      u32 stage = first;
#pragma unroll
      for (u32 k = 0; k < HELD_BLOCKS; ++k) {
        release(stage);
        if (++stage == params.slots) stage = 0;
      }
    } else {
#pragma unroll
      for (u32 i = 0; i < COLUMNS / 2; ++i) acc[i] = 0.f;
      u32 previous = 0;
#pragma unroll 1
      for (u32 k = 0; k < k_blocks; ++k) {
        if (k > 0) mbarrier::wait(full(), at.parity);
        const u64 a = wgmma::descriptor_k_major(queries + k * QUERY_BYTES), b = wgmma::descriptor_k_major(ring + at.stage * SLOT_BYTES);
        wgmma::fence();
#pragma unroll
        for (u32 i = 0; i < 4; ++i) wgmma::from_shared<E, COLUMNS>(acc, a + 2 * i, b + 2 * i, true);
        wgmma::commit();
        wgmma::wait<1>();  // the block before this one has been read
        if (k > 0) release(previous);
        previous = at.stage;
        at.next(params.slots);
      }
      wgmma::wait<0>();
      release(previous);
    }
    wgmma::tie(acc);
    const u32 tokens = about & TOKENS_MASK;
    const int first_column = (int)(token + threadIdx.x % 4 * 2);
    if (about & MASKED) {
      apply<COLUMNS>(acc, factors);
      search<0, COLUMNS>(acc, found, first_column);
    } else {
      // Only the last quarter (of a full tile: what is beyond three) can be beyond the document.
      constexpr u32 SURE = COLUMNS == FULL ? 3 * QUARTER : COLUMNS - QUARTER;
      if (tokens < COLUMNS) cut<SURE, COLUMNS - SURE>(acc, tokens);
      search<0, COLUMNS>(acc, found, first_column);
    }
  }

  DEV void run() {
    const Items& items = params.items;
    const u32 thread = threadIdx.x % WARPGROUP, warp = thread / WARP, lane = thread % WARP;
    const u32 queries_full = shared_address(&control.queries_full), queries_empty = shared_address(&control.queries_empty);
    u32 fragments[4 * HELD_BLOCKS][4];
    Unit held = {~0u, 0, 0, ~0u};
    u32 loads = 0, turn = 0;
    bool idle = true;
    for (u32 chunk = 0; chunk < items.chunks; ++chunk) {
      const u32* range = items.starts + (u64)chunk * (gridDim.x + 1) + blockIdx.x;
      const u32 first = uniform(range[0]), last = uniform(range[1]);
#pragma unroll 1
      for (u32 index = first; index < last; ++index) {
        const Unit unit = unit_at(items, chunk, index);
        if (!same_tiles(items, held, unit)) {
          if (!IN_REGISTERS && loads > 0 && thread == 0) mbarrier::arrive(queries_empty);
          held = unit;
          const QueryTile tile = tile_of(items, params.queries, unit, warpgroup, params.warpgroups);
          idle = uniform(tile.rows) == 0;
          named_barrier(warpgroup + 1, WARPGROUP);  // the sums of the last tile have been made
          if (thread < TILE_ROWS) control.rows[warpgroup][thread] = row_info(items, params.queries, tile, thread);
          if (thread == 0) control.held[warpgroup] = tile;
          if (tile.queries > 1) {
            if (thread <= tile.queries) control.bounds[warpgroup][thread] = (u32)(params.queries.start(tile.query + thread) - tile.row);
          } else if (thread < 2) control.bounds[warpgroup][thread] = thread ? tile.rows : 0;
          mbarrier::wait(queries_full, loads++ & 1);
          if constexpr (IN_REGISTERS) {
            const u32 row = warp * 16 + lane % 16;
#pragma unroll
            for (u32 k = 0; k < 4 * HELD_BLOCKS; ++k) {
              const u32 piece = k % 4 * 2 + lane / 16;
              load_matrix_x4(fragments[k], queries + k / 4 * QUERY_BYTES + row * BLOCK_BYTES + ((piece ^ (row & 7)) << 4));
            }
          }
          named_barrier(warpgroup + 1, WARPGROUP);
          if (IN_REGISTERS && thread == 0) mbarrier::arrive(queries_empty);
        }
        Found found;
        found.clear();
        u32 token = 0, about;
        do {
          mbarrier::wait(full(), at.parity);
          about = uniform(control.tiles[at.stage]);
          const u32 tokens = about & TOKENS_MASK;
          if (tokens == 0 || idle) {  // nothing to multiply: only pass the blocks on
            for (u32 k = 0; k < (tokens ? k_blocks : 1); ++k) {
              if (k > 0) mbarrier::wait(full(), at.parity);
              release(at.stage);
              at.next(params.slots);
            }
          } else if (tokens > 3 * QUARTER) this->tile<FULL>(fragments, found, unit.doc, token, about);
          else if (tokens > 2 * QUARTER) this->tile<3 * QUARTER>(fragments, found, unit.doc, token, about);
          else if (tokens > QUARTER) this->tile<2 * QUARTER>(fragments, found, unit.doc, token, about);
          else this->tile<QUARTER>(fragments, found, unit.doc, token, about);
          token += FULL;
        } while (!(about & LAST_TILE));
        finish(unit, found, turn, (about & TOKENS_MASK) == 0);
        turn ^= 1;
      }
    }
  }

  // A document is done: the best of each row among the quad's columns, then the sums of the tile's queries.
  DEV void finish(const Unit& unit, Found& found, u32 turn, bool empty) const {
    const Items& items = params.items;
    const u32 thread = threadIdx.x % WARPGROUP, warp = thread / WARP, lane = thread % WARP;
    float* best = control.best[warpgroup][turn];
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
#pragma unroll
      for (u32 offset = 1; offset < 4; offset *= 2) {
        const float value = __shfl_xor_sync(~0u, found.value[r], offset);
        if (WITH_ARGMAX) {
          const int index = __shfl_xor_sync(~0u, found.index[r], offset);
          if (value > found.value[r] || (value == found.value[r] && (u32)index < (u32)found.index[r])) found.index[r] = index;
        }
        found.value[r] = max_nan(found.value[r], value);
      }
      if (lane % 4 == 0) {
        const u32 row = warp * 16 + lane / 4 + r * 8;
        const RowInfo& info = control.rows[warpgroup][row];
        const bool counts = info.counts && !empty;
        best[row] = counts ? found.value[r] * info.scale : 0.f;
        if (WITH_ARGMAX && info.exists) {
          int index = counts ? found.index[r] : -1;
          if (counts && index < 0) index = params.docs.first(unit.doc);  // all are -inf
          if (counts && found.value[r] != found.value[r]) index = UNSETTLED, *params.nan_epoch = params.epoch;
          const u64 base = items.pairing == Pairing::Cross ? (u64)unit.doc * info.step
                                                           : items.arguments(params.queries, unit.query, unit.doc, unit.slot);
          params.argmax[base + info.argument] = index;
        }
      }
    }
    named_barrier(warpgroup + 1, WARPGROUP);
    // Of `best` there are two: whoever writes the next one has passed the barrier after it, and so have all who read this one.
    const QueryTile& tile = control.held[warpgroup];
    for (u32 s = warp; s < tile.queries; s += 4) {
      const u32 to = control.bounds[warpgroup][s + 1];
      float sum = 0.f;
      for (u32 row = control.bounds[warpgroup][s] + lane; row < to; row += WARP) sum += best[row];
      sum = warp_sum(sum);
      if (lane == 0) params.sums[sum_index(items, tile, s, unit, params.warpgroups)] = sum;
    }
  }
};

KERNEL __launch_bounds__((1 + MAX_WARPGROUPS) * WARPGROUP, 1)
maxsim_forward_sm90(const __grid_constant__ TensorMap map_queries, const __grid_constant__ TensorMap map_full,
                    const __grid_constant__ TensorMap map_quarter, const __grid_constant__ HopperParams params) {
  extern __shared__ u8 dynamic[];
  const u32 k_blocks = IN_REGISTERS ? QUERY_BLOCKS : ceil_div(params.dim, 64);
  const u32 tiles = (shared_address(dynamic) + 1023u) & ~1023u;  // 128-byte swizzle repeats every 1024 bytes
  const u32 ring = tiles + params.warpgroups * k_blocks * QUERY_BYTES;
  Control& control = *reinterpret_cast<Control*>(dynamic + (ring + params.slots * SLOT_BYTES - shared_address(dynamic)));
  const u32 warpgroup = threadIdx.x / WARPGROUP;
  if (threadIdx.x == 0) {
    tma::prefetch_map(&map_queries);
    tma::prefetch_map(&map_full);
    tma::prefetch_map(&map_quarter);
    for (u32 i = 0; i < params.slots; ++i) {
      mbarrier::init(shared_address(control.full + i), 1);
      mbarrier::init(shared_address(control.empty + i), params.warpgroups);
    }
    mbarrier::init(shared_address(&control.queries_full), 1);
    mbarrier::init(shared_address(&control.queries_empty), params.warpgroups);
    mbarrier::fence_init();
  }
  __syncthreads();
  if (warpgroup == 0) {
    registers_shrink<32>();
    if (threadIdx.x == 0) produce(params, map_queries, map_full, map_quarter, tiles, ring, control);
  } else {
    registers_grow<160>();
    Consumer consumer = {params, control, ring, tiles + (warpgroup - 1) * k_blocks * QUERY_BYTES, k_blocks, warpgroup - 1, {}, 0};
    consumer.run();
  }
}
#endif
