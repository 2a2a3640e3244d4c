// A consumer: a warpgroup that multiplies a query tile with tiles of documents, and finds the best of each row.
#pragma once
#include "forward_sm90/search.cuh"
#include "ptx/barrier.cuh"
#include "ptx/matrix.cuh"
#include "ptx/sync.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

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
#endif
