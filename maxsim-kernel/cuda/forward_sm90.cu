// Scores on Hopper: query tiles as the rows of warpgroup multiplies, document tokens as their columns.
//   ELEMENT: BF16 or F16    WITH_ARGMAX: 0 or 1    NORMALIZED: 1 when tokens are, and queries held in registers
//   TILE_TOKENS: document tokens of a full tile    QUERY_BLOCKS: d / 64 rounded up when queries are held in registers (1, 2), else 0
//
// One producer warp streams document tiles through a ring of shared memory by TMA. Consumer warpgroups multiply and search: the reduced axis
// lies in registers, a thread keeps the best of its columns for its two rows. The other warps of the producer's warpgroup merge and add up what the
// consumers found, one warp a consumer, off the path of the tensor cores.
//
// Either every consumer holds a query tile of its own and meets every document tile, which is loaded once for all of them; or (`split`) there is
// one query tile, and consumers take documents in turn, each with a ring of its own, all of which are fed at the same time. Each consumer has one
// accumulator and takes turns with the others on the tensor cores: three are enough to hide the search for the best.
#include "items.cuh"
#include "numerics.cuh"
#include "ptx/barrier.cuh"
#include "ptx/matrix.cuh"
#include "ptx/shared.cuh"
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
  u32 warpgroups;  // consumers
  u32 tiles;       // query tiles of a block: one a consumer, or 1 when documents are split among consumers
  u32 slots;       // of a ring
  u32 epoch;       // of this call
  u32* nan_epoch;  // set to `epoch` when some argmax is left at UNSETTLED
  DEV bool split() const { return tiles < warpgroups; }
  DEV u32 rings() const { return split() ? warpgroups : 1; }
};

// The argmax of a NaN maximum: which token it was is found by maxsim_settle.
constexpr int UNSETTLED = -2;

// A tile of up to TILE_TOKENS tokens is cut into quarters: what is loaded, multiplied and searched is whole quarters, so that the time of a
// ragged document follows its length.
constexpr u32 FULL = TILE_TOKENS, QUARTER = (FULL / 4 + 7) / 8 * 8;
constexpr u32 BLOCK_BYTES = 128;  // of a row in shared memory: 64 elements of d
constexpr u32 TILE_BYTES = FULL * BLOCK_BYTES, QUERY_BYTES = TILE_ROWS * BLOCK_BYTES;
constexpr bool IN_REGISTERS = QUERY_BLOCKS > 0;
// A slot of the ring holds a whole document tile, or 64 elements of d of it when queries are in shared memory too.
constexpr u32 HELD_BLOCKS = IN_REGISTERS ? QUERY_BLOCKS : 1, SLOT_BYTES = HELD_BLOCKS * TILE_BYTES;
constexpr u32 MAX_WARPGROUPS = 3, MAX_SLOTS = 32;
// Of a slot by a consumer: by one thread when only the tensor cores have read it, else by each warp.
constexpr u32 RELEASES = NORMALIZED ? WARPGROUP / WARP : 1;

// What the producer says of a tile: how many tokens in bits 0 .. 7, flags, the first token from bit 12 on.
constexpr u32 TOKENS_MASK = 0xff, LAST_TILE = 1u << 8, MASKED = 1u << 9, NEW_QUERIES = 1u << 10, STOP = 1u << 11, FIRST_SHIFT = 12;
static_assert(FULL <= TOKENS_MASK, "a tile's tokens fit their bits");
struct alignas(16) TileInfo {
  u32 about, doc, slot, row_block;
};

// Copies float AT of `count`, on its own; and an arrival at the barrier once this thread's copies so far are there.
template <int AT> DEV void copy_float(u32 shared, const float* global, int count) {
  asm volatile("{\n.reg .pred p;\nsetp.gt.s32 p, %2, %3;\n@p cp.async.ca.shared.global [%0 + %4], [%1 + %4], 4;\n}"
               ::"r"(shared), "l"(global), "r"(count), "n"(AT), "n"(4 * AT));
}
DEV void arrive_when_copied(u32 barrier) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory"); }
DEV float2 load_pair(u32 shared) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(shared) : "memory");
  return x;
}

struct Ring {
  u32 stage, parity;
  DEV void next(u32 slots) {
    if (++stage == slots) stage = 0, parity ^= 1;
  }
};

// A ring as the producer sees it, and the document that it is being filled with.
struct Feed {
  Ring at;
  Unit unit;                // also of the queries that were loaded last
  u32 loads;                // of queries
  u32 row, token, end;      // of the document: its first row, its next token, one past the last
  u32 flags;                // of the next tile
  bool open;
};

