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
//   quiet    every pair negative with e^z below 2^1.5 (2^2.3 where a run is shorter): sigmoid(z) = u / (1 + u) needs no case split.
//   general  any pair: large logits, and edges, where a pair that does not exist counts for nothing. Positives too, but of long fragments: those are summed one by
//            one and taken out first, as pairs beyond the edge of a wide tile are, and the others go by one of these paths.
// Quiet and general do not take a logarithm per pair: S <- S (1 + u) + u keeps S = prod(1 + u) - 1 without cancellation, and one log1p(S)
// closes a run of n <= 96 pairs. Its relative error is at most n 2^-24 from the roundings, 2^-22 from ex2 and 1e-6 from log1p: below 1e-5 at any z.
// lg2(1 + u) per pair would lose 1e-3 at z = -10, where u = 4.5e-5 is barely visible beside 1.
//
// Gradient fragments leave as q * gain; gain is a power of two that keeps small q out of f16's subnormals, and else 1. d_bias is the sum of q and d_log_temp that of q x, both
// taken here in f32, before q is rounded. Unrounded q take the places of their dot products, and those of positive pairs, which are kept out of the gradient products, are 0 there.
#pragma once
#include "fragment.cuh"
#include "left_out.cuh"

// Sums of a fragment run in as many chains as leave registers for the rest: sum[e % CHAINS].
template <bool GRADIENT> constexpr u32 CHAINS = GRADIENT ? 2 : 4;
template <u32 N> DEV float total(const float (&sum)[N]) {
  if constexpr (N == 4) return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  else return sum[0] + sum[1];
}
// prod (1 + u) - 1 over all chains.
template <u32 N> DEV float total_product(const float (&s)[N]) {
  const float p = fmaf(s[0], s[1], s[0] + s[1]);
  if constexpr (N == 2) return p;
  else {
    const float r = fmaf(s[2], s[3], s[2] + s[3]);
    return fmaf(p, r, p + r);
  }
}

constexpr float FAINT_SQUARES = 7.6e-6f;
// log2 of u that is certainly faint: N squares of it, up to 64 or 96, stay below that bound on their sum.
template <u32 N> constexpr float FAINT_LOG2 = N > 64 ? -11.8f : -11.6f;

// False, and nothing added, when some pair is too large for this path or not a number.
template <class E, bool GRADIENT, u32 N, class X, class Put, class Constants>
DEV bool pairs_faint(const X& x, const Put& put, PairSums& sums, const Constants& c) {
  constexpr u32 C = CHAINS<GRADIENT>;
  constexpr bool BY_ROW = GRADIENT && Constants::ROWS == 2;  // chains of q
  float q_sum[C] = {}, q_x_sum[2] = {}, square[C] = {};
  const float shift[2] = {c.bias(0) + GAIN_LOG2<E>, c.bias(1) + GAIN_LOG2<E>};
  u32 packed[4];
#pragma unroll X::UNROLL
  for (u32 j = 0; j < N / 4; ++j) {
    const Four dots = x(j);
    float q[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {  // u, q and the sums carry the gain
      const float u = exp2_approx(fmaf(dots.at[e], c.scale_log2, shift[e / 2]));
      q[e] = GRADIENT ? fmaf(u * (-1.f / GAIN<E>), u, u) : u;
      q_sum[BY_ROW ? e / 2 : e % C] += q[e];
      if constexpr (GRADIENT) q_x_sum[e & 1] = fmaf(q[e], dots.at[e], q_x_sum[e & 1]);
      square[e % C] = fmaf(u, u, square[e % C]);
    }
    if constexpr (GRADIENT) put_pairs<E>(put, j, packed, q);
  }
  const float squares = total(square) * (1.f / GAIN<E> / GAIN<E>);
  if (!__all_sync(~0u, squares <= FAINT_SQUARES)) return false;
  const float q = total(q_sum);
  sums.loss += fmaf(q, 1.f / GAIN<E>, (GRADIENT ? 0.5f : -0.5f) * squares);  // u - u^2 / 2 = q + u^2 / 2
  sums.q += q;
  sums.q_x += total(q_x_sum);
  if constexpr (BY_ROW) sums.q_x += c.q_term(q_sum);
  return true;
}

// The largest z log2(e) of a fragment, or a little below 0 less: integer maxima of the float bits are exact for positive dot products, a negative
// maximum reads as 0, and a NaN either reads as large or reaches the loss through u.
template <u32 N, class X, class Constants> DEV float largest_logit(const X& x, const Constants& c) {
  int largest = 0;
#pragma unroll X::UNROLL
  for (u32 j = 0; j < N / 4; ++j) {
    const Four dots = x(j);
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      int bits;  // in PTX: the compiler would keep all dot products as integers, and lose track of accumulators that it moves
      asm("mov.b32 %0, %1;" : "=r"(bits) : "f"(dots.at[e]));
      largest = max_of(largest, bits);
    }
  }
  return fmaf(__int_as_float(largest), c.scale_log2, c.largest_bias());
}

