// Scores of few query rows of more than 128 elements against many documents on Hopper: every document token is read once, and memory alone is what holds it.
//   ELEMENT: BF16 or F16    WITH_ARGMAX: 0 or 1    ROWS: of the query rows, rounded up to 32 or 64    MAX_STAGES: of the ring
//
// As `forward_stream` reads them, in rounds. Query rows so wide do not fit the registers; both sides are multiplied from shared memory by `wgmma`, document
// tokens as rows of a tile and query rows as its columns: no product is wasted on query rows that are not there, and each element of a token is read there but
// once. One warp copies tiles of up to 128 tokens, in blocks of 64 elements, through a ring; eight warps multiply and search them, 16 tokens each. Tiles have as
// many tokens as fill a round evenly: what is copied beyond a run, at the end of cut or packed documents, does not count.
#include "ptx/barrier.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma_narrow.cuh"
#include "stream.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

typedef ELEMENT E;

constexpr u32 WARPS = 8, PRODUCER = WARPS, JOINER = WARPS + 1, THREADS = (WARPS + 2) * WARP;
constexpr u32 TILE = 128, GROUP = TILE / 2, BLOCK = 64, BLOCK_BYTES = 128, STAGE_BYTES = TILE * BLOCK_BYTES, QUERY_BYTES = ROWS * BLOCK_BYTES;
// Query rows of which a thread keeps the best: row 8 g + 2 (lane % 4) + e at 2 g + e.
constexpr u32 OWN = ROWS / 4;

struct Control {
  Join cut[2];                // of the document that began before the block's rows, and of one that ends behind them
  Key parts[2][WARPS][ROWS];  // of two documents in turn: what each warp found
  Piece pieces[2], joined;
  u64 full[MAX_STAGES], empty[MAX_STAGES], cut_full[2];
  u32 bounds[MAX_ROWS + 1];  // rows where the queries begin
};
constexpr u32 CONTROL_BYTES = 12 * 1024;
static_assert(sizeof(Control) <= CONTROL_BYTES, "CONTROL_BYTES of the launcher");

// A tensor copy. `first_to_leave`: as of `copy_bulk` of `forward_stream`.
DEV void copy_tile(u32 shared, const TensorMap* map, u32 barrier, u32 x, u32 y, bool first_to_leave) {
  if (first_to_leave) tma::load_2d_evict_first(shared, map, barrier, x, y);
  else tma::load_2d(shared, map, barrier, x, y);
}

// One of the warps that multiply, or the one that copies.
struct Stream {
  const StreamParams& params;
  Control& control;
  u32 ring, queries;  // in shared memory: stages, and the query rows by blocks
  u32 warp, lane;
  BlockRows rows;
  Document doc;
  u32 number;  // of documents so far
  Best best[OWN];

  DEV u32 full(u32 stage) const { return shared_address(control.full + stage); }
  DEV u32 empty(u32 stage) const { return shared_address(control.empty + stage); }
  DEV u32 blocks() const { return ceil_div(params.dim, BLOCK); }

  // One thread copies all tokens, and query rows along with the first ones.
  DEV void produce(const TensorMap* query_map, const TensorMap* tile_map) {
    u32 stage = 0, parity = 1, query_bytes = QUERY_BYTES;
    const u32 tile = params.stage_tokens, bytes = tile * BLOCK_BYTES;
#pragma unroll 1
    for (u32 round = 0; round < params.rounds; ++round) {
      rows = rows_of_block(params, round);
#pragma unroll 1
      for (u32 row = rows.begin; row < rows.end; row += tile) {
#pragma unroll 1
        for (u32 block = 0; block < blocks(); ++block) {
          const u32 to = ring + stage * STAGE_BYTES, barrier = full(stage);
          mbarrier::wait(empty(stage), parity);
          mbarrier::expect_bytes(barrier, bytes + query_bytes);
          if (query_bytes > 0) tma::load_2d(queries + block * QUERY_BYTES, query_map, barrier, block * BLOCK, 0);
          copy_tile(to, tile_map, barrier, block * BLOCK, row, params.keep_cache);
          if (++stage == params.stages) stage = 0, parity ^= 1;
        }
        query_bytes = 0;
      }
    }
  }

