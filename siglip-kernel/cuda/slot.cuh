// Where a warp keeps its totals.
#pragma once
#include "base.cuh"
#include "numerics.cuh"

// The warp's totals of the loss, q and q x, in f64, into its own slot of `sums`: launches of one stream add up in order, so the totals are the same
// bits on every run. The first launch sets them.
DEV void add_to_slot(double* sums, u32 slot, double loss, double q, double q_x, bool first, u32 lane) {
  const double totals[3] = {warp_sum(loss), warp_sum(q), warp_sum(q_x)};
  if (lane != 0) return;
  double* to = sums + (u64)slot * 3;
#pragma unroll
  for (u32 i = 0; i < 3; ++i) to[i] = (first ? 0.0 : to[i]) + totals[i];
}
