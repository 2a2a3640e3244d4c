// Which queries meet which documents, and where the results go.
//
// Every layout is a list of items (query, document, slot of the score). Queries are cut into tiles of 64 token rows. In a cross a tile may hold
// several whole queries, which share every document they meet; in the other layouts a tile is a part of one item's query.
#pragma once
#include "texts.cuh"

enum class Pairing : u32 { Cross, Candidates, Pairs, List };

constexpr u32 TILE_ROWS = 64;

// Rows of one or several whole queries, or a part of a long one.
struct QueryTile {
  u64 row;      // first token row
  u32 rows;     // up to TILE_ROWS
  u32 query;    // the first
  u32 queries;  // whole ones, up to TILE_ROWS; 1 when it is a part; 0: no tile
  u32 segment;  // of the sums: row of the output matrix [segments, documents], one more for each further query
};

struct Items {
  Pairing pairing;
  u32 docs;              // in all
  u32 per_query;         // Candidates: documents of one query
  u32 parts;             // blocks of TILES tiles that a query is cut into (1 in a cross)
  u32 row_blocks;        // cross: blocks of TILES tiles in `tiles`; else 1
  u32 chunks;            // cross: runs of documents that all row blocks meet before the next begins, so that they stay in L2
  u32 row_block_cost;    // cross: of a document's token in a row block
  u32 last_block_cost;   // in the last one, which may have fewer tiles
  // The division when all documents are as long and chunks is 1: the units of the row blocks but the last one among `first_blocks` blocks of the
  // launch, the others among the rest; of each part `shares` units a block, and one more for the first `rests` blocks.
  u32 first_units, first_blocks;
  u32 shares[2], rests[2];
  const u32* list;       // List: pairs (query, document)
  const u64* list_args;  // List: where the argmax entries of a slot begin
  // Tables are null where arithmetic says the same: a cold look-up costs as much as a small document.
  const QueryTile* query_tiles;  // cross of packed queries
  const u32* chunk_starts;       // entries (documents in a cross, else slots) where chunks begin, and the end; null for one chunk
  const u32* starts;             // [chunks][gridDim.x + 1]: the units of each block; null when all documents are as long and chunks is 1

  DEV u32 query_of(u32 slot) const {
    switch (pairing) {
      case Pairing::Candidates: return slot / per_query;
      case Pairing::Pairs: return slot;
      default: return list[2 * (u64)slot];
    }
  }
  DEV u32 doc_of(u32 slot) const { return pairing == Pairing::List ? list[2 * (u64)slot + 1] : slot; }
  // Where the argmax entries of (query, document) begin; `slot` is read in a list only.
  DEV u64 arguments(const Texts& queries, u32 query, u32 doc, u32 slot) const {
    switch (pairing) {
      case Pairing::Cross: return queries.start(query) * docs + (u64)doc * queries.size(query);
      case Pairing::Candidates: return queries.start(query) * per_query + (u64)(doc % per_query) * queries.size(query);
      case Pairing::Pairs: return queries.start(query);
      default: return list_args[slot];
    }
  }
  DEV u64 slot_of(u32 query, u32 doc) const {  // not for lists
    return pairing == Pairing::Cross ? (u64)query * docs + doc : doc;
  }
};

// The row block of a cross in which `target`, of all blocks' costs of `tokens`, lies; what is left of `target` is within that block.
DEV u32 row_block_at(const Items& items, u64 tokens, u64& target) {
  const u64 whole = tokens * items.row_block_cost;
  const u32 block = min_of((u32)(target / whole), items.row_blocks - 1);
  target -= block * whole;
  return block;
}
DEV u32 cost_of(const Items& items, u32 row_block) { return row_block + 1 == items.row_blocks ? items.last_block_cost : items.row_block_cost; }
DEV u64 total_cost(const Items& items) { return (u64)(items.row_blocks - 1) * items.row_block_cost + items.last_block_cost; }

