// The warps that add up what consumers find.
#pragma once
#include "forward_sm90/control.cuh"
#include "numerics.cuh"
#include "ptx/barrier.cuh"
#include "ptx/sync.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

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
#endif
