// The SigLIP pair loss and its gradient on a fragment of dot products, in registers.
//
// For a pair with dot product x: z = exp(log_temp) x + bias, and with y = +1 for a positive pair, -1 otherwise, the loss term is
// -log sigmoid(y z) = softplus(-y z) and its derivative in z is q = -y sigmoid(-y z). Everything is computed on a = -y z log2(e) and u = 2^-|a|.
//
// Three paths, each exact to f32's order for the fragments it takes (the mainloop hides the epilogue only while it is short, so the common
// case is the cheapest):
//   faint    every pair negative with z below about -6: q = u - u^2 and the loss u - u^2 / 2, from two running sums, sum q and sum u^2.
//            Dropped terms are at most u^2 relative. It is taken on trust and checked by sum u^2 <= 2^-17 afterwards, so u <= 2^-8.5 and the
//            relative error is at most 2.6e-6 in the loss (u^2 / 3) and 7.7e-6 in q (a bf16 rounding is 2e-3).
//   quiet    every pair negative with e^z below 2^1.5: sigmoid(z) = u / (1 + u) needs no case split.
//   general  any pair: large logits, and edges, where a pair that does not exist counts for nothing. Positives too, but of long fragments without an edge: those
//            are summed one by one and taken out first, and the others go by one of these paths.
// Quiet and general do not take a logarithm per pair: S <- S (1 + u) + u keeps S = prod(1 + u) - 1 without cancellation, and one log1p(S)
// closes a run of n <= 64 pairs. Its relative error is at most n 2^-24 from the roundings, 2^-22 from ex2 and 1e-6 from log1p: below 1e-5 at any z.
// lg2(1 + u) per pair would lose 1e-3 at z = -10, where u = 4.5e-5 is barely visible beside 1.
//
// Gradient fragments leave as q * gain; gain is a power of two that keeps small q out of f16's subnormals, and 1 for bf16. d_bias is the sum
// of q and d_log_temp that of q x, both taken here in f32, before q is rounded.
#pragma once
#include "base.cuh"
#include "element.cuh"
#include "numerics.cuh"
#include "slot.cuh"

// Sums over pairs, those of q with the gain; and whether this warp's last plain fragment was faint, so that the next one is tried as such.
struct PairSums {
  float loss = 0.f, q = 0.f, q_x = 0.f;
  bool faint = true;
};

struct PairConstants {
  float scale_log2, bias_log2, gain, gain_log2, inverse_gain;
  PairConstants() = default;
  // unit_log2: log2 of what 1 in the accumulators is worth as a dot product.
  DEV PairConstants(float log_temp, float bias, float gain_log2_, int unit_log2 = 0) {
    scale_log2 = ldexpf(expf(log_temp) * LOG2E, unit_log2);
    bias_log2 = bias * LOG2E;
    gain_log2 = gain_log2_;
    gain = exp2f(gain_log2_);
    inverse_gain = exp2f(-gain_log2_);
  }
};

// Where a fragment lies: a warp's 16 rows x COLS columns. Element 4 * j + e is row lane / 4 + 8 * (e / 2), column 8 * j + 2 * (lane % 4) + e % 2.
struct FragmentPlace {
  i64 diagonal;    // a pair is positive when column - row == diagonal, both within the fragment
  int rows, cols;  // pairs at or beyond these do not exist
  u32 lane;
  const float* positives = nullptr;  // dot products of the positive pairs from the fragment's first row on, or null: those given
};

// u that is certainly faint: 64 squares of it stay below the bound on their sum.
constexpr float FAINT_LOG2 = -11.6f, FAINT_SQUARES = 7.6e-6f;

