// A fragment of dot products in a warp's registers or in shared memory: what it is worth as logits, where it lies among the pairs, and the sums over them.
#pragma once
#include "base.cuh"
#include "element.cuh"
#include "numerics.cuh"
#include "ptx/shared.cuh"
#include "slot.cuh"

// Sums over pairs, those of q with the gain; and whether this warp's last plain fragment was faint, so that the next one is tried as such.
struct PairSums {
  float loss = 0.f, q = 0.f, q_x = 0.f;
  bool faint = true;
};

// What gradients carry; the host knows it too.
template <class E> constexpr float GAIN_LOG2 = E::KIND == Kind::F16 ? 14.f : 0.f;
template <class E> constexpr float GAIN = E::KIND == Kind::F16 ? 16384.f : 1.f;

struct Unrounded {
  static constexpr Kind KIND = Kind::F32;
};

struct PairConstants {
  static constexpr u32 ROWS = 1;  // of a lane that differ in their bias
  float scale_log2, bias_log2;
  PairConstants() = default;
  // unit_log2: log2 of what 1 in the accumulators is worth as a dot product.
  DEV PairConstants(float log_temp, float bias, int unit_log2 = 0) {
    scale_log2 = ldexpf(expf(log_temp) * LOG2E, unit_log2);
    bias_log2 = bias * LOG2E;
  }
  DEV float bias(u32) const { return bias_log2; }
  DEV float largest_bias() const { return bias_log2; }
};

// The same where logits have a term for each row beside their dot product.
struct RowConstants : PairConstants {
  static constexpr u32 ROWS = 2;
  float of_row[2];
  // `terms`: of rows lane / 4 and 8 further on, in units of the accumulators.
  DEV RowConstants(const PairConstants& all, const float (&terms)[2]) : PairConstants(all) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) of_row[i] = fmaf(terms[i], scale_log2, bias_log2);
  }
  DEV float bias(u32 row) const { return of_row[row]; }
  DEV float largest_bias() const { return fmaxf(of_row[0], of_row[1]); }
  // What the terms add to the sum of q x, from sums of q by row, as their logits hold it: to |z| 2^-24 of the sum of |q|. Nothing at a scale that leaves no logit but the bias.
  DEV float q_term(const float (&q)[2]) const {
    const float sum = fmaf(q[0], of_row[0] - bias_log2, q[1] * (of_row[1] - bias_log2));
    return scale_log2 > 1e-30f ? sum * reciprocal(scale_log2) : 0.f;
  }
};

// Where a fragment lies: a warp's 16 rows x COLS columns. Element 4 * j + e is row lane / 4 + 8 * (e / 2), column 8 * j + 2 * (lane % 4) + e % 2.
struct FragmentPlace {
  int diagonal;    // a pair is positive when column - row == diagonal, both within the fragment
  int rows, cols;  // pairs at or beyond these do not exist
  u32 lane;
  // Dot products of the block's positive pairs, or null: those given. Where q leave unrounded, that of the pair takes its place.
  float* positives = nullptr;
  u32 row = 0;  // of the block, where the fragment begins
};

// A diagonal within a fragment; those far from any are alike.
DEV int nearby(i64 diagonal) {
  constexpr i64 FAR = 1 << 20;
  return (int)max_of(-FAR, min_of(diagonal, FAR));
}

// Dot products of a fragment come as `x(j)`, those of columns 8 * j to 8 * j + 7; loops over j are unrolled X::UNROLL times.
struct Four {
  float at[4];
};
struct InRegisters {
  static constexpr u32 UNROLL = 24;
  const float* acc;
  DEV Four operator()(u32 j) const { return {{acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]}}; }
};

// 16 x 32 dot products of a warp in shared memory, each lane's own, 512 bytes for every 8 columns.
struct InShared {
  static constexpr u32 UNROLL = 2;
  u32 at;
  DEV InShared(u32 buffer, u32 lane) : at(buffer + lane * 16) {}
  DEV Four operator()(u32 j) const {
    const uint4 x = load_shared_vector(at + j * 512);
    return {{__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w)}};
  }
  DEV void set(const float* x) const {
#pragma unroll
    for (u32 j = 0; j < 4; ++j) store_shared_vector(at + j * 512, x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]);
  }
};

// Gradient fragments leave 16 columns at a time, as they come about: `put(i, packed)` takes the pairs of columns 16 * i + 8 * k + 2 * (lane % 4), packed[2 * k] of
// row lane / 4 and packed[2 * k + 1] of row lane / 4 + 8.
// Unrounded ones as `put(j, q)`, as the dot products were.
template <class E, class Put> DEV void put_pairs(const Put& put, u32 j, u32 (&packed)[4], const float (&q)[4]) {
  if constexpr (E::KIND == Kind::F32) put(j, q);
  else {
    packed[j % 2 * 2] = E::pack(q[0], q[1]);
    packed[j % 2 * 2 + 1] = E::pack(q[2], q[3]);
    if (j % 2) put(j / 2, packed);
  }
}

// Whether all pairs of a fragment of that many columns exist; whether there may be positives among them.
DEV bool is_whole(const FragmentPlace& place, int cols) { return place.rows >= 16 && place.cols >= cols; }
DEV bool has_positives(const FragmentPlace& place, int cols) { return place.diagonal > -16 && place.diagonal < cols; }
DEV bool is_plain(const FragmentPlace& place, int cols) { return is_whole(place, cols) && !has_positives(place, cols); }

// A fragment's sums into the warp's slot, without gain and unit.
template <class E> DEV void store_sums(double* to, u32 slot, const PairSums& sums, bool first, u32 lane, int unit_log2 = 0) {
  constexpr double INVERSE = 1. / GAIN<E>;
  add_to_slot(to, slot, sums.loss, sums.q * INVERSE, ldexp(sums.q_x * INVERSE, unit_log2), first, lane);
}