// What a consumer found of a document, for the warp that adds it up: of each row the four threads of a quad have a best each.
struct Result {
  float best[TILE_ROWS][4];
  int index[WITH_ARGMAX ? TILE_ROWS : 1][4];
  uint4 of;  // document, slot, row block, flags; above the flags the consumer's `taken`
};

// Flags of a result: nothing follows; the document has no tokens.
constexpr u32 NOTHING = 1, EMPTY = 2;

// What must be known of a consumer's query tile once a document is done; in registers it would crowd out the accumulators.
struct Held {
  RowInfo rows[TILE_ROWS];
  u32 bounds[TILE_ROWS + 1];  // rows of the tile where its queries begin
};

// The beginning of shared memory. The slots of the rings follow, then the query tiles, then the inverse norms of each slot's tokens.
struct Control {
  TileInfo tiles[MAX_SLOTS];
  u64 full[MAX_SLOTS], empty[MAX_SLOTS];  // of the slots
  u32 query_rows[MAX_WARPGROUPS];  // of the query tiles in shared memory
  u64 queries_full[MAX_WARPGROUPS], queries_empty[MAX_WARPGROUPS];
  u64 result_full[MAX_WARPGROUPS][2], result_empty[MAX_WARPGROUPS][2];
  Result results[MAX_WARPGROUPS][2];
  Held held[MAX_WARPGROUPS];
  // Of the columns of a masked tile: inverse norms or 1, -1 where masked.
  alignas(8) float factors[MAX_WARPGROUPS][FULL];
  // The producer's own.
  u32 units_of_block[4];  // when there is no table of them: where to begin, and the end; then the first, and where it began
  Feed feeds[MAX_WARPGROUPS];
};
constexpr u32 RING_AT = 23 * 1024;
static_assert(sizeof(Control) <= RING_AT, "RING_AT is CONTROL_BYTES of the launcher, less 1024 to align the tiles");

DEV u32 ring_of(const Control& control) { return shared_address(&control) + RING_AT; }

DEV u32 k_blocks_of(const HopperParams& params) { return IN_REGISTERS ? HELD_BLOCKS : ceil_div(params.dim, 64); }
DEV u32 queries_of(const HopperParams& params, const Control& control, u32 warpgroup) {
  return ring_of(control) + params.rings() * params.slots * SLOT_BYTES + warpgroup * k_blocks_of(params) * QUERY_BYTES;
}
// The inverse norms of the tokens of a slot's tile: they come onto its barrier with the tokens.
DEV u32 norms_of(const HopperParams& params, const Control& control, u32 slot) {
  return queries_of(params, control, params.warpgroups) + slot * (FULL * 4);
}

// One warp; what only one thread may do, lane 0 does.
struct Producer {
  const HopperParams& params;
  const TensorMap& map_queries;
  const TensorMap& map_full;
  const TensorMap& map_quarter;
  Control& control;

  DEV void load_queries(Feed& feed, u32 r) {
    const u32 k_blocks = k_blocks_of(params), first = params.split() ? r : 0, last = params.split() ? r + 1 : params.warpgroups;
    const u32 w = first + threadIdx.x;  // a tile a lane
    if (w < last) {
      const u32 barrier = shared_address(control.queries_full + w);
      mbarrier::wait(shared_address(control.queries_empty + w), (feed.loads & 1) ^ 1);
      const QueryTile tile = tile_of(params.items, params.queries, feed.unit, w - first, params.tiles);
      control.query_rows[w] = tile.rows;
      if (tile.rows == 0) mbarrier::arrive(barrier);
      else {
        mbarrier::expect_bytes(barrier, k_blocks * QUERY_BYTES);
#pragma unroll 1
        for (u32 k = 0; k < k_blocks; ++k)
          tma::load_2d(queries_of(params, control, w) + k * QUERY_BYTES, &map_queries, barrier, (int)(k * 64), (int)tile.row);
      }
    }
    __syncwarp();
    ++feed.loads;
  }

  DEV void open(Feed& feed, u32 r, const Unit& unit) {
    const bool fresh = !same_tiles(params.items, feed.unit, unit);
    feed.unit = unit;
    feed.row = (u32)params.docs.start(unit.doc), feed.token = 0, feed.end = params.docs.end(unit.doc);
    feed.flags = (fresh ? NEW_QUERIES : 0) | ((!NORMALIZED && params.docs.scales) || params.docs.has_holes(unit.doc) ? MASKED : 0);
    feed.open = true;
  }

  // This lane's of a tile's inverse norms, every 32nd of `left` from `row` on.
  DEV void copy_norms(u32 slot, u32 row, int left) {
    const u32 to = norms_of(params, control, slot) + 4 * threadIdx.x;
    const float* from = params.docs.scales + row;
    copy_float<0>(to, from, left), copy_float<32>(to, from, left);
    if (FULL > 64) copy_float<64>(to, from, left);
    if (FULL > 96) copy_float<96>(to, from, left);
    if (FULL > 128) copy_float<128>(to, from, left);
  }

