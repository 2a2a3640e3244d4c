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
#include "sm90/ring.cuh"
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

// A tile of up to TILE_TOKENS tokens is one to four quarters wide, so that the time of a ragged document follows its length. The last columns are
// copied so that they end where the document does: to meet some tokens twice changes no maximum, and nothing need be cut off, but of a document
// with less than a quarter.
constexpr u32 FULL = TILE_TOKENS, QUARTER = (FULL / 4 + 7) / 8 * 8;
constexpr u32 BLOCK_BYTES = 128;  // of a row in shared memory: 64 elements of d
constexpr u32 TILE_BYTES = FULL * BLOCK_BYTES, QUERY_BYTES = TILE_ROWS * BLOCK_BYTES;
constexpr bool IN_REGISTERS = QUERY_BLOCKS > 0;
// A slot of the ring holds a whole document tile, or 64 elements of d of it when queries are in shared memory too.
constexpr u32 HELD_BLOCKS = IN_REGISTERS ? QUERY_BLOCKS : 1, SLOT_BYTES = HELD_BLOCKS * TILE_BYTES;
constexpr u32 MAX_WARPGROUPS = 3, MAX_SLOTS = 32;
// Of a slot by a consumer: by one thread when only the tensor cores have read it, else by each warp.
constexpr u32 RELEASES = NORMALIZED ? WARPGROUP / WARP : 1;

// What the producer says of a tile: how many tokens in bits 0 .. 7, whether it is two, three or four quarters wide, flags.
constexpr u32 TOKENS_MASK = 0xff, TWO = 1u << 8, THREE = 1u << 9, FOUR = 1u << 10, LAST_TILE = 1u << 11, MASKED = 1u << 12, NEW_QUERIES = 1u << 13,
              STOP = 1u << 14, NO_TOKENS = 1u << 15;
static_assert(FULL <= TOKENS_MASK, "a tile's tokens fit their bits");
// Of a tile that is not there yet; and what is more than a tile to be multiplied, UNKNOWN among it.
constexpr u32 UNKNOWN = ~0u, SPECIAL = NEW_QUERIES | STOP | NO_TOKENS;
struct alignas(16) TileInfo {
  u32 about, from, doc, first;  // `from`: the low half of the tile's descriptor; `first`: its first token of the document
};
constexpr u32 FIRST_AT = 12;  // of `first` in it
DEV u32 columns_of(u32 quarters) { return quarters == 4 ? FULL : quarters * QUARTER; }
// The first of the columns that are copied so that they end with the last token.
DEV constexpr u32 tail_of(u32 quarters) { return quarters < 2 ? FULL : quarters == 2 ? QUARTER : 2 * QUARTER; }

// Copies a float on its own; and an arrival at the barrier once this thread's copies so far are there.
DEV void copy_float(u32 shared, const float* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}
DEV void arrive_when_copied(u32 barrier) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory"); }
DEV float2 load_pair(u32 shared) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(shared) : "memory");
  return x;
}

// A document whose turn is near.
struct Upcoming {
  u32 row, end;  // its first row, one past its last token
  u32 flags;     // of its tiles
  Unit unit;
};

// A ring as the producer sees it, and the document that it is being filled with.
struct Feed {
  RingPlace at;
  u32 loads;     // of queries
  u32 docs;      // so far
  u32 token;     // the next
  u32 open;      // whether the document has tiles left
  Upcoming doc;  // its unit is also that of the queries that were loaded last
};

// What a consumer found of a document, for the warp that adds it up: of each row the four threads of a quad have a best each.
struct alignas(16) Result {
  float best[TILE_ROWS][4];
  int index[WITH_ARGMAX ? TILE_ROWS : 1][4];
};

// What the producer says of a document, for the warps that add up.
struct alignas(16) Told {
  u32 doc, slot, row_block, flags;  // NEW_QUERIES, STOP, EMPTY
};
constexpr u32 EMPTY = 1;
// Of one ring: more than documents can be between the producer and a warp that adds up, at most a slot each and two results, so that none is written
// over before its time.
constexpr u32 TOLD = 2 * MAX_SLOTS;