template <u32 ROWS, class Constants> DEV void add_q(PairSums& sums, const float (&q)[ROWS], float q_x, const Constants& c) {
  if constexpr (ROWS == 2) sums.q += q[0] + q[1];
  else sums.q += q[0];
  sums.q_x += q_x;
  if constexpr (ROWS == 2) sums.q_x += c.q_term(q);
}

// Exact while prod(1 + u), u = e^z, over the pairs that one logarithm closes cannot overflow: all N, or of 96 one half after the other.
template <u32 N> constexpr u32 QUIET_RUN = N > 64 ? N / 2 : N;
template <u32 N> constexpr float QUIET_LOG2 = QUIET_RUN<N> > 48 ? 1.5f : 2.3f;  // of z log2(e)
template <class E, bool GRADIENT, u32 N, class X, class Put, class Constants>
DEV void pairs_quiet(const X& x, const Put& put, PairSums& sums, const Constants& c) {
  constexpr u32 C = CHAINS<GRADIENT>, ROWS = Constants::ROWS;
  float product[C] = {}, q_sum[ROWS] = {}, q_x_sum = 0.f;
  u32 packed[4];
#pragma unroll X::UNROLL
  for (u32 j = 0; j < N / 4; ++j) {
    const Four dots = x(j);
    float q[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const float u = exp2_approx(fmaf(dots.at[e], c.scale_log2, c.bias(e / 2))), one_u = 1.f + u;
      product[e % C] = fmaf(product[e % C], one_u, u);
      if constexpr (GRADIENT) {
        q[e] = u * GAIN<E> * reciprocal(one_u);
        q_sum[e / 2 % ROWS] += q[e];
        q_x_sum = fmaf(q[e], dots.at[e], q_x_sum);
      }
    }
    if constexpr (GRADIENT) put_pairs<E>(put, j, packed, q);
    if ((j + 1) % (QUIET_RUN<N> / 4) == 0) {
      sums.loss += log1p_nonnegative(total_product(product));
#pragma unroll
      for (u32 i = 0; i < C; ++i) product[i] = 0.f;
    }
  }
  add_q(sums, q_sum, q_x_sum, c);
}

// SPECIAL: there may be positives, and pairs that do not exist, which leave q = 0.
template <class E, bool GRADIENT, bool SPECIAL, u32 N, class X, class Put, class Constants>
DEV void pairs_general(const X& x, const Put& put, PairSums& sums, const Constants& c, const FragmentPlace& place) {
  constexpr u32 C = CHAINS<GRADIENT>, ROWS = Constants::ROWS;
  float product[C] = {}, large = 0.f, q_sum[ROWS] = {}, q_x_sum = 0.f;
  const int row = place.lane / 4, column = place.lane % 4 * 2;
  float exact[2] = {};
  if (SPECIAL && place.positives)
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      // By the lane alone whose pair it is: it may replace it.
      const int i = row + (int)half * 8, k = i + place.diagonal;
      if (i < place.rows && k >= 0 && k < min_of(place.cols, 2 * (int)N) && k % 8 / 2 == column / 2) exact[half] = place.positives[place.row + i];
    }
  u32 packed[4];
#pragma unroll X::UNROLL
  for (u32 j = 0; j < N / 4; ++j) {
    const Four dots = x(j);
    float q[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const int i = row + e / 2 * 8, k = column + j * 8 + e % 2;
      const bool exists = !SPECIAL || (i < place.rows && k < place.cols), positive = SPECIAL && k - i == place.diagonal;
      const float dot = SPECIAL && place.positives && positive ? exact[e / 2] : dots.at[e];
      const float z = fmaf(dot, c.scale_log2, c.bias(e / 2)), a = positive ? -z : z;
      const float u = exp2_approx(-fabsf(a)), one_u = 1.f + u;
      if (exists) {
        large += fmaxf(a, 0.f);
        product[e % C] = fmaf(product[e % C], one_u, u);
      }
      if constexpr (GRADIENT) {
        const float sigmoid = (a >= 0.f ? GAIN<E> : u * GAIN<E>) * reciprocal(one_u);
        q[e] = exists ? (positive ? -sigmoid : sigmoid) : 0.f;
        q_sum[e / 2 % ROWS] += q[e];
        if (exists) q_x_sum = fmaf(q[e], dot, q_x_sum);
        if (SPECIAL && E::KIND == Kind::F32 && positive && exists) place.positives[place.row + i] = q[e], q[e] = 0.f;
      }
    }
    if constexpr (GRADIENT) put_pairs<E>(put, j, packed, q);
  }
  add_q(sums, q_sum, q_x_sum, c);
  sums.loss += fmaf(large, LN2, log1p_nonnegative(total_product(product)));
}