  // The next tile of the ring's document; an empty one has a tile without tokens. The last of several tiles begins early enough to be full of
  // tokens: to meet some of them twice changes no maximum, and nothing of it need be cut off.
  DEV void load_tile(Feed& feed, u32 r) {
    const u32 left = feed.end - feed.token, first_slot = r * params.slots, quarters = left > 3 * QUARTER ? 4 : ceil_div(left, QUARTER);
    const u32 width = quarters == 4 ? FULL : quarters * QUARTER, slots = IN_REGISTERS || left == 0 ? 1 : k_blocks_of(params);
    const bool last = left <= FULL, early = last && feed.token > 0;
    const u32 token = early ? feed.end - width : feed.token, tokens = early ? width : min_of(left, FULL), row = feed.row + token;
    Ring at = feed.at;
#pragma unroll 1
    for (u32 s = 0; s < slots; ++s) {
      const u32 slot = first_slot + at.stage, barrier = shared_address(control.full + slot);
      mbarrier::wait(shared_address(control.empty + slot), at.parity ^ 1);
      if (threadIdx.x == 0) {
        if (s == 0) {
          const u32 about = token << FIRST_SHIFT | feed.flags | (last ? LAST_TILE : 0) | tokens;
          control.tiles[slot] = {about, feed.unit.doc, feed.unit.slot, feed.unit.row_block};
        }
        if (left == 0) mbarrier::arrive(barrier);
        else mbarrier::expect_bytes(barrier, HELD_BLOCKS * width * BLOCK_BYTES);
#pragma unroll 1
        for (u32 k = 0; left > 0 && k < HELD_BLOCKS; ++k) {
          const u32 to = ring_of(control) + slot * SLOT_BYTES + k * TILE_BYTES, x = (s + k) * 64;
          if (quarters == 4) tma::load_2d(to, &map_full, barrier, (int)x, (int)row);
          else
#pragma unroll 1
            for (u32 i = 0; i < quarters; ++i)
              tma::load_2d(to + i * QUARTER * BLOCK_BYTES, &map_quarter, barrier, (int)x, (int)(row + i * QUARTER));
        }
      }
      if (NORMALIZED) {
        if (!(feed.flags & MASKED)) copy_norms(slot, row + threadIdx.x, (int)tokens - (int)threadIdx.x);
        arrive_when_copied(barrier);
      }
      __syncwarp();
      // Behind the slot that tells of them: only then do the consumers give the old ones up.
      if (s == 0 && feed.flags & NEW_QUERIES) load_queries(feed, r);
      at.next(params.slots);
    }
    feed.at = at;
    feed.token += FULL;
    feed.flags &= ~NEW_QUERIES;
    feed.open = !last;
  }

  // One tile for each ring in turn, so that no consumer waits for another's document.
  DEV void run() {
    const Items& items = params.items;
    const u32 rings = params.rings(), runs = items.starts ? items.chunks : 2;
    Feed feed = {{0, 0}, {~0u, 0, 0, ~0u}, 0, 0, 0, 0, 0, false};
    if (rings > 1)
      for (u32 r = 0; r < rings; ++r) control.feeds[r] = feed;
    u32 chunk = 0, index = 0, last = 0, open_rings = 0;
    do {
      for (u32 r = 0; r < rings; ++r) {
        if (rings > 1) feed = control.feeds[r];
        __syncwarp();
        if (!feed.open) {
          while (index == last && chunk < runs) {
            const u32* starts = items.starts ? items.starts + (u64)chunk * (gridDim.x + 1) + blockIdx.x : control.units_of_block + 2 * chunk;
            index = starts[0], last = starts[1], ++chunk;
          }
          if (index == last) continue;
          open(feed, r, unit_at(items, chunk - 1, index++));
          ++open_rings;
        }
        load_tile(feed, r);
        open_rings -= !feed.open;
        if (rings > 1) control.feeds[r] = feed;
      }
    } while (open_rings > 0 || index < last || chunk < runs);
    for (u32 r = 0; r < rings; ++r) {
      const Ring at = rings > 1 ? control.feeds[r].at : feed.at;
      const u32 slot = r * params.slots + at.stage;
      mbarrier::wait(shared_address(control.empty + slot), at.parity ^ 1);
      if (NORMALIZED) arrive_when_copied(shared_address(control.full + slot));
      if (threadIdx.x > 0) continue;
      control.tiles[slot] = {STOP, 0, 0, 0};
      mbarrier::arrive(shared_address(control.full + slot));
    }
  }
};