  DEV void clear() {
#pragma unroll
    for (u32 i = 0; i < OWN; ++i) best[i] = {MINUS_INFINITY, -1};
  }

  // acc[4 g + 2 h + e] is token 16 warp + 8 h + lane / 4 of the tile and row 8 g + 2 (lane % 4) + e. Tokens from `from` up to `to` count, `row` is the tile's first.
  DEV void take(const float (&acc)[ROWS / 2], u32 row, u32 from, u32 to) {
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
      const u32 token = row + 16 * warp + 8 * h + lane / 4;
      if (token - from >= to - from) continue;
#pragma unroll
      for (u32 i = 0; i < OWN; ++i) {
        // -0 becomes +0, and a NaN that wins always has the same bits: a best of other bits is a better one.
        const float x = acc[i / 2 * 4 + 2 * h + i % 2], before = best[i].value;
        best[i].value = max_nan(before, WITH_ARGMAX ? x + 0.f : x);
        if (WITH_ARGMAX && __float_as_int(best[i].value) != __float_as_int(before)) best[i].index = (int)(token - doc.start);
      }
    }
  }

  // Of the keys of rows 2 COUNT i, of all lanes that are OFFSET apart, one lane goes on with the first half, the other with the second.
  template <u32 COUNT, u32 OFFSET> DEV void halve(Key (&keys)[OWN]) const {
    const bool second = lane & OFFSET;
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) {
      const Key given = second ? keys[i] : keys[i + COUNT], own = second ? keys[i + COUNT] : keys[i];
      keys[i] = max_of(own, __shfl_xor_sync(~0u, given, OFFSET));
    }
  }

  // What the warps found of the document, all of it or the part in the block's rows, is put together by one of them, and the search begins anew.
  DEV void finish() {
    Key(&parts)[WARPS][ROWS] = control.parts[number % 2];
    Key keys[OWN];
#pragma unroll
    for (u32 i = 0; i < OWN; ++i) keys[i] = to_key(best[i]);
    clear();
    halve<OWN / 2, 16>(keys), halve<OWN / 4, 8>(keys), halve<OWN / 8, 4>(keys);
    const u32 first = (lane / 16 * 4 + lane / 8 % 2 * 2 + lane / 4 % 2) * (OWN / 8);
#pragma unroll
    for (u32 i = 0; i < OWN / 8; ++i) parts[warp][(first + i) / 2 * 8 + lane % 4 * 2 + (first + i) % 2] = keys[i];
    // Who comes here with the document after the next one has passed the next one's barrier, and so has whoever put this one together.
    named_barrier(1, WARPS * WARP);
    if (warp == number % WARPS) {
      const bool begins = doc.start >= rows.begin, whole = begins && doc.end <= rows.end;
      Piece& piece = control.pieces[number % 2];
#pragma unroll
      for (u32 row = lane; row < ROWS; row += WARP) {
        Key key = 0;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) key = max_of(key, parts[w][row]);
        if (whole) piece.set(row, from_key(key));
        else control.cut[begins].best[row] = key;
      }
      __syncwarp();
      if (whole) settle(params, control.bounds, piece, doc.index, false, lane);
      else if (lane == 0) mbarrier::arrive(shared_address(control.cut_full + begins));
    }
    ++number;
  }

  // Documents without tokens at hand are done.
  DEV void settle_empty() {
    for (; doc.index < rows.docs_end && doc.start == doc.end; doc.next(params.docs))
      if (warp == 0) settle(params, control.bounds, control.joined, doc.index, true, lane);
  }

  // A tile, of rows from `row` on.
  DEV void search(const float (&acc)[ROWS / 2], u32 row) {
    do {
      const u32 until = min_of(doc.end, rows.end), behind = row + params.stage_tokens;
      take(acc, row, max_of(doc.start, row), min_of(until, behind));
      if (until > behind) return;
      finish();
      if (doc.end > rows.end) return;
      doc.next(params.docs);
      settle_empty();
    } while (doc.start < rows.end && doc.start < row + params.stage_tokens);
  }

  DEV void release(u32 stage) const {
    __syncwarp();
    if (lane == 0) mbarrier::arrive(empty(stage));
  }

  DEV void consume() {
    const u64 tokens = wgmma::descriptor_k_major(ring + warp / 4 * (GROUP * BLOCK_BYTES)), columns = wgmma::descriptor_k_major(queries);
    u32 stage = 0, parity = 0;
    number = 0;
    clear();
#pragma unroll 1
    for (u32 round = 0; round < params.rounds; ++round) {
      rows = rows_of_block(params, round);
      if (params.firsts ? rows.docs_begin == rows.docs_end : rows.begin == rows.end) continue;
      doc.open(params.docs, params.firsts ? rows.docs_begin : rows.begin / (u32)params.docs.length);
      settle_empty();
#pragma unroll 1
      for (u32 row = rows.begin; row < rows.end; row += params.stage_tokens) {
        float acc[ROWS / 2];
        u32 previous = stage;
#pragma unroll 1
        for (u32 block = 0; block < blocks(); ++block) {
          mbarrier::wait(full(stage), parity);
          wgmma::fence();
          wgmma::tie(acc);
          const u64 a = tokens + stage * (STAGE_BYTES / 16), b = columns + block * (QUERY_BYTES / 16);
#pragma unroll
          for (u32 k = 0; k < BLOCK / 16; ++k) wgmma::from_shared<E, ROWS>(acc, a + 2 * k, b + 2 * k, block + k > 0);
          wgmma::commit();
          wgmma::wait<1>();  // the stage before this one has been read
          if (block > 0) release(previous);
          previous = stage;
          if (++stage == params.stages) stage = 0, parity ^= 1;
        }
        wgmma::wait<0>();
        wgmma::tie(acc);
        release(previous);
        search(acc, row);
      }
    }
  }
};

