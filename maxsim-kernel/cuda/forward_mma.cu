// Scores on the tensor cores of any GPU from sm_80: mma.sync, f32 accumulation. Rows begin at multiples of 16 bytes, d is a multiple of 8.
//   ELEMENT: BF16 or F16    WITH_ARGMAX: 0 or 1
//   QUERY_STEPS: d / 16 rounded up to 4 or 8 when queries are held in registers, else 0
//
// A block holds one or two query tiles, whose rows follow one another in memory, and streams the tokens of its documents past them: a warp has 32
// query rows in registers as left operands and a share of the columns of each document tile, which comes through a ring of shared memory. Rows
// of more than 128 elements go through the portable GEMM mainloop instead, both sides streamed.
#include "forward.cuh"
#include "found.cuh"
#include "portable/mainloop.cuh"
#include "ptx/matrix.cuh"

constexpr u32 THREADS = 256, MAX_ROWS = 2 * TILE_ROWS, MAX_STAGES = 4, MAX_GROUPS = 4;
constexpr bool HELD = QUERY_STEPS > 0;
typedef PortableMainloop<E> Streamed;
// Tokens of a tile.
constexpr u32 TOKENS = HELD ? 64 : Streamed::TILE_N;
// 16-row pieces of a warp, and 8-column pieces that it multiplies at once.
constexpr u32 ROW_PIECES = HELD ? 2 : 4, COLUMN_PIECES = HELD ? 2 : 4, WARP_ROWS = 16 * ROW_PIECES, COLUMNS = 8 * COLUMN_PIECES;

constexpr u32 LAST_TILE = 1, MASKED = 2, NEW_QUERIES = 4, STOP = 8;
struct alignas(16) TileInfo {
  u64 row;  // of the first token
  u32 doc, slot, row_block, token, tokens, flags;
};
// Where the block stands in its work.
struct Cursor {
  Unit unit;
  u64 row;
  u32 chunk, index, last, token, end, flags;
  bool open;
};
// The block's query rows.
struct Queries {
  u64 row;
  u32 rows;
};
struct Shared {
  TileInfo tiles[MAX_STAGES + 1];
  Cursor cursor;
  float factors[MAX_STAGES][TOKENS];  // of the columns of a masked or normalised tile: inverse norms, -1 where masked
  float best[MAX_GROUPS][MAX_ROWS];   // by the warps that share a row's columns
  int index[WITH_ARGMAX ? MAX_GROUPS : 1][WITH_ARGMAX ? MAX_ROWS : 1];
  RowInfo rows[MAX_ROWS];
  u32 bounds[MAX_ROWS + 1];  // rows where the segments begin
  u32 segments, first_segment, query;
  Queries queries;
};
static_assert(sizeof(Shared) <= 12 * 1024, "CONTROL_BYTES of the launcher");

// The next tile of the block's documents; an empty one has a tile without tokens. One thread.
DEV void advance(const ForwardParams& params, Cursor& at, TileInfo& info) {
  const Items& items = params.items;
  if (!at.open) {
    while (at.index == at.last && at.chunk < items.chunks) {
      at.index = first_unit(items, at.chunk, blockIdx.x, gridDim.x), at.last = first_unit(items, at.chunk, blockIdx.x + 1, gridDim.x);
      ++at.chunk;
    }
    if (at.index == at.last) {
      info.tokens = 0, info.flags = STOP;
      return;
    }
    const Unit unit = unit_at(items, at.chunk - 1, at.index++);
    at.flags = (same_tiles(items, at.unit, unit) ? 0 : NEW_QUERIES) | (params.docs.scales || params.docs.has_holes(unit.doc) ? MASKED : 0);
    at.unit = unit, at.row = params.docs.start(unit.doc), at.token = 0, at.end = params.docs.end(unit.doc);
  }
  const u32 left = at.end - at.token;
  info = {at.row + at.token, at.unit.doc, at.unit.slot, at.unit.row_block, at.token, min_of(left, TOKENS), at.flags | (left <= TOKENS ? LAST_TILE : 0)};
  at.token += TOKENS, at.flags &= ~NEW_QUERIES, at.open = left > TOKENS;
}