// The best so far of a thread's two rows, rows lane / 4 and lane / 4 + 8 of its warp's 16.
struct Found {
  float value[2];
  int index[2];
  float minus_zero;  // which the compiler must not know
  DEV void clear() {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) value[r] = MINUS_INFINITY, index[r] = -1;
  }
};

// The best of a thread's columns in one tile: accumulator 4 j + 2 r + e is row r, column 8 j + 2 (lane % 4) + e. Pairs of columns are compared
// first; what is remembered is the pair, `pair[r]` = 8 j or below 0, and the first of the two, `first[r]`.
template <u32 COLUMNS, u32 SIZE> DEV void search_any(const float (&acc)[SIZE], float (&best)[2], float (&first)[2], float (&pair)[2]) {
#pragma unroll
  for (u32 r = 0; r < 2; ++r) best[r] = MINUS_INFINITY, first[r] = 0.f, pair[r] = -1.f;
#pragma unroll
  for (u32 j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
      const float left = acc[4 * j + 2 * r], value = max_nan(left, acc[4 * j + 2 * r + 1]);
      const bool better = value > best[r];
      best[r] = max_nan(best[r], value);
      if (WITH_ARGMAX) pair[r] = better ? 8.f * j : pair[r], first[r] = better ? left : first[r];
    }
}
// The same, sooner, by comparing bits: from +0 up, and a NaN is above them all, floats are ordered as the integers of their bits, of which one
// instruction compares three. Gives whether it is right: every `best` is above 0. Selections are additions of -0 under a predicate: these run beside the
// comparisons, not among them.
template <u32 COLUMNS, u32 SIZE>
DEV bool search_positive(const float (&acc)[SIZE], float (&best)[2], float (&first)[2], float (&pair)[2], float minus_zero) {
  constexpr u32 CHAINS = WITH_ARGMAX ? 1 : 2;  // of comparisons that wait for one another
  int most[CHAINS][2];
#pragma unroll
  for (u32 r = 0; r < 2; ++r) most[0][r] = most[CHAINS - 1][r] = (int)0x80000000, first[r] = 0.f, pair[r] = -1.f;
#pragma unroll
  for (u32 j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
      const float left = acc[4 * j + 2 * r], right = acc[4 * j + 2 * r + 1];
      int& best_bits = most[j % CHAINS][r];
      const int before = best_bits;
      best_bits = max_of(before, max_of(__float_as_int(left), __float_as_int(right)));
      if constexpr (WITH_ARGMAX)
        asm("{\n.reg .pred better;\nsetp.ne.s32 better, %2, %3;\n@better add.f32 %0, %4, %6;\n@better add.f32 %1, %5, %6;\n}"
            : "+&f"(first[r]), "+&f"(pair[r]) : "r"(before), "r"(best_bits), "f"(left), "f"(8.f * j), "f"(minus_zero));
    }
#pragma unroll
  for (u32 r = 0; r < 2; ++r) best[r] = __int_as_float(max_of(most[0][r], most[CHAINS - 1][r]));
  return __all_sync(~0u, min_of(__float_as_int(best[0]), __float_as_int(best[1])) > 0);
}