// The first unit of a block of the launch in a chunk.
DEV u32 first_unit(const Items& items, u32 chunk, u32 block, u32 blocks) {
  if (items.starts) return items.starts[(u64)chunk * (blocks + 1) + block];
  const bool first = block < items.first_blocks;
  const u32 at = block - (first ? 0 : items.first_blocks);
  return (first ? 0 : items.first_units) + at * (first ? items.shares[0] : items.shares[1]) + min_of(at, first ? items.rests[0] : items.rests[1]);
}

// One unit of work: a block of query tiles against one document.
struct Unit {
  u32 row_block, doc;  // what the tiles are: of a cross the row block, else the part
  u32 slot;            // not in a cross
  u32 query;           // not in a cross
};
DEV Unit unit_at(const Items& items, u32 chunk, u32 index) {
  if (items.pairing == Pairing::Cross) {
    u32 first = 0, width = items.docs;
    if (items.chunk_starts) first = items.chunk_starts[chunk], width = items.chunk_starts[chunk + 1] - first;
    return {index / width, first + index % width, 0, 0};
  }
  const u32 slot = index / items.parts;
  return {index % items.parts, items.doc_of(slot), slot, items.query_of(slot)};
}
// Tile `w` of TILES in a unit's block.
DEV QueryTile tile_of(const Items& items, const Texts& queries, const Unit& unit, u32 w, u32 tiles) {
  const u32 index = unit.row_block * tiles + w;
  if (items.pairing == Pairing::Cross) {
    if (items.query_tiles) return items.query_tiles[index];
    const u32 length = (u32)queries.length;
    if (length > TILE_ROWS) {
      const u32 parts = ceil_div(length, TILE_ROWS), query = index / parts, from = (index - query * parts) * TILE_ROWS;
      if (query >= queries.count) return {0, 0, 0, 0, 0};
      return {queries.start(query) + from, min_of(length - from, TILE_ROWS), query, 1, index};
    }
    const u32 together = TILE_ROWS / length, query = index * together;
    if (query >= queries.count) return {0, 0, 0, 0, 0};
    const u32 count = min_of(together, queries.count - query);
    return {queries.start(query), count * length, query, count, query};
  }
  const u32 size = queries.size(unit.query), from = index * TILE_ROWS;
  return {queries.start(unit.query) + from, from < size ? min_of(size - from, TILE_ROWS) : 0, unit.query, 1, index};
}
DEV bool same_tiles(const Items& items, const Unit& a, const Unit& b) {
  return a.row_block == b.row_block && (items.pairing == Pairing::Cross || a.query == b.query);
}
// Where the sum of segment `s` of the tile goes.
DEV u64 sum_index(const Items& items, const QueryTile& tile, u32 s, const Unit& unit, u32 tiles) {
  if (items.pairing == Pairing::Cross) return (u64)(tile.segment + s) * items.docs + unit.doc;
  return (u64)unit.slot * (items.parts * tiles) + tile.segment;
}

// What a thread knows of one row of its tile.
struct RowInfo {
  bool counts;     // exists, and its mask keeps it
  bool exists;
  float scale;     // inverse norm, or 1
  u64 argument;    // argmax index with document 0 (cross) or without the slot's base (else)
  u32 step;        // argmax entries from one document to the next (cross), or 0
};
DEV RowInfo row_info(const Items& items, const Texts& queries, const QueryTile& tile, u32 row) {
  RowInfo info = {false, row < tile.rows, 1.f, 0, 0};
  if (!info.exists) return info;
  u32 query = tile.query;
  const u64 at = tile.row + row;
  if (tile.queries > 1) {  // the last query that begins at or before the row (empty ones begin where the next does)
    u32 low = query, high = query + tile.queries;
    while (high - low > 1) {
      const u32 middle = (low + high) / 2;
      if (queries.start(middle) <= at) low = middle;
      else high = middle;
    }
    query = low;
  }
  const u64 start = queries.start(query);
  const u32 token = (u32)(at - start);
  info.counts = queries.keeps(query, token);
  info.scale = queries.scales ? queries.scales[at] : 1.f;
  info.argument = token;
  if (items.pairing == Pairing::Cross) info.argument += start * items.docs, info.step = queries.size(query);
  return info;
}
