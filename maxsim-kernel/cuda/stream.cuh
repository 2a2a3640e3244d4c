// What the kernels share that stream the tokens of many documents past few query rows: how blocks share documents, and how what they find of one is put together.
//   ELEMENT: BF16 or F16    WITH_ARGMAX: 0 or 1    ROWS: of the query rows, rounded up
#pragma once
#include "numerics.cuh"
#include "ptx/barrier.cuh"
#include "ptx/sync.cuh"
#include "texts.cuh"

struct StreamParams {
  Texts queries, docs;
  u32 dim;              // a multiple of 8
  u32 query_rows;
  u32 rounds;           // padded: that of cut documents, and those of whole ones; packed: 1
  u32 share, round_docs;  // padded: whole documents of a block, and of those in a round
  u32 cut, cut_rows;    // padded: the first documents, fewer than blocks, are cut between blocks; their rows, of each block
  u32 stages, stage_tokens;  // of a ring
  u32 keep_cache;       // what is in the L2 stays there as far as that can be
  const uint2* firsts;  // packed: each block's first document and that one's first row, and the end; else null
  float* scores;        // [queries, documents]
  int* argmax;
  struct Join* joins;   // [cut]: where cut documents are put together; zeros before and after each launch
};
constexpr u32 MAX_ROWS = 64;

// The best of a row as an integer: larger ones are better, 0 is worse than any, and of equals the lower index wins.
#if WITH_ARGMAX
typedef u64 Key;
#else
typedef u32 Key;
#endif
DEV Key to_key(Best best) {
  const u32 bits = __float_as_uint(best.value), ordered = bits ^ (bits >> 31 ? ~0u : 1u << 31);
  return WITH_ARGMAX ? (Key)((u64)ordered << 32 | ~(u32)best.index) : ordered;
}
DEV Best from_key(Key key) {
  const u32 ordered = WITH_ARGMAX ? (u32)((u64)key >> 32) : (u32)key;
  return {__uint_as_float(ordered ^ (ordered >> 31 ? 1u << 31 : ~0u)), (int)~(u32)key};
}
// What several runs found of a document.
struct Join {
  Key best[ROWS];
  u32 tokens;  // whose runs are done
};
// The best of each query row of a document.
struct Piece {
  float best[ROWS];
  int index[WITH_ARGMAX ? ROWS : 1];
  DEV void set(u32 row, Best x) {
    best[row] = x.value;
    if constexpr (WITH_ARGMAX) index[row] = x.index;
  }
};

// A document, rows counted from the first document's first.
struct Document {
  u32 index, start, end;
  u32 behind;  // packed: the end of the next one, which is on its way
  DEV void open(const Texts& docs, u32 at) {
    index = at, start = (u32)docs.start(at), end = start + docs.size(at);
    look_ahead(docs);
  }
  DEV void look_ahead(const Texts& docs) {
    if (docs.offsets && index + 1 < docs.count) behind = (u32)docs.offsets[index + 2];
  }
  DEV void next(const Texts& docs) {
    start = end, end = docs.offsets ? behind : end + (u32)docs.length, ++index;
    look_ahead(docs);
  }
};

// The rows of a block in a round.
struct BlockRows {
  u32 begin, end;
  u32 docs_begin, docs_end;  // packed
};
DEV BlockRows rows_of_block(const StreamParams& params, u32 round) {
  const u32 length = (u32)params.docs.length;
  if (params.firsts) {
    const uint2 first = params.firsts[blockIdx.x], last = params.firsts[blockIdx.x + 1];
    return {first.y, last.y, first.x, last.x};
  }
  if (round == 0) {
    const u32 rows = params.cut * length, begin = min_of(blockIdx.x * params.cut_rows, rows);
    return {begin, min_of(begin + params.cut_rows, rows), 0, 0};
  }
  const u32 before = (round - 1) * params.round_docs, docs = min_of(params.round_docs, params.share - before);
  const u32 begin = (params.cut + gridDim.x * before + blockIdx.x * docs) * length;
  return {begin, begin + docs * length, 0, 0};
}

// A document is done, of which this is the piece: a warp writes its scores and choices. An empty one scores 0. `bounds`: rows where the queries begin.
DEV void settle(const StreamParams& params, const u32* bounds, const Piece& piece, u32 doc, bool empty, u32 lane) {
  const u32 count = params.queries.count, step = count > 8 ? 1 : WARP;
  // Short queries: one lane each.
#pragma unroll 1
  for (u32 q = count > 8 ? lane : 0; q < count; q += count > 8 ? WARP : 1) {
    float sum = 0.f;
#pragma unroll 1
    for (u32 row = bounds[q] + (count > 8 ? 0 : lane); row < bounds[q + 1]; row += step) sum += empty ? 0.f : piece.best[row];
    if (count <= 8) sum = warp_sum(sum);
    if (count > 8 || lane == 0) params.scores[(u64)q * params.docs.count + doc] = sum;
  }
  if constexpr (WITH_ARGMAX) {
#pragma unroll 1
    for (u32 q = 0; q < count; ++q) {
      const u32 from = bounds[q], size = bounds[q + 1] - from;
      int* to = params.argmax + (u64)from * params.docs.count + (u64)doc * size;
#pragma unroll 1
      for (u32 i = lane; i < size; i += WARP) to[i] = empty ? -1 : max_of(piece.index[from + i], 0);  // all are -inf: the first
    }
  }
  __syncwarp();
}

// Puts the block's parts of cut documents together with the others': of the one that began before its rows, and of the one that ends behind them, which are
// in `cut` once the barriers are full. A warp of its own does so, for both at once: each step waits for the memory, which the other warps keep busy.
DEV void join_cut(const StreamParams& params, const u32* bounds, const Join (&cut)[2], const u64 (&full)[2], Piece& piece, u32 lane) {
  if (params.firsts) return;
  const u32 length = (u32)params.docs.length;
  const BlockRows rows = rows_of_block(params, 0);
  u32 index[2], tokens[2], before = 0;
#pragma unroll
  for (u32 which = 0; which < 2; ++which) {
    const u32 edge = which ? rows.end : rows.begin;
    index[which] = edge / length;
    const u32 start = index[which] * length, begin = max_of(start, rows.begin), end = min_of(start + length, rows.end);
    tokens[which] = begin < end && end - begin < length && (begin == start) == (which == 1) ? end - begin : 0;
    if (tokens[which] == 0) continue;
    mbarrier::wait(shared_address(full + which), 0);
#pragma unroll
    for (u32 row = lane; row < ROWS; row += WARP) atomicMax(params.joins[index[which]].best + row, cut[which].best[row]);
  }
  __syncwarp();
  const u32 added = lane == 0 ? tokens[0] : lane == 1 ? tokens[1] : 0;  // a document each
  if (added > 0) before = add_acquire_release(&params.joins[lane == 0 ? index[0] : index[1]].tokens, added);
  __syncwarp();
#pragma unroll
  for (u32 which = 0; which < 2; ++which) {
    if (tokens[which] == 0 || __shfl_sync(~0u, before, which) + tokens[which] < length) continue;
    Join& join = params.joins[index[which]];
#pragma unroll
    for (u32 row = lane; row < ROWS; row += WARP) piece.set(row, from_key(atomicExch(join.best + row, 0)));
    if (lane == 0) join.tokens = 0;
    __syncwarp();
    settle(params, bounds, piece, index[which], false, lane);
  }
}
