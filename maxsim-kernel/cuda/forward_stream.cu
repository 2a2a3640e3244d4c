// Scores of few query rows against many documents on Hopper: every document token is read once, and memory alone is what holds it.
//   ELEMENT: BF16 or F16    WITH_ARGMAX: 0 or 1    ROW_PIECES: 16-row pieces of the query rows, 2 or 4
//   QUERY_STEPS: d / 16 rounded up to 3, 4, 6 or 8    MAX_STAGES: of a ring
//
// The tokens of all documents follow one another in memory. They are read in rounds: in each one every block has some documents, next to those of its
// neighbours, so that all blocks read close by at the same time. Each of its warps has one of them, or, when they are fewer, an equal run of their tokens,
// wherever documents begin and end. A warp copies its runs through a ring of its own and waits for no other one. Bulk copies of whole tokens need no tensor
// map, which a lone call waits 1 us for.
//
// A document that lies in several runs is put together in shared memory, by the warp that comes last. Padded documents that are left over when each block has
// as many are cut between blocks, all of them in the first round: they are put together in device memory while other rounds go on.
#include "ptx/matrix.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
constexpr u32 ROWS = ROW_PIECES * 16;
#include "found.cuh"
#include "stream.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

typedef ELEMENT E;

// Of a warp's registers the query rows take most: as many warps as that leaves room for, to hide what each of them waits for. The last one puts cut
// documents together.
constexpr u32 FRAGMENTS = ROW_PIECES * QUERY_STEPS, WARPS = FRAGMENTS > 16 ? 7 : FRAGMENTS > 8 ? 11 : 15, JOINER = WARPS;
// A warp multiplies COLUMNS tokens at once. A pair of steps is 32 elements of d, 8 in each of four lanes.
constexpr u32 GROUPS = ROW_PIECES == 4 && QUERY_STEPS > 3 ? 1 : 2, COLUMNS = 8 * GROUPS, PAIR = 32, PAIRS = QUERY_STEPS / 2, ODD = QUERY_STEPS % 2;

struct Control {
  Join joins[2][WARPS];  // of two rounds: of the document that begins in each warp's run and ends behind it
  Join cut[2];           // of the document that began before the block's rows, and of one that ends behind them
  u32 rounds_done[WARPS];
  Piece pieces[WARPS + 1];
  u64 full[WARPS][MAX_STAGES], queries_full, cut_full[2];  // the last three are the joiner's
  u32 bounds[MAX_ROWS + 1];  // rows where the queries begin
};
constexpr u32 CONTROL_BYTES = 20 * 1024;
static_assert(sizeof(Control) <= CONTROL_BYTES, "CONTROL_BYTES of the launcher");

// `first_to_leave`: what is read leaves the L2 before what was written there, which then need not be written back for it: 3 to 5 us of a lone call.
DEV void copy_bulk(u32 shared, const void* global, u32 bytes, u32 barrier, bool first_to_leave) {
  if (first_to_leave) tma::load_bulk_evict_first(shared, global, bytes, barrier);
  else tma::load_bulk(shared, global, bytes, barrier);
}

constexpr u32 LINE = 128;  // of the L2

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

// Query rows as left operands: of a pair of steps and a piece two fragments, those of the first and the last four elements of each lane's eight.
struct Fragments {
  u32 part[2][4];
};

// The rows of a block in a round, and a warp's among them.
struct Run {
  BlockRows block;
  u32 begin, end;
  u32 unit, units;  // runs are multiples of units, of which the block has so many: a document for each warp, else 8 rows
  DEV u32 start_of(u32 warp) const { return min_of(block.begin + units * warp / WARPS * unit, block.end); }
};

// One warp.
struct Stream {
  const StreamParams& params;
  Control& control;
  const u8 *ring, *queries;  // in shared memory: this warp's stages; the query rows
  u32 warp, lane;
  // What is read next.
  struct {
    u32 round, row, end;
  } ahead;
  u32 round;
  Run run;
  Document doc;

  DEV u32 pitch() const { return 2 * params.dim; }
  DEV u32 full(u32 stage) const { return shared_address(control.full[warp] + stage); }

  DEV Run run_of(u32 round) const {
    const BlockRows block = rows_of_block(params, round);
    const u32 rows = block.end - block.begin, length = (u32)params.docs.length;
    const bool whole = round > 0 && rows == WARPS * length;
    Run run = {block, 0, 0, whole ? length : 8, whole ? WARPS : ceil_div(rows, 8)};
    run.begin = run.start_of(warp), run.end = run.start_of(warp + 1);
    return run;
  }

