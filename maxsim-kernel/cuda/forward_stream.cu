// Scores of few query rows against many documents on Hopper: every document token is read once, and memory alone is what holds it.
//   ELEMENT: BF16 or F16    WITH_ARGMAX: 0 or 1    ROW_PIECES: 16-row pieces of the query rows, 2 or 4
//   QUERY_STEPS: d / 16 rounded up to 3, 4, 6 or 8
//
// The tokens of all documents follow one another in memory. Each block has some documents, and each of its warps an equal run of their tokens, wherever
// documents begin and end, which it copies through a ring of its own: no warp waits for another until it is done. Bulk copies of whole tokens need no tensor
// map, which a lone call waits 1 us for, and reach 4.5 TB/s where tensor copies reach 4.2. A document that lies in several runs is put together at the end.
#include "found.cuh"
#include "numerics.cuh"
#include "ptx/barrier.cuh"
#include "ptx/matrix.cuh"
#include "ptx/sync.cuh"
#include "texts.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

typedef ELEMENT E;

struct StreamParams {
  Texts queries, docs;  // rows of `docs` follow one another without gaps
  u32 dim;              // a multiple of 8
  u32 query_rows;
  u32 share, rest;      // documents of a block when they are as long; the first `rest` blocks have one more
  u32 stage_tokens, stages;  // of a warp's ring
  u32 keep_cache;       // what is in the L2 stays there as far as that can be
  const uint2* firsts;  // packed: each block's first document and that one's first row, and the end; else null
  float* scores;        // [queries, documents]
  int* argmax;
};

// A warp multiplies COLUMNS tokens at once. A pair of steps is 32 elements of d, 8 in each of four lanes.
constexpr u32 WARPS = 8, GROUPS = ROW_PIECES * QUERY_STEPS > 16 ? 1 : 2, COLUMNS = 8 * GROUPS, PAIR = 32, PAIRS = QUERY_STEPS / 2, ODD = QUERY_STEPS % 2;
constexpr u32 MAX_STAGES = 8, MAX_ROWS = 64;

// What is known of a document, or of the part of it in one run: the best of each query row.
struct Piece {
  float best[MAX_ROWS];
  int index[WITH_ARGMAX ? MAX_ROWS : 1];
};
// Of a warp: the document that began before its run, the one that ends behind it, and one that does neither.
enum : u32 { HEAD, TAIL, WHOLE, PIECES };

struct Control {
  Piece pieces[WARPS][PIECES];
  u64 full[WARPS][MAX_STAGES], queries_full;
  u32 bounds[MAX_ROWS + 1];  // rows where the queries begin
};
constexpr u32 CONTROL_BYTES = 13 * 1024;
static_assert(sizeof(Control) <= CONTROL_BYTES, "CONTROL_BYTES of the launcher");

// `first_to_leave`: what is read leaves the L2 before what was written there, which then need not be written back for it: 3 to 5 us of a lone call.
DEV void copy_bulk(u32 shared, const void* global, u32 bytes, u32 barrier, bool first_to_leave) {
  if (first_to_leave)
    asm volatile(
        "{\n.reg .b64 policy;\ncreatepolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], policy;\n}"
        ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier) : "memory");
  else
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier) : "memory");
}

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

// acc[g][i][2 h + e] is row 16 i + 8 h + lane / 4 and column 8 g + 2 (lane % 4) + e, of which those from `from` up to `to` count. `token`: of column 0.
template <bool ALL> DEV void take(Found<ROW_PIECES>& found, const float (&acc)[GROUPS][ROW_PIECES][4], int token, u32 from, u32 to) {
#pragma unroll
  for (u32 g = 0; g < GROUPS; ++g)
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
      const u32 column = 8 * g + threadIdx.x % 4 * 2 + e;
      const bool counts = ALL || column - from < to - from;
#pragma unroll
      for (u32 r = 0; r < 2 * ROW_PIECES; ++r) found.take(r, acc[g][r / 2][r % 2 * 2 + e], token + (int)column, counts);
    }
}
// What was found goes to `piece`, and the search begins anew.
DEV void write(Found<ROW_PIECES>& found, Piece& piece) {
#pragma unroll
  for (u32 r = 0; r < 2 * ROW_PIECES; ++r) {
    const Best best = found.of_quad(r);
    const u32 row = r * 8 + threadIdx.x % WARP / 4;
    if (threadIdx.x % 4 == 0) {
      piece.best[row] = best.value;
      if constexpr (WITH_ARGMAX) piece.index[row] = best.index;
    }
  }
  found.clear();
  __syncwarp();
}