// Takes the best of the columns, of which the thread's first is `token`.
DEV void take(Found& found, const float (&best)[2], const float (&first)[2], const float (&pair)[2], u32 token) {
#pragma unroll
  for (u32 r = 0; r < 2; ++r) {
    if (WITH_ARGMAX && best[r] > found.value[r]) found.index[r] = (int)token + (int)pair[r] + (first[r] == best[r] ? 0 : 1);
    found.value[r] = max_nan(found.value[r], best[r]);
  }
}
template <u32 COLUMNS, u32 SIZE> DEV void search(const float (&acc)[SIZE], Found& found, u32 token) {
  float best[2], first[2], pair[2];
  if (!search_positive<COLUMNS>(acc, best, first, pair, found.minus_zero)) search_any<COLUMNS>(acc, best, first, pair);
  take(found, best, first, pair, token);
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
// Every column times its inverse norm.
template <u32 COLUMNS, u32 SIZE> DEV void scale(float (&acc)[SIZE], u32 norms) {
#pragma unroll
  for (u32 j = 0; j < COLUMNS / 8; ++j) {
    const float2 norm = load_pair(norms + threadIdx.x % 4 * 8 + 32 * j);
    acc[4 * j] *= norm.x, acc[4 * j + 1] *= norm.y, acc[4 * j + 2] *= norm.x, acc[4 * j + 3] *= norm.y;
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
  u32 warpgroup;
  u32 begin;  // of this warpgroup's ring: its first slot
  Ring at;
  u32 about;  // the next tile, or UNKNOWN

  static constexpr u32 UNKNOWN = ~0u;

  DEV u32 full() const { return shared_address(control.full) + 8 * at.stage; }
  DEV void wait_full() const { mbarrier::wait(full(), at.parity); }
  DEV void release(u32 stage) const {
    if (NORMALIZED) __syncwarp();
    if (threadIdx.x % (WARPGROUP / RELEASES) == 0) mbarrier::arrive(shared_address(control.empty) + 8 * stage);
  }
  DEV void advance() {
    if (++at.stage == begin + params.slots) at.stage = begin, at.parity ^= 1;
  }

  // Learns of the next tile: while the one before it is multiplied if it is there already, and when its turn comes else.
  DEV void look_ahead() {
    about = UNKNOWN;
    if (__all_sync(~0u, mbarrier::test(full(), at.parity))) read_about();
  }
  DEV void learn() {
    if (about == UNKNOWN) {
      wait_full();
      read_about();
    }
  }
  DEV void read_about() {
    about = uniform(load_shared(shared_address(control.tiles) + (u32)sizeof(TileInfo) * at.stage));
  }

  // The token of this thread's first column.
  DEV static u32 first_token(u32 about) { return (about >> FIRST_SHIFT) + threadIdx.x % 4 * 2; }

  // Of the tile in slot `stage`.
  DEV const float* write_factors(u32 stage, u32 token, u32 tokens) const {
    const u32 doc = control.tiles[stage].doc;
    float* factors = control.factors[warpgroup];
    named_barrier(warpgroup + 1, WARPGROUP);  // those of the tile before have been read
    for (u32 column = threadIdx.x % WARPGROUP; column < FULL; column += WARPGROUP) {
      const bool counts = column < tokens && params.docs.keeps(doc, token + column);
      factors[column] = !counts ? -1.f : params.docs.scales ? params.docs.scales[params.docs.start(doc) + token + column] : 1.f;
    }
    named_barrier(warpgroup + 1, WARPGROUP);
    return factors;
  }

  template <u32 COLUMNS, u32 HELD> DEV void multiply(float (&acc)[COLUMNS / 2], const u32 (&fragments)[HELD][4]) {
    const u64 b = wgmma::descriptor_k_major(ring_of(control) + at.stage * SLOT_BYTES);
    wgmma::fence();  // no wait from here on: a loop between the multiplies would serialise them
#pragma unroll
    for (u32 k = 0; k < HELD_BLOCKS; ++k)
#pragma unroll
      for (u32 i = 0; i < 4; ++i) wgmma::from_registers<E, COLUMNS>(acc, fragments[4 * k + i], b + k * (TILE_BYTES >> 4) + 2 * i, k + i > 0);
    wgmma::commit();
  }

  // Wide tiles for as long as nothing else comes. What is rare is done outside of the inner loop, which is to stay small.
  DEV bool wide() const { return !(about & (NEW_QUERIES | STOP)) && (about & TOKENS_MASK) > 3 * QUARTER; }
  template <u32 HELD> DEV void wide_tiles(const u32 (&fragments)[HELD][4], Found& found, u32 taken, u32& results) {
    bool more;
    do {
      float acc[FULL / 2], best[2], first[2], pair[2];
      u32 of, stage;
#pragma unroll 1
      do {
        of = about, stage = at.stage;
        multiply<FULL>(acc, fragments);
        if (of & LAST_TILE) announce(results, taken, false);
        advance();
        look_ahead();
        wgmma::wait<0>();
        wgmma::tie(acc);
        more = !(of & MASKED);
        if (!more) break;
        if (NORMALIZED) scale<FULL>(acc, norms_of(params, control, stage));
        release(stage);
        if ((of & TOKENS_MASK) < FULL) cut<3 * QUARTER, FULL - 3 * QUARTER>(acc, of & TOKENS_MASK);
        more = search_positive<FULL>(acc, best, first, pair, found.minus_zero);
        if (!more) break;
        take(found, best, first, pair, first_token(of));
        if (of & LAST_TILE) finish(found, results++);
        learn();
      } while (wide());
      if (more) return;
      if (of & MASKED) {
        apply<FULL>(acc, write_factors(stage, of >> FIRST_SHIFT, of & TOKENS_MASK));
        release(stage);
      }
      search<FULL>(acc, found, first_token(of));
      if (of & LAST_TILE) finish(found, results++);
      learn();
    } while (wide());
  }

  // One document tile: its product with the query tile, and the search. `fragments`: the query tile, when it is held in registers.
  template <u32 COLUMNS, u32 HELD> DEV void tile(const u32 (&fragments)[HELD][4], Found& found) {
    float acc[COLUMNS / 2];
    const u32 of = about, tokens = of & TOKENS_MASK, token = of >> FIRST_SHIFT;
    const float* factors = nullptr;
    if (of & MASKED) factors = write_factors(at.stage, token, tokens);
    u32 previous = at.stage;
    if constexpr (IN_REGISTERS) {
      multiply<COLUMNS>(acc, fragments);
      advance();
      look_ahead();
    } else {
#pragma unroll
      for (u32 i = 0; i < COLUMNS / 2; ++i) acc[i] = 0.f;
      const u32 from = queries_of(params, control, warpgroup), k_blocks = k_blocks_of(params);
#pragma unroll 1
      for (u32 k = 0; k < k_blocks; ++k) {
        if (k > 0) wait_full();
        const u64 a = wgmma::descriptor_k_major(from + k * QUERY_BYTES), b = wgmma::descriptor_k_major(ring_of(control) + at.stage * SLOT_BYTES);
        wgmma::fence();
#pragma unroll
        for (u32 i = 0; i < 4; ++i) wgmma::from_shared<E, COLUMNS>(acc, a + 2 * i, b + 2 * i, true);
        wgmma::commit();
        wgmma::wait<1>();  // the block before this one has been read
        if (k > 0) release(previous);
        previous = at.stage;
        advance();
      }
      look_ahead();
    }
    wgmma::wait<0>();
    if (!NORMALIZED) release(previous);
    wgmma::tie(acc);
    if (NORMALIZED) {
      if (!(of & MASKED)) scale<COLUMNS>(acc, norms_of(params, control, previous));
      release(previous);
    }
    if (of & MASKED) apply<COLUMNS>(acc, factors);
    else if (tokens < COLUMNS) {
      // Only the last quarter (of a full tile: what is beyond three) can be beyond the document.
      constexpr u32 SURE = COLUMNS == FULL ? 3 * QUARTER : COLUMNS - QUARTER;
      cut<SURE, COLUMNS - SURE>(acc, tokens);
    }
    search<COLUMNS>(acc, found, first_token(of));
  }

  // Takes over a query tile, its rows into registers. `taken`: how many there were, doubled, and IDLE when there is nothing to multiply.
  static constexpr u32 IDLE = 1;
  template <u32 HELD> DEV void take_queries(u32 (&fragments)[HELD][4], u32& taken) {
    const u32 thread = threadIdx.x % WARPGROUP, lane = thread % WARP;
    mbarrier::wait(shared_address(control.queries_full + warpgroup), taken >> 1 & 1);
    const u32 rows = control.query_rows[warpgroup];
    if constexpr (IN_REGISTERS) {
      const u32 row = thread / WARP * 16 + lane % 16, from = queries_of(params, control, warpgroup) + row * BLOCK_BYTES;
#pragma unroll
      for (u32 k = 0; k < 4 * HELD_BLOCKS; ++k) {
        const u32 piece = k % 4 * 2 + lane / 16;
        load_matrix_x4(fragments[k], from + k / 4 * QUERY_BYTES + ((piece ^ (row & 7)) << 4));
      }
      named_barrier(warpgroup + 1, WARPGROUP);
      if (thread == 0) mbarrier::arrive(shared_address(control.queries_empty + warpgroup));
    }
    taken = (taken & ~IDLE) + 2 + (uniform(rows) == 0 ? IDLE : 0);
  }

  DEV void run() {
    const u32 thread = threadIdx.x % WARPGROUP;
    u32 fragments[4 * HELD_BLOCKS][4];
    u32 taken = 0, results = 0;
    about = UNKNOWN;
    Found found;
    found.clear();
    found.minus_zero = __uint_as_float(0x80000000u | params.dim >> 31);
#pragma unroll 1
    while (true) {
      learn();
      if (about & (STOP | NEW_QUERIES)) {
        if (about & STOP) break;
        if (!IN_REGISTERS && taken > 0 && thread == 0) mbarrier::arrive(shared_address(control.queries_empty + warpgroup));
        take_queries(fragments, taken);
        about &= ~NEW_QUERIES;
      }
      if (IN_REGISTERS && !(taken & IDLE) && wide()) {
        wide_tiles(fragments, found, taken, results);
        continue;
      }
      const u32 of = about, tokens = of & TOKENS_MASK;
      if (of & LAST_TILE) announce(results, taken, tokens == 0);
      if (tokens == 0 || taken & IDLE) {  // nothing to multiply: only pass the blocks on, each once all warps know of it
        for (u32 k = 0; k < (IN_REGISTERS || tokens == 0 ? 1 : k_blocks_of(params)); ++k) {
          if (k > 0) wait_full();
          named_barrier(warpgroup + 1, WARPGROUP);
          release(at.stage);
          advance();
        }
        about = UNKNOWN;
      } else if (!IN_REGISTERS && tokens > 3 * QUARTER) tile<FULL>(fragments, found);
      else if (tokens > 2 * QUARTER) tile<3 * QUARTER>(fragments, found);
      else if (tokens > QUARTER) tile<2 * QUARTER>(fragments, found);
      else tile<QUARTER>(fragments, found);
      if (of & LAST_TILE) finish(found, results++);
    }
    wait_result(results);
    if (thread == 0) control.results[warpgroup][results & 1].of = {0, 0, 0, NOTHING};
    hand_over(results);
  }

  DEV void wait_result(u32 number) const {
    mbarrier::wait(shared_address(control.result_empty[warpgroup] + (number & 1)), ((number >> 1) & 1) ^ 1);
  }
  DEV void hand_over(u32 number) const {
    __syncwarp();
    if (threadIdx.x % WARP == 0) mbarrier::arrive(shared_address(control.result_full[warpgroup] + (number & 1)));
  }

  // The tile at hand is the last of its document: waits until result `number` may be written, and says whose it is.
  DEV void announce(u32 number, u32 taken, bool empty) const {
    wait_result(number);
    if (threadIdx.x % WARPGROUP == 0) {
      const TileInfo& info = control.tiles[at.stage];
      control.results[warpgroup][number & 1].of = {info.doc, info.slot, info.row_block, taken << 2 | (empty ? EMPTY : 0)};
    }
  }
  // A document is done, and was announced.
  DEV void finish(Found& found, u32 number) const {
    const u32 thread = threadIdx.x % WARPGROUP, warp = thread / WARP, lane = thread % WARP;
    Result& result = control.results[warpgroup][number & 1];
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
      const u32 row = warp * 16 + lane / 4 + r * 8;
      result.best[row][lane % 4] = found.value[r];
      if (WITH_ARGMAX) result.index[row][lane % 4] = found.index[r];
    }
    hand_over(number);
    found.clear();
  }
};

// Adds up what a consumer finds: one warp.
struct Adder {
  const HopperParams& params;
  Control& control;
  u32 warpgroup;

  DEV float best(const Result& result, u32 row) const {
    const float4 best = *reinterpret_cast<const float4*>(result.best[row]);
    return max_nan(max_nan(best.x, best.y), max_nan(best.z, best.w));
  }
  DEV float value(const Result& result, const Held& held, bool empty, u32 row) const {
    const RowInfo& info = held.rows[row];
    return info.counts && !empty ? best(result, row) * info.scale : 0.f;
  }
  // The first of the columns that are the best of their row.
  DEV int first(const Result& result, u32 row, float best) const {
    int first = -1;
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
      if (result.best[row][i] == best) first = (int)min_of((u32)first, (u32)result.index[row][i]);
    return first;
  }

  // What must be known of a new query tile.
  DEV QueryTile take_queries(Held& held, const Unit& unit) const {
    const u32 lane = threadIdx.x % WARP;
    const QueryTile tile = tile_of(params.items, params.queries, unit, params.split() ? 0 : warpgroup, params.tiles);
    for (u32 row = lane; row < TILE_ROWS; row += WARP) held.rows[row] = row_info(params.items, params.queries, tile, row);
    for (u32 s = lane; s <= tile.queries; s += WARP)
      held.bounds[s] = tile.queries > 1 ? (u32)(params.queries.start(tile.query + s) - tile.row) : s * tile.rows;
    __syncwarp();
    return tile;
  }

  DEV void run() const {
    const Items& items = params.items;
    const u32 lane = threadIdx.x % WARP;
    Held& held = control.held[warpgroup];
    QueryTile tile = {0, 0, 0, 0, 0};
    u32 taken = 0;
    for (u32 number = 0;; ++number) {
      const Result& result = control.results[warpgroup][number & 1];
      mbarrier::wait(shared_address(control.result_full[warpgroup] + (number & 1)), (number >> 1) & 1);
      const uint4 of = result.of;
      if (of.w & NOTHING) break;
      Unit unit = {of.z, of.x, of.y, 0};
      const bool empty = of.w & EMPTY;
      if (of.w >> 2 != taken) {
        if (items.pairing != Pairing::Cross) unit.query = items.query_of(unit.slot);
        tile = take_queries(held, unit);
        taken = of.w >> 2;
      }
      if (tile.queries > 8) {  // short ones: one lane each
        for (u32 s = lane; s < tile.queries; s += WARP) {
          float sum = 0.f;
          for (u32 row = held.bounds[s]; row < held.bounds[s + 1]; ++row) sum += value(result, held, empty, row);
          params.sums[sum_index(items, tile, s, unit, params.tiles)] = sum;
        }
      } else {
        for (u32 s = 0; s < tile.queries; ++s) {
          const u32 to = held.bounds[s + 1];
          float sum = 0.f;
          for (u32 row = held.bounds[s] + lane; row < to; row += WARP) sum += value(result, held, empty, row);
          sum = warp_sum(sum);
          if (lane == 0) params.sums[sum_index(items, tile, s, unit, params.tiles)] = sum;
        }
      }
      if constexpr (WITH_ARGMAX) {
        u64 base = 0;
        if (items.pairing != Pairing::Cross) base = items.arguments(params.queries, tile.query, unit.doc, unit.slot);
        for (u32 row = lane; row < tile.rows; row += WARP) {
          const RowInfo& info = held.rows[row];
          int index = -1;
          if (info.counts && !empty) {
            const float most = best(result, row);
            index = first(result, row, most);
            if (index < 0) index = params.docs.first(unit.doc);  // all are -inf
            if (most != most) index = UNSETTLED, *params.nan_epoch = params.epoch;
          }
          params.argmax[base + (u64)unit.doc * info.step + info.argument] = index;
        }
      }
      __syncwarp();
      if (lane == 0) mbarrier::arrive(shared_address(control.result_empty[warpgroup] + (number & 1)));
    }
  }
};

// Where a block begins among its units of a cross: with a new row block, or else with one of a few documents that are the same for all row blocks,
// so that the first loads of a launch, for which all multiplies wait, are of few documents.
DEV u32 together(const Items& items, u32 begin, u32 end) {
  if (items.pairing != Pairing::Cross) return begin;
  const u32 row_block = begin / items.docs, doc = begin - row_block * items.docs, next = begin - doc + items.docs;
  const u32 share = max_of(begin < items.first_units ? items.shares[0] : items.shares[1], 1u), from = begin - doc + ceil_div(doc, share) * share;
  return next < end ? next : from < end ? from : begin;
}

KERNEL __launch_bounds__((1 + MAX_WARPGROUPS) * WARPGROUP, 1)
maxsim_forward_sm90(const __grid_constant__ TensorMap map_queries, const __grid_constant__ TensorMap map_full,
                    const __grid_constant__ TensorMap map_quarter, const __grid_constant__ HopperParams params) {
  extern __shared__ u8 dynamic[];
  Control& control = *reinterpret_cast<Control*>(dynamic + (-shared_address(dynamic) & 1023u));  // 128-byte swizzle repeats every 1024 bytes
  const u32 slots = params.rings() * params.slots;
  const u32 warpgroup = threadIdx.x / WARPGROUP, warp = threadIdx.x / WARP;
  if (threadIdx.x == 0) {
    tma::prefetch_map(&map_queries);
    tma::prefetch_map(&map_full);
    tma::prefetch_map(&map_quarter);
#pragma unroll 1
    for (u32 i = 0; i < slots; ++i) {
      mbarrier::init(shared_address(control.full + i), NORMALIZED ? 1 + WARP : 1);
      mbarrier::init(shared_address(control.empty + i), (params.split() ? 1 : params.warpgroups) * RELEASES);
    }
    for (u32 w = 0; w < params.warpgroups; ++w) {
      mbarrier::init(shared_address(control.queries_full + w), 1);
      mbarrier::init(shared_address(control.queries_empty + w), 1);
      for (u32 i = 0; i < 2; ++i) {
        mbarrier::init(shared_address(control.result_full[w] + i), WARPGROUP / WARP);
        mbarrier::init(shared_address(control.result_empty[w] + i), 1);
      }
    }
    mbarrier::fence_init();
  }
  if (threadIdx.x == WARP && !params.items.starts) {
    const u32 begin = first_unit(params.items, 0, blockIdx.x, gridDim.x), end = first_unit(params.items, 0, blockIdx.x + 1, gridDim.x);
    const u32 from = params.split() ? begin : together(params.items, begin, end);
    control.units_of_block[0] = from, control.units_of_block[1] = end;
    control.units_of_block[2] = begin, control.units_of_block[3] = from;
  }
  __syncthreads();
  grid_dependency_wait();
  grid_dependency_launch();
  if (warpgroup == 0) {
    registers_shrink<IN_REGISTERS ? 56 : 80>();
    if (warp == 0) {
      Producer producer = {params, map_queries, map_full, map_quarter, control};
      producer.run();
    } else if (warp > 0 && warp <= params.warpgroups) {
      const Adder adder = {params, control, warp - 1};
      adder.run();
    }
  } else {
    registers_grow<IN_REGISTERS ? 152 : 144>();
    const u32 w = warpgroup - 1, first_slot = params.split() ? w * params.slots : 0;
    Consumer consumer = {params, control, w, first_slot, {first_slot, 0}, 0};
    consumer.run();
  }
}
#endif