// False, and nothing added, when some pair is too large for this path or not a number.
template <class E, bool GRADIENT, u32 N> DEV bool pairs_faint(const float* x, u32* packed, PairSums& sums, const PairConstants& c) {
  constexpr bool UNIT_GAIN = E::KIND == Kind::BF16;  // a multiplication a pair less
  float q_sum[4] = {0.f, 0.f, 0.f, 0.f}, q_x_sum[2] = {0.f, 0.f}, square[4] = {0.f, 0.f, 0.f, 0.f};
  const float shift = c.bias_log2 + c.gain_log2;
#pragma unroll
  for (u32 j = 0; j < N / 4; ++j) {
    float q[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {  // u, q and the sums carry the gain
      const float u = exp2_approx(fmaf(x[4 * j + e], c.scale_log2, shift));
      q[e] = GRADIENT ? fmaf(UNIT_GAIN ? -u : u * -c.inverse_gain, u, u) : u;
      q_sum[e] += q[e];
      if constexpr (GRADIENT) q_x_sum[e & 1] = fmaf(q[e], x[4 * j + e], q_x_sum[e & 1]);
      square[e] = fmaf(u, u, square[e]);
    }
    if constexpr (GRADIENT) {
      packed[2 * j] = E::pack(q[0], q[1]);
      packed[2 * j + 1] = E::pack(q[2], q[3]);
    }
  }
  const float squares = ((square[0] + square[1]) + (square[2] + square[3])) * c.inverse_gain * c.inverse_gain;
  if (!__all_sync(~0u, squares <= FAINT_SQUARES)) return false;
  const float total = (q_sum[0] + q_sum[1]) + (q_sum[2] + q_sum[3]);
  sums.loss += fmaf(total, c.inverse_gain, (GRADIENT ? 0.5f : -0.5f) * squares);  // u - u^2 / 2 = q + u^2 / 2
  sums.q += total;
  sums.q_x += q_x_sum[0] + q_x_sum[1];
  return true;
}

// The largest z log2(e) of a fragment, or a little below 0 less: integer maxima of the float bits are exact for positive dot products, a negative
// maximum reads as 0, and a NaN either reads as large or reaches the loss through u.
template <u32 N> DEV float largest_logit(const float* x, const PairConstants& c) {
  int largest = 0;
#pragma unroll
  for (u32 j = 0; j < N; ++j) {
    int bits;  // in PTX: the compiler would keep all of `x` as integers, and lose track of accumulators that it moves
    asm("mov.b32 %0, %1;" : "=r"(bits) : "f"(x[j]));
    largest = max_of(largest, bits);
  }
  return fmaf(__int_as_float(largest), c.scale_log2, c.bias_log2);
}

// Exact while prod(1 + u) over 64 pairs, u = e^z, cannot overflow: z log2(e) < 1.5.
template <class E, bool GRADIENT, u32 N>
DEV void pairs_quiet(const float* x, u32* packed, PairSums& sums, const PairConstants& c) {
  float product[4] = {0.f, 0.f, 0.f, 0.f}, q_sum[2] = {0.f, 0.f}, q_x_sum[2] = {0.f, 0.f};
#pragma unroll
  for (u32 j = 0; j < N / 4; ++j) {
    float q[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const float u = exp2_approx(fmaf(x[4 * j + e], c.scale_log2, c.bias_log2)), one_u = 1.f + u;
      product[e] = fmaf(product[e], one_u, u);
      if constexpr (GRADIENT) {
        q[e] = u * c.gain * reciprocal(one_u);
        q_sum[e & 1] += q[e];
        q_x_sum[e & 1] = fmaf(q[e], x[4 * j + e], q_x_sum[e & 1]);
      }
    }
    if constexpr (GRADIENT) {
      packed[2 * j] = E::pack(q[0], q[1]);
      packed[2 * j + 1] = E::pack(q[2], q[3]);
    }
  }
  sums.q += q_sum[0] + q_sum[1];
  sums.q_x += q_x_sum[0] + q_x_sum[1];
  const float p = fmaf(product[0], product[1], product[0] + product[1]), r = fmaf(product[2], product[3], product[2] + product[3]);
  sums.loss += log1p_nonnegative(fmaf(p, r, p + r));
}

// SPECIAL: there may be positives, and pairs that do not exist, which leave q = 0.
template <class E, bool GRADIENT, bool SPECIAL, u32 N>
DEV void pairs_general(const float* x, u32* packed, PairSums& sums, const PairConstants& c, const FragmentPlace& place) {
  float product[4] = {0.f, 0.f, 0.f, 0.f}, large[2] = {0.f, 0.f}, q_sum[2] = {0.f, 0.f}, q_x_sum[2] = {0.f, 0.f};
  const int row = place.lane / 4, column = place.lane % 4 * 2;
  float exact[2] = {0.f, 0.f};
  if (SPECIAL && place.positives)
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const int i = row + (int)half * 8;
      const i64 k = i + place.diagonal;
      if (i < place.rows && k >= 0 && k < place.cols) exact[half] = place.positives[i];
    }
#pragma unroll
  for (u32 j = 0; j < N / 4; ++j) {
    float q[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const int i = row + e / 2 * 8, k = column + j * 8 + e % 2;
      const bool exists = !SPECIAL || (i < place.rows && k < place.cols), positive = SPECIAL && (i64)(k - i) == place.diagonal;
      const float dot = SPECIAL && place.positives && positive ? exact[e / 2] : x[4 * j + e];
      const float z = fmaf(dot, c.scale_log2, c.bias_log2), a = positive ? -z : z;
      const float u = exp2_approx(-fabsf(a)), one_u = 1.f + u;
      if (exists) {
        large[e & 1] += fmaxf(a, 0.f);
        product[e] = fmaf(product[e], one_u, u);
      }
      if constexpr (GRADIENT) {
        const float sigmoid = (a >= 0.f ? c.gain : u * c.gain) * reciprocal(one_u);
        q[e] = exists ? (positive ? -sigmoid : sigmoid) : 0.f;
        q_sum[e & 1] += q[e];
        if (exists) q_x_sum[e & 1] = fmaf(q[e], dot, q_x_sum[e & 1]);
      }
    }
    if constexpr (GRADIENT) {
      packed[2 * j] = E::pack(q[0], q[1]);
      packed[2 * j + 1] = E::pack(q[2], q[3]);
    }
  }
  sums.q += q_sum[0] + q_sum[1];
  sums.q_x += q_x_sum[0] + q_x_sum[1];
  const float p = fmaf(product[0], product[1], product[0] + product[1]), r = fmaf(product[2], product[3], product[2] + product[3]);
  sums.loss += fmaf(large[0] + large[1], LN2, log1p_nonnegative(fmaf(p, r, p + r)));
}