// Query rows as left operands: of a pair of steps and a piece two fragments, those of the first and the last four elements of each lane's eight.
struct Fragments {
  u32 part[2][4];
};

// One warp and its run.
struct Stream {
  const StreamParams& params;
  Control& control;
  const u8 *ring, *queries;  // in shared memory: this warp's stages; the query rows
  u32 warp, begin, end;      // the run
  u32 block_begin, block_end, last_doc;
  Document doc;

  DEV u32 pitch() const { return 2 * params.dim; }
  // The first row of a run of this block: a multiple of eight from the block's own.
  DEV static u32 run_start(u32 block_begin, u32 block_end, u32 warp) {
    return min_of(block_begin + ceil_div(block_end - block_begin, 8) * warp / WARPS * 8, block_end);
  }
  DEV u32 full(u32 stage) const { return shared_address(control.full[warp] + stage); }

  // Copies the tokens from `row` on that fit a stage, or what is left of the run. One lane.
  DEV void load(u32 row, u32 stage) const {
    const u32 bytes = min_of(params.stage_tokens, end - row) * pitch();
    mbarrier::expect_bytes(full(stage), bytes);
    copy_bulk(shared_address(ring) + stage * params.stage_tokens * pitch(), static_cast<const u8*>(params.docs.rows) + (u64)row * pitch(), bytes, full(stage), params.keep_cache);
  }

  // The first document that begins in the run or reaches into it, of those from `low` on.
  DEV void open(u32 low) {
    const u64* offsets = params.docs.offsets;
    if (!offsets) low = min_of(begin / (u32)params.docs.length, last_doc - 1);
    else
      for (u32 high = last_doc - 1; low < high;) {
        const u32 middle = (low + high) / 2;
        if (offsets[middle] >= begin || offsets[middle + 1] > begin) high = middle;
        else low = middle + 1;
      }
    doc.open(params.docs, low);
  }

  // A document is done: its scores and choices. An empty one scores 0.
  DEV void settle(const Piece& piece, bool empty) const {
    const u32 lane = threadIdx.x % WARP, count = params.queries.count, step = count > 8 ? 1 : WARP;
    // Short queries: one lane each.
#pragma unroll 1
    for (u32 q = count > 8 ? lane : 0; q < count; q += count > 8 ? WARP : 1) {
      float sum = 0.f;
#pragma unroll 1
      for (u32 row = control.bounds[q] + (count > 8 ? 0 : lane); row < control.bounds[q + 1]; row += step) sum += empty ? 0.f : piece.best[row];
      if (count <= 8) sum = warp_sum(sum);
      if (count > 8 || lane == 0) params.scores[(u64)q * params.docs.count + doc.index] = sum;
    }
    if constexpr (WITH_ARGMAX) {
#pragma unroll 1
      for (u32 q = 0; q < count; ++q) {
        const u32 from = control.bounds[q], size = control.bounds[q + 1] - from;
        int* to = params.argmax + (u64)from * params.docs.count + (u64)doc.index * size;
#pragma unroll 1
        for (u32 i = lane; i < size; i += WARP) to[i] = empty ? -1 : max_of(piece.index[from + i], 0);  // all are -inf: the first
      }
    }
    __syncwarp();
  }

  // Documents without tokens at hand are done.
  DEV void settle_empty() {
    while (doc.index < last_doc && doc.start == doc.end && (doc.start < end || end == block_end)) {
      settle(control.pieces[warp][WHOLE], true);
      doc.next(params.docs);
    }
  }

  template <class Vector> DEV static Vector read(const u8* from, bool valid) {
    Vector v = {};
    if (valid) v = *reinterpret_cast<const Vector*>(from);
    return v;
  }
  // `Vector`: uint4, or uint2 of an odd last step, which has one fragment.
  template <class Vector> DEV Fragments query_fragments(u32 pair, u32 piece) const {
    const u32 lane = threadIdx.x % WARP, at = pair * (2 * PAIR) + lane % 4 * sizeof(Vector);
    const u8* from = queries + (16 * piece + lane / 4) * pitch() + at;
    const Vector a = read<Vector>(from, at < pitch()), b = read<Vector>(from + 8 * pitch(), at < pitch());
    if constexpr (sizeof(Vector) == 16) return {{{a.x, b.x, a.y, b.y}, {a.z, b.z, a.w, b.w}}};
    else return {{{a.x, b.x, a.y, b.y}, {}}};
  }