// Finds out what must be known of the block's query rows. Tiles follow one another, and so do their segments.
DEV Queries take_queries(const ForwardParams& params, Shared& shared, const TileInfo& info) {
  const Items& items = params.items;
  const Unit unit = {info.row_block, info.doc, info.slot, items.pairing == Pairing::Cross ? 0 : items.query_of(info.slot)};
  const QueryTile first = tile_of(items, params.queries, unit, 0, params.tiles);
  QueryTile second = {0, 0, 0, 0, 0};
  if (params.tiles > 1) second = tile_of(items, params.queries, unit, 1, params.tiles);
  const u32 rows = first.rows + second.rows, segments = first.queries + second.queries;
  for (u32 row = threadIdx.x; row < MAX_ROWS; row += THREADS)
    shared.rows[row] = row < first.rows ? row_info(items, params.queries, first, row) : row_info(items, params.queries, second, row - first.rows);
  for (u32 s = threadIdx.x; s <= segments; s += THREADS) {
    u32 from = rows;
    if (s < first.queries) from = first.queries > 1 ? (u32)(params.queries.start(first.query + s) - first.row) : 0;
    else if (s < segments) from = second.queries > 1 ? (u32)(params.queries.start(second.query + s - first.queries) - first.row) : first.rows;
    shared.bounds[s] = from;
  }
  if (threadIdx.x == 0) shared.segments = segments, shared.first_segment = first.segment, shared.query = first.query;
  return {first.row, rows};
}

// Takes what a warp multiplied: acc[i][4 j + 2 h + e] is row 16 i + 8 h + lane / 4 and column 8 j + 2 (lane % 4) + e. `token`: of column 0,
// `tokens`: how many columns there are, `factors`: theirs, or null.
DEV void search(float (&acc)[ROW_PIECES][4 * COLUMN_PIECES], Found<ROW_PIECES>& found, u32 token, u32 tokens, const float* factors) {
  const u32 column = threadIdx.x % 4 * 2;
  if (factors || tokens < COLUMNS) {
#pragma unroll
    for (u32 j = 0; j < COLUMN_PIECES; ++j)
#pragma unroll
      for (u32 e = 0; e < 2; ++e) {
        const float factor = 8 * j + column + e >= tokens ? -1.f : factors ? factors[8 * j + column + e] : 1.f;
#pragma unroll
        for (u32 i = 0; i < ROW_PIECES; ++i)
#pragma unroll
          for (u32 h = 0; h < 2; ++h) {
            float& x = acc[i][4 * j + 2 * h + e];
            x = factor < 0.f ? MINUS_INFINITY : x * factor;
          }
      }
  }
#pragma unroll
  for (u32 j = 0; j < COLUMN_PIECES; ++j)
#pragma unroll
    for (u32 e = 0; e < 2; ++e)
#pragma unroll
      for (u32 r = 0; r < 2 * ROW_PIECES; ++r) found.take(r, acc[r / 2][4 * j + r % 2 * 2 + e], (int)(token + column + 8 * j + e));
}

// The best of a row of the block, times its scale; its choice is written.
DEV float settle_row(const ForwardParams& params, const Shared& shared, const TileInfo& info, u32 row, u32 groups, u64 base, int first_kept) {
  const RowInfo& about = shared.rows[row];
  Best best = {shared.best[0][row], WITH_ARGMAX ? shared.index[0][row] : -1};
  for (u32 g = 1; g < groups; ++g) {
    if constexpr (WITH_ARGMAX) best.merge(shared.best[g][row], shared.index[g][row]);
    else best.value = max_nan(best.value, shared.best[g][row]);
  }
  const bool counts = about.counts && first_kept >= 0;
  if constexpr (WITH_ARGMAX) params.argmax[base + (u64)info.doc * about.step + about.argument] = !counts ? -1 : best.index < 0 ? first_kept : best.index;
  return counts ? best.value * about.scale : 0.f;
}

// A document is done: the warps' findings are put together and added up.
DEV void finish(const ForwardParams& params, Shared& shared, const Found<ROW_PIECES>& found, const TileInfo& info, u32 first_row, u32 group, u32 groups) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const Items& items = params.items;
#pragma unroll
  for (u32 r = 0; r < 2 * ROW_PIECES; ++r) {
    const Best best = found.of_quad(r);
    const u32 row = first_row + 8 * r + lane / 4;
    if (lane % 4 == 0) {
      shared.best[group][row] = best.value;
      if constexpr (WITH_ARGMAX) shared.index[group][row] = best.index;
    }
  }
  __syncthreads();
  const u64 base = WITH_ARGMAX && items.pairing != Pairing::Cross ? items.arguments(params.queries, shared.query, info.doc, info.slot) : 0;
  const u64 sums = items.pairing == Pairing::Cross ? (u64)shared.first_segment * items.docs + info.doc
                                                   : (u64)info.slot * (items.parts * params.tiles) + shared.first_segment;
  const u64 step = items.pairing == Pairing::Cross ? items.docs : 1;
  const int first_kept = params.docs.first(info.doc);
  if (shared.segments > THREADS / WARP) {  // short ones: one thread each
    for (u32 s = threadIdx.x; s < shared.segments; s += THREADS) {
      float sum = 0.f;
      for (u32 row = shared.bounds[s]; row < shared.bounds[s + 1]; ++row) sum += settle_row(params, shared, info, row, groups, base, first_kept);
      params.sums[sums + s * step] = sum;
    }
  } else if (warp < shared.segments) {
    float sum = 0.f;
    for (u32 row = shared.bounds[warp] + lane; row < shared.bounds[warp + 1]; row += WARP)
      sum += settle_row(params, shared, info, row, groups, base, first_kept);
    sum = warp_sum(sum);
    if (lane == 0) params.sums[sums + warp * step] = sum;
  }
}

