// The producer: looks documents up, and loads their tiles, and query tiles, into shared memory.
#pragma once
#include "forward_sm90/control.cuh"
#include "ptx/barrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

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
      if (column < count) copy_async_float(to + 4 * column, params.docs.scales + row + column - (column < tail ? 0 : back));
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
        mbarrier::arrive_when_copied(barrier);
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
      if (NORMALIZED) mbarrier::arrive_when_copied(shared_address(control.full + slot));
      if (elect()) {
        control.tiles[slot] = {STOP, 0, 0, 0};
        mbarrier::arrive(shared_address(control.full + slot));
      }
    }
  }
};
#endif