KERNEL __launch_bounds__(THREADS, 1)
    maxsim_forward_stream_wide(const __grid_constant__ TensorMap queries, const __grid_constant__ TensorMap tiles,
                               const __grid_constant__ StreamParams params) {
  extern __shared__ __align__(1024) u8 dynamic[];
  Control& control = *reinterpret_cast<Control*>(dynamic);
  const u32 warp = uniform(threadIdx.x / WARP), lane = threadIdx.x % WARP, query_tile = shared_address(dynamic) + CONTROL_BYTES;
  Stream stream = {params, control, query_tile + ceil_div(params.dim, BLOCK) * QUERY_BYTES, query_tile, warp, kept(lane)};
  if (warp == PRODUCER && lane == 0) {
    tma::prefetch_map(&tiles), tma::prefetch_map(&queries);
#pragma unroll 1
    for (u32 i = 0; i < params.stages; ++i) mbarrier::init(stream.full(i), 1), mbarrier::init(stream.empty(i), WARPS);
    mbarrier::init(shared_address(control.cut_full), 1), mbarrier::init(shared_address(control.cut_full + 1), 1);
    mbarrier::fence_init();
  }
  grid_dependency_wait();
  grid_dependency_launch();
  if (warp == PRODUCER) {
    __syncwarp();
    named_barrier_arrive(2, THREADS);
    if (elect()) stream.produce(&queries, &tiles);
    return;
  }
  for (u32 q = threadIdx.x; q <= params.queries.count; q += WARPS * WARP) control.bounds[q] = (u32)params.queries.start(q);
  named_barrier(2, THREADS);
  if (warp == JOINER) join_cut(params, control.bounds, control.cut, control.cut_full, control.joined, stream.lane);
  else stream.consume();
}
#endif