  // Copies the next tokens, as many as fit a stage, of a run.
  DEV void load(u32 stage) {
    while (ahead.row == ahead.end) {
      if (ahead.round == params.rounds) return;
      const Run next = run_of(ahead.round++);
      ahead.row = next.begin, ahead.end = next.end;
    }
    const u32 tokens = min_of(params.stage_tokens, ahead.end - ahead.row);
    const u32 to = shared_address(ring) + stage * params.stage_tokens * pitch();
    const u8* from = static_cast<const u8*>(params.docs.rows) + (u64)ahead.row * pitch();
    if (elect()) {
      mbarrier::expect_bytes(full(stage), tokens * pitch());
      copy_bulk(to, from, tokens * pitch(), full(stage), params.keep_cache);
    }
    ahead.row += tokens;
  }

  // The first document that begins in the run or reaches into it.
  DEV void open() {
    const u64* offsets = params.docs.offsets;
    u32 low = run.block.docs_begin;
    if (!offsets) low = run.begin / (u32)params.docs.length;
    else
      for (u32 high = run.block.docs_end - 1; low < high;) {
        const u32 middle = (low + high) / 2;
        if (offsets[middle] >= run.begin || offsets[middle + 1] > run.begin) high = middle;
        else low = middle + 1;
      }
    doc.open(params.docs, low);
  }

