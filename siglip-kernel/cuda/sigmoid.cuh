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
  // What the terms add to the sum of q x, from sums of q by row: nothing at a scale that leaves no logit but the bias.
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

constexpr float FAINT_SQUARES = 7.6e-6f;
// log2 of u that is certainly faint: N squares of it, up to 64 or 96, stay below that bound on their sum.
template <u32 N> constexpr float FAINT_LOG2 = N > 64 ? -11.8f : -11.6f;

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

// Whether all pairs of a fragment of that many columns exist; whether there may be positives among them.
DEV bool is_whole(const FragmentPlace& place, int cols) { return place.rows >= 16 && place.cols >= cols; }
DEV bool has_positives(const FragmentPlace& place, int cols) { return place.diagonal > -16 && place.diagonal < cols; }
DEV bool is_plain(const FragmentPlace& place, int cols) { return is_whole(place, cols) && !has_positives(place, cols); }

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

// A dot product whose pair adds nothing, at any scale above LEAST_SCALE.
constexpr float ABSENT = -3e38f, LEAST_SCALE = 1e-20f;

// Makes pairs of a fragment that do not exist such ones.
template <u32 N> DEV void leave_out(float* x, const FragmentPlace& place) {
  const int row = place.lane / 4, cols = place.cols - (int)(place.lane % 4 * 2);
  const int end[2] = {row < place.rows ? cols : 0, row + 8 < place.rows ? cols : 0};
#pragma unroll
  for (u32 j = 0; j < N; ++j)
    if ((int)(j / 4 * 8 + j % 2) >= end[j / 2 % 2]) x[j] = ABSENT;
}

// The positive pairs of a fragment: at most one for each of a lane's two rows. They are summed and taken out before the others, which then
// go the usual way, and their q put in afterwards: other paths are long, and a block meets them once, when no instruction cache holds them.
struct Positives {
  u32 at;  // which elements they are, 8 bits for each row; N for none
  u32 q;   // packed, of both rows

  template <class E, bool GRADIENT, u32 N, class Constants> DEV void take(float* x, PairSums& sums, const Constants& c, const FragmentPlace& place) {
    float q_of[2];
    at = 0;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 i = place.lane / 4 + half * 8, k = i + (u32)place.diagonal;
      const bool here = k < 2 * N && k % 8 / 2 == place.lane % 4 && (int)i < place.rows && (int)k < place.cols;
      const u32 element = here ? k / 8 * 4 + half * 2 + k % 2 : N;
      float dot = 0.f;
#pragma unroll
      for (u32 j = 0; j < N; ++j)
        if (j / 2 % 2 == half && j == element) dot = x[j], x[j] = ABSENT;
      if (place.positives && here) dot = place.positives[place.row + i];
      const float a = -fmaf(dot, c.scale_log2, c.bias(half)), u = exp2_approx(-fabsf(a));
      const float q_here = (a >= 0.f ? -GAIN<E> : -u * GAIN<E>) * reciprocal(1.f + u);
      if (here) {
        sums.loss += fmaf(fmaxf(a, 0.f), LN2, log1p_nonnegative(u));
        if (GRADIENT) sums.q += q_here, sums.q_x = fmaf(q_here, dot, sums.q_x);
      }
      q_of[half] = here ? q_here : 0.f;
      at |= element << 8 * half;
    }
    if constexpr (GRADIENT) q = E::pack(q_of[0], q_of[1]);
  }
  // The same into rows that are staged already: `element(row, column)` is where one lies in shared memory. Only `q` of what was taken is looked at.
  template <u32 N, class Element> DEV void put_staged(const FragmentPlace& place, const Element& element) const {
    __syncwarp();  // other lanes wrote there
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 i = place.lane / 4 + half * 8, k = i + (u32)place.diagonal;
      if (k < 2 * N && k % 8 / 2 == place.lane % 4) store_shared_16bit(element(i, k), q >> 16 * half);
    }
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

// A fragment's sums into the warp's slot, without gain and unit.
template <class E> DEV void store_sums(double* to, u32 slot, const PairSums& sums, bool first, u32 lane, int unit_log2 = 0) {
  constexpr double INVERSE = 1. / GAIN<E>;
  add_to_slot(to, slot, sums.loss, sums.q * INVERSE, ldexp(sums.q_x * INVERSE, unit_log2), first, lane);
}