  // The products of the query rows with the columns at `from`.
  DEV void multiply(float (&acc)[GROUPS][ROW_PIECES][4], const Fragments (&held)[PAIRS + ODD][ROW_PIECES], const u8* from) const {
    const u32 lane = threadIdx.x % WARP;
    const u8* token = from + lane / 4 * pitch();
    float late[GROUPS][ROW_PIECES][4];  // of second fragments: two short chains of additions instead of a long one
#pragma unroll
    for (u32 g = 0; g < GROUPS; ++g)
#pragma unroll
      for (u32 i = 0; i < ROW_PIECES; ++i)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) acc[g][i][e] = late[g][i][e] = 0.f;
#pragma unroll
    for (u32 p = 0; p < PAIRS; ++p) {
      const u32 at = p * (2 * PAIR) + lane % 4 * 16;
      uint4 b[GROUPS];
#pragma unroll
      for (u32 g = 0; g < GROUPS; ++g) b[g] = read<uint4>(token + g * 8 * pitch() + at, at < pitch());
#pragma unroll
      for (u32 i = 0; i < ROW_PIECES; ++i)
#pragma unroll
        for (u32 g = 0; g < GROUPS; ++g) {
          mma_m16n8k16<E>(acc[g][i], held[p][i].part[0], b[g].x, b[g].y);
          mma_m16n8k16<E>(late[g][i], held[p][i].part[1], b[g].z, b[g].w);
        }
    }
    if constexpr (ODD) {
      const u32 at = PAIRS * (2 * PAIR) + lane % 4 * 8;
#pragma unroll
      for (u32 g = 0; g < GROUPS; ++g) {
        const uint2 b = read<uint2>(token + g * 8 * pitch() + at, at < pitch());
#pragma unroll
        for (u32 i = 0; i < ROW_PIECES; ++i) mma_m16n8k16<E>(acc[g][i], held[PAIRS][i].part[0], b.x, b.y);
      }
    }
#pragma unroll
    for (u32 g = 0; g < GROUPS; ++g)
#pragma unroll
      for (u32 i = 0; i < ROW_PIECES; ++i)
#pragma unroll
        for (u32 e = 0; e < 4; ++e) acc[g][i][e] += late[g][i][e];
  }

  // The columns of one multiply, of rows from `row` on, some of which end a document or the run.
  DEV void take_ends(const float (&acc)[GROUPS][ROW_PIECES][4], Found<ROW_PIECES>& found, u32 row) {
    u32 from = 0;
    do {
      const u32 until = min_of(doc.end, end);
      take<false>(found, acc, (int)(row - doc.start), from, min_of(until - row, COLUMNS));
      if (until > row + COLUMNS) return;
      const u32 kind = doc.start < begin ? HEAD : doc.end > end ? TAIL : WHOLE;
      Piece& piece = control.pieces[warp][kind];
      write(found, piece);
      if (doc.end > end) return;  // goes on in the next run
      if (kind == WHOLE) settle(piece, false);
      doc.next(params.docs);
      settle_empty();
      from = doc.start - row;
    } while (doc.index < last_doc && doc.start < end && from < COLUMNS);
  }

  // The whole run, of which the copies of the first stages are under way.
  DEV void walk() {
    Found<ROW_PIECES> found;
    found.clear();
    mbarrier::wait(shared_address(&control.queries_full), 0);
    Fragments held[PAIRS + ODD][ROW_PIECES];
#pragma unroll
    for (u32 i = 0; i < ROW_PIECES; ++i) {
#pragma unroll
      for (u32 p = 0; p < PAIRS; ++p) held[p][i] = query_fragments<uint4>(p, i);
      if constexpr (ODD) held[PAIRS][i] = query_fragments<uint2>(PAIRS, i);
    }
    u32 stage = 0, parity = 0;
#pragma unroll 1
    for (u32 row = begin; row < end; row += params.stage_tokens) {
      mbarrier::wait(full(stage), parity);
      const u32 last = min_of(row + params.stage_tokens, end);
#pragma unroll 1
      for (u32 at = row; at < last; at += COLUMNS) {
        float acc[GROUPS][ROW_PIECES][4];
        multiply(acc, held, ring + (stage * params.stage_tokens + at - row) * pitch());
        if (at + COLUMNS < min_of(doc.end, end)) take<true>(found, acc, (int)(at - doc.start), 0, COLUMNS);
        else take_ends(acc, found, at);
      }
      __syncwarp();
      const u32 next = row + params.stages * params.stage_tokens;
      if (next < end && threadIdx.x % WARP == 0) load(next, stage);
      if (++stage == params.stages) stage = 0, parity ^= 1;
    }
  }

  // All runs of the block are done: a document that begins in this one and goes on in others is put together.
  DEV void finish() {
    if (doc.index >= last_doc || doc.start < begin || doc.start >= end || doc.end <= end) return;
    const u32 lane = threadIdx.x % WARP;
    Piece& mine = control.pieces[warp][TAIL];
#pragma unroll
    for (u32 row = lane; row < ROW_PIECES * 16; row += WARP) {
      Best best = {mine.best[row], WITH_ARGMAX ? mine.index[row] : -1};
#pragma unroll 1
      for (u32 w = warp + 1; w < WARPS && run_start(block_begin, block_end, w) < doc.end; ++w) {
        if (run_start(block_begin, block_end, w) == run_start(block_begin, block_end, w + 1)) continue;  // of few tokens
        const Piece& other = control.pieces[w][HEAD];
        if constexpr (WITH_ARGMAX) best.merge(other.best[row], other.index[row]);
        else best.value = max_nan(best.value, other.best[row]);
      }
      mine.best[row] = best.value;
      if constexpr (WITH_ARGMAX) mine.index[row] = best.index;
    }
    __syncwarp();
    settle(mine, false);
  }
};