#if QUERY_STEPS > 0
constexpr u32 ROW_BYTES = QUERY_STEPS * 32;  // of a token in a slot of the ring

// The columns of a tile, from token rows to a slot of the ring: 16-byte chunks, of which eight in consecutive rows touch all banks.
DEV void load_tile(const ForwardParams& params, Shared& shared, const TileInfo& info, u32 ring, u32 slot) {
  constexpr u32 CHUNKS = ROW_BYTES / 16;
  const u16* rows = static_cast<const u16*>(params.docs.rows) + info.row * params.docs.row_stride;
#pragma unroll
  for (u32 i = 0; i < TOKENS * CHUNKS / THREADS; ++i) {
    const u32 index = threadIdx.x + i * THREADS, row = index / CHUNKS, chunk = index % CHUNKS;
    const bool valid = row < info.tokens && chunk * 8 < params.dim;
    copy_async_16(ring + slot * TOKENS * ROW_BYTES + row * ROW_BYTES + ((chunk ^ (row & 7)) << 4), valid ? rows + row * params.docs.row_stride + chunk * 8 : rows, valid);
  }
  if (info.flags & MASKED && threadIdx.x < info.tokens) {
    const bool counts = params.docs.keeps(info.doc, info.token + threadIdx.x);
    shared.factors[slot][threadIdx.x] = !counts ? -1.f : params.docs.scales ? params.docs.scales[info.row + threadIdx.x] : 1.f;
  }
}

// Left operands of 32 rows, zeros beyond the tiles and beyond d.
DEV void load_fragments(const ForwardParams& params, u32 (&fragments)[QUERY_STEPS][2][4], const Queries& queries, u32 first_row) {
  const u32 lane = threadIdx.x % WARP;
  const u16* rows = static_cast<const u16*>(params.queries.rows) + queries.row * params.queries.row_stride;
#pragma unroll
  for (u32 k = 0; k < QUERY_STEPS; ++k)
#pragma unroll
    for (u32 i = 0; i < 2; ++i)
#pragma unroll
      for (u32 part = 0; part < 4; ++part) {
        const u32 row = first_row + 16 * i + lane / 4 + part % 2 * 8, column = 16 * k + part / 2 * 8 + lane % 4 * 2;
        const bool valid = row < queries.rows && column < params.dim;
        fragments[k][i][part] = valid ? *reinterpret_cast<const u32*>(rows + row * params.queries.row_stride + column) : 0;
      }
}

