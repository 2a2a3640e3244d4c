// The best columns of a tile, from the accumulators of its product.
#pragma once
#include "forward_sm90/control.cuh"
#include "numerics.cuh"
#include "ptx/shared.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The best so far of a thread's two rows, rows lane / 4 and lane / 4 + 8 of its warp's 16.
struct Found {
  float value[2];
  int index[2];
  float minus_zero;  // which the compiler must not know
  DEV void clear() {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) value[r] = MINUS_INFINITY, index[r] = -1;
  }
};

// The best of a thread's columns in one tile: accumulator 4 j + 2 r + e is row r, column 8 j + 2 (lane % 4) + e. Pairs of columns are compared
// first; what is remembered is the pair, `pair[r]` = 8 j or below 0, and the first of the two, `first[r]`.
template <u32 COLUMNS, u32 SIZE> DEV void search_any(const float (&acc)[SIZE], float (&best)[2], float (&first)[2], float (&pair)[2]) {
#pragma unroll
  for (u32 r = 0; r < 2; ++r) best[r] = MINUS_INFINITY, first[r] = 0.f, pair[r] = -1.f;
#pragma unroll
  for (u32 j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
      const float left = acc[4 * j + 2 * r], value = max_nan(left, acc[4 * j + 2 * r + 1]);
      const bool better = value > best[r];
      best[r] = max_nan(best[r], value);
      if (WITH_ARGMAX) pair[r] = better ? 8.f * j : pair[r], first[r] = better ? left : first[r];
    }
}
// The same, sooner, by comparing bits: from +0 up, and a NaN is above them all, floats are ordered as the integers of their bits, of which one
// instruction compares three. Selections are additions of -0 under a predicate: these run beside the comparisons, not among them.
struct Positive {
  static constexpr u32 CHAINS = WITH_ARGMAX ? 1 : 2;  // of comparisons that wait for one another
  int most[CHAINS][2];
  float first[2], pair[2], minus_zero;

  DEV Positive(float minus_zero) : minus_zero(minus_zero) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) most[0][r] = most[CHAINS - 1][r] = (int)0x80000000, first[r] = 0.f, pair[r] = -1.f;
  }
  template <u32 COLUMNS, u32 SIZE> DEV void search(const float (&acc)[SIZE]) {
#pragma unroll
    for (u32 j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
      for (u32 r = 0; r < 2; ++r) {
        const float left = acc[4 * j + 2 * r], right = acc[4 * j + 2 * r + 1];
        int& best = most[j % CHAINS][r];
        const int before = best;
        best = max_of(before, max_of(__float_as_int(left), __float_as_int(right)));
        if constexpr (WITH_ARGMAX)
          asm("{\n.reg .pred better;\nsetp.ne.s32 better, %2, %3;\n@better add.f32 %0, %4, %6;\n@better add.f32 %1, %5, %6;\n}"
              : "+&f"(first[r]), "+&f"(pair[r]) : "r"(before), "r"(best), "f"(left), "f"(8.f * j), "f"(minus_zero));
      }
  }
  DEV int bits(u32 r) const { return max_of(most[0][r], most[CHAINS - 1][r]); }
  // Gives whether what was found is right: every best is above 0.
  DEV bool best(float (&best)[2]) const {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) best[r] = __int_as_float(bits(r));
    return __all_sync(~0u, min_of(bits(0), bits(1)) > 0);
  }
  // The same of few columns: some thread of every row's four has a best above 0, before which what the others found counts for nothing.
  DEV bool best_of_quads(float (&best)[2]) const {
    u32 quads = ~0u;
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
      best[r] = __int_as_float(bits(r));
      const u32 above = __ballot_sync(~0u, bits(r) > 0), pairs = above | above >> 1;
      quads &= pairs | pairs >> 2;
    }
    return (quads & 0x11111111) == 0x11111111;
  }
};

// Takes the best of a tile's columns, from token `first` on, of which those from `tail` on end with its last token.
DEV void take(Found& found, const float (&best)[2], const float (&left)[2], const float (&pair)[2], u32 first, u32 about, u32 columns, u32 tail) {
#pragma unroll
  for (u32 r = 0; r < 2; ++r) {
    if (WITH_ARGMAX && best[r] > found.value[r]) {
      u32 token = first + threadIdx.x % 4 * 2 + (u32)(int)pair[r];
      if (pair[r] >= tail) token -= columns - (about & TOKENS_MASK);
      found.index[r] = (int)token + (left[r] == best[r] ? 0 : 1);
    }
    found.value[r] = max_nan(found.value[r], best[r]);
  }
}

// Columns from `tokens` on, beyond the document, become -inf.
template <u32 COLUMNS, u32 SIZE> DEV void cut(float (&acc)[SIZE], u32 tokens) {
  const u32 column = threadIdx.x % 4 * 2;
#pragma unroll
  for (u32 j = 0; j < COLUMNS / 8; ++j)
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
      const bool counts = 8 * j + e + column < tokens;
      acc[4 * j + e] = counts ? acc[4 * j + e] : MINUS_INFINITY;
      acc[4 * j + 2 + e] = counts ? acc[4 * j + 2 + e] : MINUS_INFINITY;
    }
}
// Every column times its inverse norm.
template <u32 COLUMNS, u32 SIZE> DEV void scale(float (&acc)[SIZE], u32 norms) {
#pragma unroll
  for (u32 j = 0; j < COLUMNS / 8; ++j) {
    const float2 norm = load_shared_pair(norms + threadIdx.x % 4 * 8 + 32 * j);
    acc[4 * j] *= norm.x, acc[4 * j + 1] *= norm.y, acc[4 * j + 2] *= norm.x, acc[4 * j + 3] *= norm.y;
  }
}
// Every column times its factor, or -inf where that is negative.
template <u32 COLUMNS, u32 SIZE> DEV void apply(float (&acc)[SIZE], const float* factors) {
  const float2* pairs = reinterpret_cast<const float2*>(factors) + threadIdx.x % 4;
#pragma unroll
  for (u32 j = 0; j < COLUMNS / 8; ++j) {
    const float2 factor = pairs[4 * j];
    acc[4 * j] = factor.x < 0.f ? MINUS_INFINITY : acc[4 * j] * factor.x;
    acc[4 * j + 1] = factor.y < 0.f ? MINUS_INFINITY : acc[4 * j + 1] * factor.y;
    acc[4 * j + 2] = factor.x < 0.f ? MINUS_INFINITY : acc[4 * j + 2] * factor.x;
    acc[4 * j + 3] = factor.y < 0.f ? MINUS_INFINITY : acc[4 * j + 3] * factor.y;
  }
}
#endif
