// The best of query rows so far, in the registers of the warps that `mma.sync` multiplies them in.
//   WITH_ARGMAX: 0 or 1
#pragma once
#include "texts.cuh"

// Of a thread's rows: rows lane / 4 + 8 h of the PIECES pieces of 16 rows, that of piece i at 2 i + h.
template <u32 PIECES> struct Found {
  float value[2 * PIECES];
  int index[2 * PIECES];
  DEV void clear() {
#pragma unroll
    for (u32 r = 0; r < 2 * PIECES; ++r) value[r] = MINUS_INFINITY, index[r] = -1;
  }
  // Takes token `at` of row r, unless it does not count.
  DEV void take(u32 r, float x, int at, bool counts = true) {
    // -0 becomes +0, and a NaN that wins always has the same bits: a best of other bits is a better one.
    const float before = value[r];
    value[r] = max_nan(before, counts ? WITH_ARGMAX ? x + 0.f : x : MINUS_INFINITY);
    if (WITH_ARGMAX && __float_as_int(value[r]) != __float_as_int(before)) index[r] = at;
  }
  // Row r's, of what the four lanes that share it found.
  DEV Best of_quad(u32 r) const {
    Best best = {value[r], index[r]};
#pragma unroll
    for (u32 offset = 1; offset < 4; offset *= 2) {
      const float other = __shfl_xor_sync(~0u, best.value, offset);
      if constexpr (WITH_ARGMAX) best.merge(other, __shfl_xor_sync(~0u, best.index, offset));
      else best.value = max_nan(best.value, other);
    }
    return best;
  }
};