KERNEL __launch_bounds__(WARPS * WARP, 1) maxsim_forward_stream(const __grid_constant__ StreamParams params) {
  extern __shared__ __align__(128) u8 dynamic[];
  Control& control = *reinterpret_cast<Control*>(dynamic);
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, pitch = 2 * params.dim, ring_bytes = params.stages * params.stage_tokens * pitch;
  const u8 *rings = dynamic + CONTROL_BYTES, *queries = rings + WARPS * ring_bytes;
  const u32 queries_full = shared_address(&control.queries_full);
  if (lane == 0) {
#pragma unroll 1
    for (u32 s = 0; s < params.stages; ++s) mbarrier::init(shared_address(control.full[warp] + s), 1);
    if (warp == 0) mbarrier::init(queries_full, 1);
    mbarrier::fence_init();
  }
  grid_dependency_wait();
  grid_dependency_launch();
  // Queries before any document: what is asked for behind the first stages of all blocks comes 3 us later.
  if (threadIdx.x == 0) {
    const u32 copies = params.queries.row_stride == params.dim ? 1 : params.query_rows;
    mbarrier::expect_bytes(queries_full, params.query_rows * pitch);
#pragma unroll 1
    for (u32 row = 0; row < copies; ++row)
      copy_bulk(shared_address(queries) + row * pitch, static_cast<const E::Storage*>(params.queries.rows) + row * params.queries.row_stride,
                params.query_rows / copies * pitch, queries_full, false);
  }
  uint2 first, last;  // document and row
  if (params.firsts) first = params.firsts[blockIdx.x], last = params.firsts[blockIdx.x + 1];
  else {
    const u32 length = (u32)params.docs.length;
    first.x = blockIdx.x * params.share + min_of(blockIdx.x, params.rest), last.x = first.x + params.share + (blockIdx.x < params.rest);
    first.y = first.x * length, last.y = last.x * length;
  }
  const u32 begin = Stream::run_start(first.y, last.y, warp), end = Stream::run_start(first.y, last.y, warp + 1);
  Stream stream = {params, control, rings + warp * ring_bytes, queries, warp, begin, end, first.y, last.y, last.x, {}};
  __syncthreads();
  if (lane == 0) {
#pragma unroll 1
    for (u32 s = 0; s < params.stages && begin + s * params.stage_tokens < end; ++s) stream.load(begin + s * params.stage_tokens, s);
  }
  for (u32 q = threadIdx.x; q <= params.queries.count; q += WARPS * WARP) control.bounds[q] = (u32)params.queries.start(q);
  __syncthreads();
  // A block without tokens: its first warp says so of all its documents.
  if (begin < end || (warp == 0 && first.y == last.y)) {
    stream.open(first.x);
    stream.settle_empty();
    stream.walk();
  }
  __syncthreads();
  if (begin < end) stream.finish();
}
#endif