// One fragment of a warp, 16 rows x 2 N columns, where all pairs exist and are negative: by the cheapest path that is exact for it. The usual one comes first,
// in one piece; all others lie behind it. All lanes call it together.
template <class E, bool GRADIENT, u32 N, class X, class Put, class Constants>
DEV void pairs_plain(const X& x, const Put& put, PairSums& sums, const Constants& c) {
  if (__builtin_expect(sums.faint, 1) && __builtin_expect(pairs_faint<E, GRADIENT, N>(x, put, sums, c), 1)) return;
  const float largest = largest_logit<N>(x, c);
  sums.faint = __all_sync(~0u, largest < FAINT_LOG2<N>);
  if (__all_sync(~0u, largest < QUIET_LOG2<N>)) pairs_quiet<E, GRADIENT, N>(x, put, sums, c);
  else pairs_general<E, GRADIENT, false, N>(x, put, sums, c, {});
}

// The same with unrounded q in the places of their dot products, so none is tried on trust.
template <u32 N, class Constants> DEV void pairs_in_place(float* x, PairSums& sums, const Constants& c) {
  const InRegisters dots{x};
  const auto put = [&](u32 j, const float (&q)[4]) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) x[4 * j + e] = q[e];
  };
  const float largest = largest_logit<N>(dots, c);
  if (__builtin_expect(__all_sync(~0u, largest < FAINT_LOG2<N>), 1)) pairs_faint<Unrounded, true, N>(dots, put, sums, c);
  else if (__all_sync(~0u, largest < QUIET_LOG2<N>)) pairs_quiet<Unrounded, true, N>(dots, put, sums, c);
  else pairs_general<Unrounded, true, false, N>(dots, put, sums, c, {});
}
template <u32 N, class Constants> DEV void pairs_special_in_place(float* x, PairSums& sums, const Constants& c, const FragmentPlace& place) {
  const auto put = [&](u32 j, const float (&q)[4]) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) x[4 * j + e] = q[e];
  };
  pairs_general<Unrounded, true, true, N>(InRegisters{x}, put, sums, c, place);
}

// The same of a short fragment where there may be positives, and pairs that do not exist.
template <class E, bool GRADIENT, u32 N, class X, class Put, class Constants>
DEV void pairs_short(const X& x, const Put& put, PairSums& sums, const Constants& c, const FragmentPlace& place) {
  if (is_plain(place, N * 2)) pairs_plain<E, GRADIENT, N>(x, put, sums, c);
  else pairs_general<E, GRADIENT, true, N>(x, put, sums, c, place);
}

// Any fragment of a warp in registers, by the cheapest path that is exact for it. All lanes call it together.
template <class E, bool GRADIENT, u32 N, class Constants>
DEV void pairs(float* x, u32* packed, PairSums& sums, const Constants& c, const FragmentPlace& place) {
  constexpr int COLS = N * 2;     // 16 rows x COLS columns over 32 lanes
  constexpr bool LONG = N == 64;  // a fragment whose general path is long
  const auto put = [&](u32 i, const u32 (&of)[4]) {
#pragma unroll
    for (u32 k = 0; k < 4; ++k) packed[4 * i + k] = of[k];
  };
  const bool positives = has_positives(place, COLS);
  if (!is_whole(place, COLS) || (positives && !(LONG && c.scale_log2 > LEAST_SCALE))) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const int skipped = (int)half * COLS / 2;
      const FragmentPlace part = {place.diagonal - skipped, place.rows, place.cols - skipped, place.lane, place.positives, place.row};
      const auto put_part = [&](u32 i, const u32 (&of)[4]) { put(half * (N / 16) + i, of); };
      pairs_general<E, GRADIENT, true, N / 2>(InRegisters{x + half * N / 2}, put_part, sums, c, part);
    }
    return;
  }
  Positives taken;
  if constexpr (LONG)
    if (__builtin_expect(positives, 0)) taken.take<E, GRADIENT, N>(x, sums, c, place);
  pairs_plain<E, GRADIENT, N>(InRegisters{x}, put, sums, c);
  if constexpr (LONG && GRADIENT)
    if (__builtin_expect(positives, 0)) taken.put<N>(packed);
}