  // Documents without tokens at hand are done.
  DEV void settle_empty() {
    while (doc.index < run.block.docs_end && doc.start == doc.end && (doc.start < run.end || run.end == run.block.end)) {
      settle(params, control.bounds, control.pieces[warp], doc.index, true, lane);
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
    const u32 at = pair * (2 * PAIR) + lane % 4 * sizeof(Vector);
    const u8* from = queries + (16 * piece + lane / 4) * pitch() + at;
    const Vector a = read<Vector>(from, at < pitch()), b = read<Vector>(from + 8 * pitch(), at < pitch());
    if constexpr (sizeof(Vector) == 16) return {{{a.x, b.x, a.y, b.y}, {a.z, b.z, a.w, b.w}}};
    else return {{{a.x, b.x, a.y, b.y}, {}}};
  }

  // The products of the query rows with the columns at `from`.
  DEV void multiply(float (&acc)[GROUPS][ROW_PIECES][4], const Fragments (&held)[PAIRS + ODD][ROW_PIECES], const u8* from) const {
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

  // What was found of the document, all of it or the part in this run, is done with, and the search begins anew. Who finds the last part settles it.
  DEV void finish(Found<ROW_PIECES>& found) {
    Best best[2 * ROW_PIECES];
#pragma unroll
    for (u32 r = 0; r < 2 * ROW_PIECES; ++r) best[r] = found.of_quad(r);
    found.clear();
    Piece& piece = control.pieces[warp];
    if (doc.start >= run.begin && doc.end <= run.end) {
      if (lane % 4 == 0)
#pragma unroll
        for (u32 r = 0; r < 2 * ROW_PIECES; ++r) piece.set(r * 8 + lane / 4, best[r]);
    } else {
      const u32 begin = max_of(doc.start, run.block.begin), end = min_of(doc.end, run.block.end), tokens = min_of(end, run.end) - max_of(begin, run.begin);
      const bool cut = end - begin < doc.end - doc.start;
      u32 owner = warp;  // in whose run it begins
      while (run.start_of(owner) > begin) --owner;
      Join& join = cut ? control.cut[begin == doc.start] : control.joins[round % 2][owner];
      if (lane % 4 == 0)
#pragma unroll
        for (u32 r = 0; r < 2 * ROW_PIECES; ++r) atomicMax(join.best + r * 8 + lane / 4, to_key(best[r]));
      __syncwarp();
      u32 before = 0;
      if (lane == 0) before = add_acquire_release_shared(&join.tokens, tokens);
      if (uniform(before) + tokens < end - begin) return;
      __syncwarp();
      if (cut) {
        if (lane == 0) mbarrier::arrive(shared_address(control.cut_full + (begin == doc.start)));
        return;
      }
#pragma unroll
      for (u32 row = lane; row < ROWS; row += WARP) piece.set(row, from_key(atomicExch(join.best + row, 0)));
      if (lane == 0) atomicExch(&join.tokens, 0);
    }
    __syncwarp();
    settle(params, control.bounds, piece, doc.index, false, lane);
  }

  // The columns of one multiply, of rows from `row` on, some of which end a document or the run.
  DEV void take_ends(const float (&acc)[GROUPS][ROW_PIECES][4], Found<ROW_PIECES>& found, u32 row) {
    u32 from = 0;
    do {
      const u32 until = min_of(doc.end, run.end);
      take<false>(found, acc, (int)(row - doc.start), from, min_of(until - row, COLUMNS));
      if (until > row + COLUMNS) return;
      finish(found);
      if (doc.end > run.end) return;
      doc.next(params.docs);
      settle_empty();
      from = doc.start - row;
    } while (doc.start < run.end && from < COLUMNS);
  }

  // A round begins.
  DEV void enter() {
    run = run_of(round);
    // What warps put together two rounds ago is out of the way.
    while (round > 1 && __any_sync(~0u, lane < WARPS && add_acquire_release_shared(control.rounds_done + lane, 0) + 1 < round)) {}
    // A block without tokens: its first warp says so of all its documents.
    if (run.begin < run.end || (warp == 0 && run.block.begin == run.block.end && run.block.docs_begin < run.block.docs_end)) {
      open();
      settle_empty();
    }
  }

  // All rounds, of which the copies of the first stages are under way.
  DEV void walk() {
    enter();
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
    while (true) {
#pragma unroll 1
      for (u32 row = run.begin; row < run.end; row += params.stage_tokens) {
        mbarrier::wait(full(stage), parity);
        const u32 end = min_of(row + params.stage_tokens, run.end);
#pragma unroll 1
        for (u32 at = row; at < end; at += COLUMNS) {
          float acc[GROUPS][ROW_PIECES][4];
          multiply(acc, held, ring + (stage * params.stage_tokens + at - row) * pitch());
          if (at + COLUMNS < min_of(doc.end, run.end)) take<true>(found, acc, (int)(at - doc.start), 0, COLUMNS);
          else take_ends(acc, found, at);
        }
        __syncwarp();
        load(stage);
        if (++stage == params.stages) stage = 0, parity ^= 1;
      }
      if (lane == 0) add_acquire_release_shared(control.rounds_done + warp, 1);
      if (++round == params.rounds) return;
      enter();
    }
  }
};

KERNEL __launch_bounds__((WARPS + 1) * WARP, 1) maxsim_forward_stream(const __grid_constant__ StreamParams params) {
  extern __shared__ __align__(128) u8 dynamic[];
  Control& control = *reinterpret_cast<Control*>(dynamic);
  const u32 warp = uniform(threadIdx.x / WARP), lane = threadIdx.x % WARP, pitch = 2 * params.dim;
  const u32 ring_bytes = params.stages * params.stage_tokens * pitch;
  const u8 *rings = dynamic + CONTROL_BYTES, *queries = rings + WARPS * ring_bytes;
  // Queries, and the block's part of the cut documents, are on their way into the L2 while the instructions of what follows are on theirs.
  const u32 cut_bytes = params.cut_rows * pitch, line = threadIdx.x * LINE;
  const u64 cut_from = (u64)blockIdx.x * cut_bytes + line, cut_end = (u64)params.cut * params.docs.length * pitch;
  if (warp == JOINER)
#pragma unroll 1
    for (u32 at = lane * LINE; at < params.query_rows * pitch; at += WARP * LINE) prefetch_l2(static_cast<const u8*>(params.queries.rows) + at);
  else if (line < cut_bytes && cut_from < cut_end) prefetch_l2(static_cast<const u8*>(params.docs.rows) + cut_from);
  // Queries before any document: what is asked for behind the first stages of all blocks comes 3 us later. So they are asked for by a warp of their own.
  const u32 queries_full = shared_address(&control.queries_full), barriers = warp == JOINER ? queries_full : shared_address(control.full[warp]);
  if (lane == 0) {
#pragma unroll 1
    for (u32 i = 0; i < (warp == JOINER ? 3 : params.stages); ++i) mbarrier::init(barriers + i * sizeof(u64), 1);
    mbarrier::fence_init();
  }
  grid_dependency_wait();
  grid_dependency_launch();
  Stream stream = {params, control, rings + warp * ring_bytes, queries, warp, kept(lane)};
  if (warp == JOINER && elect()) {
    const bool together = params.queries.row_stride == params.dim;
    mbarrier::expect_bytes(queries_full, params.query_rows * pitch);
#pragma unroll 1
    for (u32 row = 0; row < (together ? 1 : params.query_rows); ++row)
      copy_bulk(shared_address(queries) + row * pitch, static_cast<const E::Storage*>(params.queries.rows) + row * params.queries.row_stride,
                together ? params.query_rows * pitch : pitch, queries_full, false);
  }
  if (warp < JOINER) {
#pragma unroll 1
    for (u32 s = 0; s < params.stages; ++s) stream.load(s);
    if (lane == 0) control.rounds_done[warp] = 0;
  }
  for (u32 q = threadIdx.x; q <= params.queries.count; q += (WARPS + 1) * WARP) control.bounds[q] = (u32)params.queries.start(q);
  for (u32 i = threadIdx.x; i < (sizeof(control.joins) + sizeof(control.cut)) / sizeof(u32); i += (WARPS + 1) * WARP) reinterpret_cast<u32*>(control.joins)[i] = 0;
  __syncthreads();
  if (warp == JOINER) join_cut(params, control.bounds, control.cut, control.cut_full, control.pieces[warp], stream.lane);
  else stream.walk();
}
#endif