KERNEL __launch_bounds__(THREADS, 2) maxsim_forward_mma(const __grid_constant__ ForwardParams params) {
  extern __shared__ __align__(1024) u8 dynamic[];
  const u32 stages = params.stages, ring = shared_address(dynamic), warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  Shared& shared = *reinterpret_cast<Shared*>(dynamic + stages * TOKENS * ROW_BYTES);
  // With two tiles four warps share the rows and two the columns, with one tile the other way round.
  const u32 row_groups = 2 * params.tiles, groups = 8 / row_groups, group = warp / row_groups, width = TOKENS / groups;
  const u32 first_row = warp % row_groups * WARP_ROWS, first_column = group * width;
  // Of this lane's row of a piece of 16 columns: its first chunk, which others are an xor away from.
  const u32 row = first_column + lane % 8 + lane / 16 * 8, chunks = row * ROW_BYTES + ((lane / 8 % 2 ^ lane % 8) << 4);
  grid_dependency_wait();
  grid_dependency_launch();
  if (threadIdx.x == 0) {
    shared.cursor = {{~0u, 0, 0, ~0u}, 0, 0, 0, 0, 0, 0, 0, false};
    for (u32 t = 0; t < stages; ++t) advance(params, shared.cursor, shared.tiles[t]);
  }
  __syncthreads();
  for (u32 t = 0; t + 1 < stages; ++t) {
    if (shared.tiles[t].tokens) load_tile(params, shared, shared.tiles[t], ring, t);
    copy_async_commit();
  }
  u32 fragments[QUERY_STEPS][2][4];
  Found<ROW_PIECES> found;
  found.clear();
  // Of the tile, of the tile to be loaded and of the one to be described: their places among the slots, and among what is said of tiles.
  for (u32 slot = 0, load_slot = stages - 1, about = 0, load_about = stages - 1, next_about = stages;;) {
    if (stages == 2) copy_async_wait<0>();
    else if (stages == 3) copy_async_wait<1>();
    else copy_async_wait<2>();
    __syncthreads();
    const TileInfo& info = shared.tiles[about];
    if (info.flags & STOP) break;
    if (shared.tiles[load_about].tokens) load_tile(params, shared, shared.tiles[load_about], ring, load_slot);
    copy_async_commit();
    if (threadIdx.x == 0) advance(params, shared.cursor, shared.tiles[next_about]);
    if (info.flags & NEW_QUERIES) load_fragments(params, fragments, take_queries(params, shared, info), first_row);
#pragma unroll 1
    for (u32 column = 0; column < width && first_column + column < info.tokens; column += COLUMNS) {
      const u32 from = (ring + slot * TOKENS * ROW_BYTES + chunks) + column * ROW_BYTES;
      float acc[ROW_PIECES][4 * COLUMN_PIECES] = {};
#pragma unroll
      for (u32 k = 0; k < QUERY_STEPS; ++k) {
        u32 b[4];
        load_matrix_x4(b, from ^ (k << 5));
#pragma unroll
        for (u32 i = 0; i < ROW_PIECES; ++i)
#pragma unroll
          for (u32 j = 0; j < COLUMN_PIECES; ++j)
            mma_m16n8k16<E>(reinterpret_cast<float(&)[4]>(acc[i][4 * j]), fragments[k][i], b[2 * j], b[2 * j + 1]);
      }
      const u32 at = first_column + column;
      search(acc, found, info.token + at, info.tokens - at, info.flags & MASKED ? shared.factors[slot] + at : nullptr);
    }
    if (info.flags & LAST_TILE) {
      finish(params, shared, found, info, first_row, group, groups);
      found.clear();
    }
    if (++slot == stages) slot = 0;
    if (++load_slot == stages) load_slot = 0;
    if (++about > stages) about = 0;
    if (++load_about > stages) load_about = 0;
    if (++next_about > stages) next_about = 0;
  }
}
#else
KERNEL __launch_bounds__(THREADS, 2) maxsim_forward_mma(const __grid_constant__ ForwardParams params) {
  extern __shared__ __align__(1024) u8 dynamic[];
  const u32 warp = threadIdx.x / WARP, first_row = warp % 2 * WARP_ROWS, group = warp / 2, first_column = group * COLUMNS;
  Shared& shared = *reinterpret_cast<Shared*>(dynamic + Streamed::SHARED_BYTES);
  grid_dependency_wait();
  grid_dependency_launch();
  if (threadIdx.x == 0) shared.cursor = {{~0u, 0, 0, ~0u}, 0, 0, 0, 0, 0, 0, 0, false};
  Found<ROW_PIECES> found;
  found.clear();
  while (true) {
    if (threadIdx.x == 0) advance(params, shared.cursor, shared.tiles[0]);
    __syncthreads();
    const TileInfo& info = shared.tiles[0];
    if (info.flags & STOP) break;
    if (info.flags & NEW_QUERIES) {
      const Queries queries = take_queries(params, shared, info);
      if (threadIdx.x == 0) shared.queries = queries;
      __syncthreads();
    }
    if (info.flags & MASKED && threadIdx.x < info.tokens) {
      const bool counts = params.docs.keeps(info.doc, info.token + threadIdx.x);
      shared.factors[0][threadIdx.x] = !counts ? -1.f : params.docs.scales ? params.docs.scales[info.row + threadIdx.x] : 1.f;
    }
    if (info.tokens) {
      const Queries queries = shared.queries;
      const Streamed::Operand a = {static_cast<const u16*>(params.queries.rows) + queries.row * params.queries.row_stride, params.queries.row_stride, queries.rows};
      const Streamed::Operand b = {static_cast<const u16*>(params.docs.rows) + info.row * params.docs.row_stride, params.docs.row_stride, info.tokens};
      float acc[ROW_PIECES][4 * COLUMN_PIECES];
      Streamed::multiply(acc, dynamic, a, b, 0, 0, params.dim);
      if (first_column < info.tokens)
        search(acc, found, info.token + first_column, info.tokens - first_column, info.flags & MASKED ? shared.factors[0] + first_column : nullptr);
    }
    if (info.flags & LAST_TILE) {
      finish(params, shared, found, info, first_row, group, MAX_GROUPS);
      found.clear();
    }
    __syncthreads();
  }
}
#endif