// Of a query tile that is neither one query nor two halves, for the warp that adds up: rows where queries begin, and each row's best.
struct Held {
  float values[TILE_ROWS];
  u32 bounds[TILE_ROWS + 1];
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
  Told told[MAX_WARPGROUPS][TOLD];
  Upcoming upcoming[WARP];
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

// One warp; what only one thread may do, an elected lane does.
struct Producer {
  const HopperParams& params;
  const TensorMap& map_queries;
  const TensorMap& map_full;
  const TensorMap& map_half;
  const TensorMap& map_rest;
  const TensorMap& map_quarter;
  Control& control;
  u32 chunk, index, last;   // of the units: the run of them that comes next, the next of this one, one past its last
  u32 upcoming, looked_up;  // of `control.upcoming`: the next, one past the last

  DEV void load_queries(Feed& feed, u32 r) {
    const u32 k_blocks = k_blocks_of(params), first = params.split() ? r : 0, last = params.split() ? r + 1 : params.warpgroups;
    const u32 w = first + threadIdx.x;  // a tile a lane
    if (w < last) {
      const u32 barrier = shared_address(control.queries_full + w);
      mbarrier::wait(shared_address(control.queries_empty + w), (feed.loads & 1) ^ 1);
      const QueryTile tile = tile_of(params.items, params.queries, feed.doc.unit, w - first, params.tiles);
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

  // The next documents of the block, a lane each. Gives whether there are any.
  DEV bool look_up() {
    const Items& items = params.items;
    const u32 runs = items.starts ? items.chunks : 2;
    while (index == last && chunk < runs) {
      const u32* starts = items.starts ? items.starts + (u64)chunk * (gridDim.x + 1) + blockIdx.x : control.units_of_block + 2 * chunk;
      index = starts[0], last = starts[1], ++chunk;
    }
    if (index == last) return false;
    __syncwarp();  // those before have been read
    upcoming = 0, looked_up = min_of(last - index, WARP);
    if (threadIdx.x < looked_up) {
      const Unit unit = unit_at(items, chunk - 1, index + threadIdx.x);
      const u32 flags = (!NORMALIZED && params.docs.scales) || params.docs.has_holes(unit.doc) ? MASKED : 0;
      control.upcoming[threadIdx.x] = {(u32)params.docs.start(unit.doc), params.docs.end(unit.doc), flags, unit};
    }
    __syncwarp();
    index += looked_up;
    return true;
  }

  DEV void tell(Feed& feed, u32 r, u32 flags) {
    if (elect()) control.told[r][feed.docs % TOLD] = {feed.doc.unit.doc, feed.doc.unit.slot, feed.doc.unit.row_block, flags};
    ++feed.docs;
  }

  // Gives whether there is another document.
  DEV bool open(Feed& feed, u32 r) {
    if (upcoming == looked_up && !look_up()) return false;
    const Unit before = feed.doc.unit;
    feed.doc = control.upcoming[upcoming++];
    if (!same_tiles(params.items, before, feed.doc.unit)) feed.doc.flags |= NEW_QUERIES;
    tell(feed, r, feed.doc.flags & NEW_QUERIES | (feed.doc.end == 0 ? EMPTY : 0));
    feed.token = 0;
    return feed.open = 1;
  }

  // This lane's of the inverse norms of a tile's columns, every 32nd, from `row` on: the first `count`, those from `tail` on `back` rows before.
  DEV void copy_norms(u32 slot, u32 row, u32 count, u32 tail, u32 back) {
    const u32 to = norms_of(params, control, slot);
#pragma unroll
    for (u32 from = 0; from < FULL; from += WARP) {
      const u32 column = from + threadIdx.x;
      if (column < count) copy_float(to + 4 * column, params.docs.scales + row + column - (column < tail ? 0 : back));
    }
  }

  // The next tile of the ring's document; an empty one has a tile without tokens. The last of several tiles begins early enough to be full of tokens.
  DEV void load_tile(Feed& feed, u32 r) {
    const Upcoming& doc = feed.doc;
    const u32 left = doc.end - feed.token, first_slot = r * params.slots, masked = doc.flags & MASKED;
    const u32 quarters = left == 0 ? 0 : left > 3 * QUARTER || masked ? 4 : left > 2 * QUARTER ? 3 : left > QUARTER ? 2 : 1;
    const u32 columns = columns_of(quarters), width = quarters > 1 ? TWO << (quarters - 2) : quarters == 0 ? NO_TOKENS : 0;
    const u32 slots = IN_REGISTERS || left == 0 ? 1 : k_blocks_of(params);
    const bool last = left <= FULL, early = last && feed.token > 0;
    const u32 token = early ? doc.end - columns : feed.token, tokens = early ? columns : min_of(left, FULL), row = doc.row + token;
    const u32 about = doc.flags | (last ? LAST_TILE : 0) | width | tokens;
    // Two copies, or one.
    const bool whole = tokens == FULL || masked, two = quarters > 1 && !whole;
    const TensorMap* head = whole ? &map_full : quarters > 2 ? &map_half : &map_quarter;
    const TensorMap* tail = quarters == 4 ? &map_rest : &map_quarter;
    const u32 tail_at = tail_of(quarters), back = columns - tokens, tail_row = row + tail_at - back;
#pragma unroll 1
    for (u32 s = 0; s < slots; ++s) {
      const u32 slot = first_slot + feed.at.stage, barrier = shared_address(control.full + slot);
      mbarrier::wait(shared_address(control.empty + slot), feed.at.parity ^ 1);
      if (elect()) {
        const u32 to = ring_of(control) + slot * SLOT_BYTES;
        control.tiles[slot] = {about, (u32)wgmma::descriptor_k_major(to), doc.unit.doc, token};
        if (left == 0) mbarrier::arrive(barrier);
        else {
          mbarrier::expect_bytes(barrier, HELD_BLOCKS * columns * BLOCK_BYTES);
#pragma unroll
          for (u32 k = 0; k < HELD_BLOCKS; ++k) tma::load_2d(to + k * TILE_BYTES, head, barrier, (int)((s + k) * 64), (int)row);
          if (two)
#pragma unroll
            for (u32 k = 0; k < HELD_BLOCKS; ++k)
              tma::load_2d(to + k * TILE_BYTES + tail_at * BLOCK_BYTES, tail, barrier, (int)((s + k) * 64), (int)tail_row);
        }
      }
      if (NORMALIZED) {
        if (!(doc.flags & MASKED)) copy_norms(slot, row, quarters > 1 ? columns : tokens, tail_at, back);
        arrive_when_copied(barrier);
      }
      __syncwarp();
      // Behind the slot that tells of them: only then do the consumers give the old ones up.
      if (s == 0 && doc.flags & NEW_QUERIES) load_queries(feed, r);
      feed.at.next(params.slots);
    }
    feed.token += FULL;
    feed.doc.flags &= ~NEW_QUERIES;
    feed.open = !last;
  }

  // One tile for each ring in turn, so that no consumer waits for another's document.
  DEV void run() {
    const u32 rings = params.rings();
    Feed feed = {{0, 0}, 0, 0, 0, 0, {0, 0, 0, {~0u, 0, 0, ~0u}}};
    if (rings > 1)
      for (u32 r = 0; r < rings; ++r) control.feeds[r] = feed;
    u32 open_rings;
    do {
      open_rings = 0;
      for (u32 r = 0; r < rings; ++r) {
        if (rings > 1) {
          __syncwarp();
          feed = control.feeds[r];
        }
        if (!feed.open && !open(feed, r)) continue;
        load_tile(feed, r);
        ++open_rings;
        if (rings > 1) control.feeds[r] = feed;
      }
    } while (open_rings > 0);
    for (u32 r = 0; r < rings; ++r) {
      if (rings > 1) feed = control.feeds[r];
      const u32 slot = r * params.slots + feed.at.stage;
      mbarrier::wait(shared_address(control.empty + slot), feed.at.parity ^ 1);
      tell(feed, r, STOP);
      if (NORMALIZED) arrive_when_copied(shared_address(control.full + slot));
      if (elect()) {
        control.tiles[slot] = {STOP, 0, 0, 0};
        mbarrier::arrive(shared_address(control.full + slot));
      }
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
// instruction compares three. Selections are additions of -0 under a predicate: these run beside the comparisons, not among them.
struct Positive {
  static constexpr u32 CHAINS = WITH_ARGMAX ? 1 : 2;  // of comparisons that wait for one another
  int most[CHAINS][2];
  float first[2], pair[2], minus_zero;

  DEV Positive(float minus_zero) : minus_zero(minus_zero) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) most[0][r] = most[CHAINS - 1][r] = (int)0x80000000, first[r] = 0.f, pair[r] = -1.f;
  }
  template <u32 COLUMNS, u32 SIZE> DEV void search(const float (&acc)[SIZE]) {
#pragma unroll
    for (u32 j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
      for (u32 r = 0; r < 2; ++r) {
        const float left = acc[4 * j + 2 * r], right = acc[4 * j + 2 * r + 1];
        int& best = most[j % CHAINS][r];
        const int before = best;
        best = max_of(before, max_of(__float_as_int(left), __float_as_int(right)));
        if constexpr (WITH_ARGMAX)
          asm("{\n.reg .pred better;\nsetp.ne.s32 better, %2, %3;\n@better add.f32 %0, %4, %6;\n@better add.f32 %1, %5, %6;\n}"
              : "+&f"(first[r]), "+&f"(pair[r]) : "r"(before), "r"(best), "f"(left), "f"(8.f * j), "f"(minus_zero));
      }
  }
  DEV int bits(u32 r) const { return max_of(most[0][r], most[CHAINS - 1][r]); }
  // Gives whether what was found is right: every best is above 0.
  DEV bool best(float (&best)[2]) const {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) best[r] = __int_as_float(bits(r));
    return __all_sync(~0u, min_of(bits(0), bits(1)) > 0);
  }
  // The same of few columns: some thread of every row's four has a best above 0, before which what the others found counts for nothing.
  DEV bool best_of_quads(float (&best)[2]) const {
    u32 quads = ~0u;
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
      best[r] = __int_as_float(bits(r));
      const u32 above = __ballot_sync(~0u, bits(r) > 0), pairs = above | above >> 1;
      quads &= pairs | pairs >> 2;
    }
    return (quads & 0x11111111) == 0x11111111;
  }
};

// Takes the best of a tile's columns, from token `first` on, of which those from `tail` on end with its last token.
DEV void take(Found& found, const float (&best)[2], const float (&left)[2], const float (&pair)[2], u32 first, u32 about, u32 columns, u32 tail) {
#pragma unroll
  for (u32 r = 0; r < 2; ++r) {
    if (WITH_ARGMAX && best[r] > found.value[r]) {
      u32 token = first + threadIdx.x % 4 * 2 + (u32)(int)pair[r];
      if (pair[r] >= tail) token -= columns - (about & TOKENS_MASK);
      found.index[r] = (int)token + (left[r] == best[r] ? 0 : 1);
    }
    found.value[r] = max_nan(found.value[r], best[r]);
  }
}

// Columns from `tokens` on, beyond the document, become -inf.
template <u32 COLUMNS, u32 SIZE> DEV void cut(float (&acc)[SIZE], u32 tokens) {
  const u32 column = threadIdx.x % 4 * 2;
#pragma unroll
  for (u32 j = 0; j < COLUMNS / 8; ++j)
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
  RingPlace at;
  u32 about, from;  // the next tile, or UNKNOWN
  u32 first;        // token of the tile that is multiplied
  u32 results;      // so far
  u32 thread;       // of the warpgroup
  u32 result;       // where this thread's bests go
  u32 barriers;     // `result_full` of this warpgroup; `result_empty` lies behind that of all of them

  DEV u32 full() const { return shared_address(control.full) + 8 * at.stage; }
  DEV void wait_full() const { mbarrier::wait(full(), at.parity); }
  DEV void release(u32 stage) const {
    if (NORMALIZED) __syncwarp();
    if (thread % (WARPGROUP / RELEASES) == 0) mbarrier::arrive(shared_address(control.empty) + 8 * stage);
    __syncwarp();  // so that the compiler does not put this off until the search is over
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
    const uint4 info = load_shared_vector(shared_address(control.tiles) + (u32)sizeof(TileInfo) * at.stage);
    about = uniform(info.x), from = info.y;
  }

  // Of the tile in slot `stage`.
  DEV const float* write_factors(u32 stage, u32 about) const {
    const u32 doc = control.tiles[stage].doc, first = control.tiles[stage].first, tokens = about & TOKENS_MASK;
    float* factors = control.factors[warpgroup];
    named_barrier(warpgroup + 1, WARPGROUP);  // those of the tile before have been read
#pragma unroll 1
    for (u32 column = threadIdx.x % WARPGROUP; column < FULL; column += WARPGROUP) {
      const u32 token = first + column;
      const bool counts = column < tokens && params.docs.keeps(doc, token);
      factors[column] = !counts ? -1.f : params.docs.scales ? params.docs.scales[params.docs.start(doc) + token] : 1.f;
    }
    named_barrier(warpgroup + 1, WARPGROUP);
    return factors;
  }

  // Multiplies the query tile with the tile at hand. `fragments`: the query tile, when it is held in registers; then this only begins. Else all of
  // the tile's slots but the last are given back.
  template <u32 COLUMNS, u32 HELD, u32 SIZE> DEV void multiply(float (&acc)[SIZE], const u32 (&fragments)[HELD][4]) {
    if constexpr (IN_REGISTERS) {
      const u64 b = (wgmma::descriptor_k_major(0) & 0xffffffff00000000) | uniform(from);
      wgmma::fence();  // no wait from here on: a loop between the multiplies would serialise them
#pragma unroll
      for (u32 k = 0; k < HELD_BLOCKS; ++k)
#pragma unroll
        for (u32 i = 0; i < 4; ++i) wgmma::from_registers<E, COLUMNS>(acc, fragments[4 * k + i], b + k * (TILE_BYTES >> 4) + 2 * i, k + i > 0);
      wgmma::commit();
    } else {
#pragma unroll
      for (u32 i = 0; i < COLUMNS / 2; ++i) acc[i] = 0.f;
      const u32 queries = queries_of(params, control, warpgroup), k_blocks = k_blocks_of(params);
#pragma unroll 1
      for (u32 k = 0; k < k_blocks; ++k) {
        const u32 previous = at.stage;
        if (k > 0) {
          advance();
          wait_full();
        }
        const u64 a = wgmma::descriptor_k_major(queries + k * QUERY_BYTES), b = wgmma::descriptor_k_major(ring_of(control) + at.stage * SLOT_BYTES);
        wgmma::fence();
#pragma unroll
        for (u32 i = 0; i < 4; ++i) wgmma::from_shared<E, COLUMNS>(acc, a + 2 * i, b + 2 * i, true);
        wgmma::commit();
        wgmma::wait<1>();  // the block before this one has been read
        if (k > 0) release(previous);
      }
    }
  }

  // The same to its end. Learns meanwhile of what comes next, and waits until the result may be written if the tile is the last of its document.
  // Gives the slot that is to be given back.
  template <u32 COLUMNS, u32 HELD, u32 SIZE> DEV u32 product(float (&acc)[SIZE], const u32 (&fragments)[HELD][4]) {
    const u32 of = about;
    multiply<COLUMNS>(acc, fragments);
    const u32 stage = at.stage;
    if (WITH_ARGMAX) first = load_shared(shared_address(control.tiles) + (u32)sizeof(TileInfo) * stage + FIRST_AT);
    advance();
    look_ahead();
    if (of & LAST_TILE) wait_result();
    wgmma::wait<0>();
    wgmma::tie(acc);
    return stage;
  }

  // Wide tiles for as long as nothing else comes; masked ones are among them. What is rare is done outside of the inner loop, which is to stay small.
  template <u32 HELD> DEV void wide_tiles(const u32 (&fragments)[HELD][4], Found& found) {
    float acc[FULL / 2], best[2];
    u32 of, stage;
#pragma unroll 1
    do {
      of = about;
      stage = product<FULL>(acc, fragments);
      if (of & MASKED) break;
      if (NORMALIZED) scale<FULL>(acc, norms_of(params, control, stage));
      release(stage);
      Positive positive(found.minus_zero);
      positive.search<FULL>(acc);
      if (!positive.best(best)) break;
      take(found, best, positive.first, positive.pair, first, of, FULL, tail_of(4));
      if (of & LAST_TILE) finish(found);
      of = UNKNOWN;
    } while ((about & (SPECIAL | FOUR)) == FOUR);
    if (of == UNKNOWN) return;
    if (of & MASKED) {
      apply<FULL>(acc, write_factors(stage, of));
      release(stage);
    }
    float left[2], pair[2];
    search_any<FULL>(acc, best, left, pair);
    take(found, best, left, pair, first, of, FULL, of & MASKED ? FULL : tail_of(4));
    if (of & LAST_TILE) finish(found);
  }

  // A tile of fewer columns.
  template <u32 COLUMNS, u32 HELD> DEV void narrow_tile(const u32 (&fragments)[HELD][4], Found& found) {
    float acc[COLUMNS / 2], best[2], left[2], pair[2];
    const u32 of = about, tokens = of & TOKENS_MASK, stage = product<COLUMNS>(acc, fragments);
    if (NORMALIZED) scale<COLUMNS>(acc, norms_of(params, control, stage));
    release(stage);
    if (COLUMNS == QUARTER && tokens < QUARTER) cut<COLUMNS>(acc, tokens);
    Positive positive(found.minus_zero);
    positive.search<COLUMNS>(acc);
    if (COLUMNS == QUARTER ? positive.best_of_quads(best) : positive.best(best)) {
#pragma unroll
      for (u32 r = 0; r < 2; ++r) left[r] = positive.first[r], pair[r] = positive.pair[r];
    } else search_any<COLUMNS>(acc, best, left, pair);
    take(found, best, left, pair, first, of, COLUMNS, tail_of(COLUMNS / QUARTER));
    if (of & LAST_TILE) finish(found);
  }

  // Takes over a query tile, its rows into registers. `taken`: how many there were. Gives whether there is something to multiply.
  template <u32 HELD> DEV bool take_queries(u32 (&fragments)[HELD][4], u32& taken) {
    const u32 lane = thread % WARP;
    if (!IN_REGISTERS && taken > 0 && thread == 0) mbarrier::arrive(shared_address(control.queries_empty + warpgroup));
    mbarrier::wait(shared_address(control.queries_full + warpgroup), taken & 1);
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
    ++taken;
    return uniform(rows) > 0;
  }

  // A tile that is not multiplied: only gives its slots back, each once all warps know of it.
  DEV void pass(Found& found) {
    const u32 of = about, slots = IN_REGISTERS || of & NO_TOKENS ? 1 : k_blocks_of(params);
    for (u32 k = 0; k < slots; ++k) {
      if (k > 0) wait_full();
      named_barrier(warpgroup + 1, WARPGROUP);
      release(at.stage);
      advance();
    }
    about = UNKNOWN;
    if (of & LAST_TILE) {
      wait_result();
      finish(found);
    }
  }

  DEV void run() {
    u32 fragments[4 * HELD_BLOCKS][4];
    u32 taken = 0;
    bool any = false;  // queries
    about = UNKNOWN;
    Found found;
    found.clear();
    found.minus_zero = __uint_as_float(0x80000000u | params.dim >> 31);
#pragma unroll 1
    while (true) {
      learn();
      if (about & STOP) break;
      if (about & NEW_QUERIES) {
        any = take_queries(fragments, taken);
        about &= ~NEW_QUERIES;
      }
      if (!any || about & NO_TOKENS) {
        pass(found);
        continue;
      }
#pragma unroll 1
      do {
        if (about & FOUR) wide_tiles(fragments, found);
        else if (about & THREE) narrow_tile<3 * QUARTER>(fragments, found);
        else if (about & TWO) narrow_tile<2 * QUARTER>(fragments, found);
        else narrow_tile<QUARTER>(fragments, found);
      } while (!(about & SPECIAL));
    }
    wait_result();
    hand_over();
  }

  DEV void wait_result() const {
    mbarrier::wait(barriers + (u32)sizeof(control.result_full) + (results & 1) * 8, ((results >> 1) & 1) ^ 1);
  }
  DEV void hand_over() const {
    __syncwarp();
    if (thread % WARP == 0) mbarrier::arrive(barriers + (results & 1) * 8);
  }

  // A document is done, and its result has been waited for.
  DEV void finish(Found& found) {
    const u32 at = result + (results & 1) * (u32)sizeof(Result);
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
      store_shared(at + r * (8 * 16), __float_as_uint(found.value[r]));
      if (WITH_ARGMAX) store_shared(at + r * (8 * 16) + TILE_ROWS * 16, (u32)found.index[r]);
    }
    hand_over();
    ++results;
    found.clear();
  }
};

// Adds up what a consumer finds: one warp, of which lane i has rows i and i + 32 of the query tile.
struct Adder {
  const HopperParams& params;
  Control& control;
  u32 warpgroup;
  QueryTile tile;
  RowInfo rows[2];
  bool halves;  // the tile is two queries of 32 rows, or the first of them

