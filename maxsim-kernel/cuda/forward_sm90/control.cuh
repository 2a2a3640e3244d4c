// What the roles of the kernel share: its parameters, what a tile of documents is, and the beginning of shared memory.
#pragma once
#include "items.cuh"
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
#endif