// The positive pairs of a fragment whose pairs all exist: at most one for each of a lane's two rows. They are summed and taken out before the others, which then
// go the usual way, and their q put in afterwards: other paths are long, and a block meets them once, when no instruction cache holds them.
struct Positives {
  // A dot product whose pair adds nothing, at any scale above LEAST_SCALE.
  static constexpr float ABSENT = -3e38f, LEAST_SCALE = 1e-20f;
  u32 at;  // which elements they are, 8 bits for each row; N for none
  u32 q;   // packed, of both rows

  template <class E, bool GRADIENT, u32 N> DEV void take(float* x, PairSums& sums, const PairConstants& c, const FragmentPlace& place) {
    float q_of[2];
    at = 0;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 i = place.lane / 4 + half * 8, k = i + (u32)place.diagonal;
      const bool here = k < 2 * N && k % 8 / 2 == place.lane % 4;
      const u32 element = here ? k / 8 * 4 + half * 2 + k % 2 : N;
      float dot = 0.f;
#pragma unroll
      for (u32 j = 0; j < N; ++j)
        if (j / 2 % 2 == half && j == element) dot = x[j], x[j] = ABSENT;
      if (place.positives && here) dot = place.positives[i];
      const float a = -fmaf(dot, c.scale_log2, c.bias_log2), u = exp2_approx(-fabsf(a));
      const float q_here = (a >= 0.f ? -c.gain : -u * c.gain) * reciprocal(1.f + u);
      if (here) {
        sums.loss += fmaf(fmaxf(a, 0.f), LN2, log1p_nonnegative(u));
        if (GRADIENT) sums.q += q_here, sums.q_x = fmaf(q_here, dot, sums.q_x);
      }
      q_of[half] = here ? q_here : 0.f;
      at |= element << 8 * half;
    }
    if constexpr (GRADIENT) q = E::pack(q_of[0], q_of[1]);
  }
  template <u32 N> DEV void put(u32* packed) const {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 element = at >> 8 * half & 255, bits = (q >> 16 * half & 0xFFFF) << element % 2 * 16;
#pragma unroll
      for (u32 j = 0; j < N / 4; ++j)  // in PTX: the compiler would index `packed`, and keep it in memory for that
        asm("{\n.reg .pred p;\nsetp.eq.u32 p, %1, %3;\n@p or.b32 %0, %0, %2;\n}" : "+r"(packed[2 * j + half]) : "r"(element / 4), "r"(bits), "r"(j));
    }
  }
};

// One fragment of a warp, by the cheapest path that is exact for it. All lanes call it together.
template <class E, bool GRADIENT, u32 N>
DEV void pairs(float* x, u32* packed, PairSums& sums, const PairConstants& c, const FragmentPlace& place) {
  constexpr int COLS = N * 2;     // 16 rows x COLS columns over 32 lanes
  constexpr bool LONG = N == 64;  // a fragment whose general path is long
  const bool positives = place.diagonal > -16 && place.diagonal < COLS;
  if (place.rows < 16 || place.cols < COLS || (positives && !(LONG && c.scale_log2 > Positives::LEAST_SCALE))) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const FragmentPlace part = {place.diagonal - (int)half * COLS / 2, place.rows, place.cols - (int)half * COLS / 2, place.lane, place.positives};
      pairs_general<E, GRADIENT, true, N / 2>(x + half * N / 2, packed + half * N / 4, sums, c, part);
    }
    return;
  }
  Positives taken;
  if constexpr (LONG)
    if (__builtin_expect(positives, 0)) taken.take<E, GRADIENT, N>(x, sums, c, place);
  // The usual way first, in one piece; all others lie behind it.
  if (!(__builtin_expect(sums.faint, 1) && __builtin_expect(pairs_faint<E, GRADIENT, N>(x, packed, sums, c), 1))) {
    const float largest = largest_logit<N>(x, c);
    sums.faint = __all_sync(~0u, largest < FAINT_LOG2);
    if (__all_sync(~0u, largest < 1.5f)) pairs_quiet<E, GRADIENT, N>(x, packed, sums, c);
    else pairs_general<E, GRADIENT, false, N>(x, packed, sums, c, place);
  }
  if constexpr (LONG && GRADIENT)
    if (__builtin_expect(positives, 0)) taken.put<N>(packed);
}

// A fragment's sums into the warp's slot, without gain and unit.
DEV void store_sums(double* to, u32 slot, const PairSums& sums, bool first, float inverse_gain, u32 lane, int unit_log2 = 0) {
  add_to_slot(to, slot, sums.loss, (double)sums.q * inverse_gain, ldexp((double)sums.q_x * inverse_gain, unit_log2), first, lane);
}