  DEV static u32 lane() { return threadIdx.x % WARP; }

  // Takes over a query tile.
  DEV void take_queries(const Unit& unit) {
    Held& held = control.held[warpgroup];
    tile = tile_of(params.items, params.queries, unit, params.split() ? 0 : warpgroup, params.tiles);
#pragma unroll
    for (u32 r = 0; r < 2; ++r) rows[r] = row_info(params.items, params.queries, tile, lane() + r * WARP);
    for (u32 s = lane(); s <= tile.queries; s += WARP)
      held.bounds[s] = tile.queries > 1 ? (u32)(params.queries.start(tile.query + s) - tile.row) : s * tile.rows;
    __syncwarp();
    halves = tile.queries == 2 && held.bounds[1] == WARP;
  }

  // The sums of the tile's queries, of each lane's two rows.
  DEV void add(const float (&value)[2], const Unit& unit) const {
    const u64 first = sum_index(params.items, tile, 0, unit, params.tiles), step = params.items.pairing == Pairing::Cross ? params.items.docs : 0;
    if (tile.queries == 1) {
      const float sum = warp_sum(value[0] + value[1]);
      if (lane() == 0) params.sums[first] = sum;
    } else if (halves) {  // as two warp sums, the second in the other half of the lanes
      const bool second = lane() >= WARP / 2;
      float sum = second ? value[1] : value[0];
      sum += __shfl_xor_sync(~0u, second ? value[0] : value[1], WARP / 2);
#pragma unroll
      for (u32 offset = WARP / 4; offset; offset >>= 1) sum += __shfl_xor_sync(~0u, sum, offset);
      if (lane() % (WARP / 2) == 0) params.sums[first + (second ? step : 0)] = sum;
    } else {
      Held& held = control.held[warpgroup];
#pragma unroll
      for (u32 r = 0; r < 2; ++r) held.values[lane() + r * WARP] = value[r];
      __syncwarp();
      if (tile.queries > 8) {  // short ones: one lane each
        for (u32 s = lane(); s < tile.queries; s += WARP) {
          float sum = 0.f;
#pragma unroll 1
          for (u32 row = held.bounds[s]; row < held.bounds[s + 1]; ++row) sum += held.values[row];
          params.sums[first + s * step] = sum;
        }
      } else {
        for (u32 s = 0; s < tile.queries; ++s) {
          const u32 to = held.bounds[s + 1];
          float sum = 0.f;
#pragma unroll 1
          for (u32 row = held.bounds[s] + lane(); row < to; row += WARP) sum += held.values[row];
          sum = warp_sum(sum);
          if (lane() == 0) params.sums[first + s * step] = sum;
        }
      }
      __syncwarp();
    }
  }

  DEV void run() {
    const Items& items = params.items;
    const u32 ring = params.split() ? warpgroup : 0;
    for (u32 number = 0;; ++number) {
      const Result& result = control.results[warpgroup][number & 1];
      mbarrier::wait(shared_address(control.result_full[warpgroup] + (number & 1)), (number >> 1) & 1);
      const Told told = control.told[ring][number % TOLD];
      if (told.flags & STOP) break;
      Unit unit = {told.row_block, told.doc, told.slot, 0};
      const bool empty = told.flags & EMPTY;
      if (told.flags & NEW_QUERIES) {
        if (items.pairing != Pairing::Cross) unit.query = items.query_of(unit.slot);
        take_queries(unit);
      }
      float value[2];
      int index[2];
#pragma unroll
      for (u32 r = 0; r < 2; ++r) {
        const float4 bests = *reinterpret_cast<const float4*>(result.best[lane() + r * WARP]);
        const float best = max_nan(max_nan(bests.x, bests.y), max_nan(bests.z, bests.w));
        value[r] = rows[r].counts && !empty ? fmaf(best, rows[r].scale, 0.f) : 0.f;  // never -0
        if constexpr (WITH_ARGMAX) {
          // The first of the columns that are the best of their row; none are for a NaN.
          const int4 at = *reinterpret_cast<const int4*>(result.index[lane() + r * WARP]);
          u32 first = ~0u;
          if (bests.x == best) first = min_of(first, (u32)at.x);
          if (bests.y == best) first = min_of(first, (u32)at.y);
          if (bests.z == best) first = min_of(first, (u32)at.z);
          if (bests.w == best) first = min_of(first, (u32)at.w);
          index[r] = best != best ? UNSETTLED : (int)first;
        }
      }
      __syncwarp();
      if (lane() == 0) mbarrier::arrive(shared_address(control.result_empty[warpgroup] + (number & 1)));
      if (tile.queries > 0) add(value, unit);
      if constexpr (WITH_ARGMAX) {
        u64 base = 0;
        if (items.pairing != Pairing::Cross) base = items.arguments(params.queries, tile.query, unit.doc, unit.slot);
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
          if (!rows[r].exists) continue;
          if (!rows[r].counts || empty) index[r] = -1;
          else if (index[r] == UNSETTLED) *params.nan_epoch = params.epoch;
          else if (index[r] < 0) index[r] = params.docs.first(unit.doc);  // all are -inf
          params.argmax[base + (u64)unit.doc * rows[r].step + rows[r].argument] = index[r];
        }
      }
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
                    const __grid_constant__ TensorMap map_half, const __grid_constant__ TensorMap map_rest,
                    const __grid_constant__ TensorMap map_quarter, const __grid_constant__ HopperParams params) {
  extern __shared__ u8 dynamic[];
  u32 base = shared_address(dynamic);
  base += -base & 1023u;          // the 128-byte swizzle repeats every 1024 bytes
  asm volatile("" : "+r"(base));  // the compiler would rather work it out again for every tile
  Control& control = *reinterpret_cast<Control*>(__cvta_shared_to_generic(base));
  const u32 slots = params.rings() * params.slots;
  const u32 warpgroup = threadIdx.x / WARPGROUP, warp = threadIdx.x / WARP;
  if (threadIdx.x == 0) {
    tma::prefetch_map(&map_queries);
    tma::prefetch_map(&map_full);
    tma::prefetch_map(&map_half);
    tma::prefetch_map(&map_rest);
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
      Producer producer = {params, map_queries, map_full, map_half, map_rest, map_quarter, control, 0, 0, 0, 0, 0};
      producer.run();
    } else if (warp > 0 && warp <= params.warpgroups) {
      Adder adder = {params, control, warp - 1, {0, 0, 0, 0, 0}, {}, false};
      adder.run();
    }
  } else {
    registers_grow<IN_REGISTERS ? 152 : 144>();
    const u32 w = warpgroup - 1, first_slot = params.split() ? w * params.slots : 0;
    // A quad of threads has a row, and the eighth one after it.
    const u32 thread = kept(threadIdx.x % WARPGROUP), row = thread / WARP * 16 + thread % WARP / 4;
    const u32 result = kept(shared_address(control.results[w][0].best[row]) + thread % 4 * 4);
    const u32 barriers = kept(shared_address(control.result_full[w]));
    Consumer consumer = {params, control, w, first_slot, {first_slot, 0}, 0, 0, 0, 0, thread, result, barriers};
    consumer.run();
  }
}
#endif
