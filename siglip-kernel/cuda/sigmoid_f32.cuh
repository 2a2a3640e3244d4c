// The SigLIP pair loss and its gradient on a fragment of dot products, in registers, to f32's own accuracy: for logits whose products are f32.
//
// u = e^-|z| (or e^z) comes from one ex2, whose argument is reduced first: z log2(e) = n + f with n whole and |f| <= 1/2, each part of the sum kept
// apart until n is known, so that f is off by 2^-24 whatever z is. ex2 adds 2^-22, the sigmoid from u one rounding of each of its three operations
// (rcp is refined once). The loss takes one log1p for a thread's 32 pairs, of S = prod(1 + u) - 1 kept without cancellation: 32 roundings at most.
//
// Two paths with these bounds: `quiet` where every pair is negative with z below ln 2, `general` for any.
#pragma once
#include "base.cuh"
#include "numerics.cuh"
#include "ptx/math.cuh"

// exp(log_temp) log2(e) in two parts, bias log2(e) as a whole number and the rest.
struct LogitConstants {
  float scale, scale_rest, bias_whole, bias_rest;
  LogitConstants() = default;
  DEV LogitConstants(float log_temp, float bias) {
    constexpr double LOG2E_F64 = 1.4426950408889634074;
    const double s = exp((double)log_temp) * LOG2E_F64, b = (double)bias * LOG2E_F64;
    scale = (float)s;
    scale_rest = (float)(s - (double)scale);
    bias_whole = (float)rint(b);
    bias_rest = (float)(b - (double)bias_whole);
  }
};

// Sums over pairs, of this thread.
struct LogitSums {
  double loss = 0.0, q = 0.0, q_x = 0.0;
  DEV void add(float loss_, float q_, float q_x_) { loss += (double)loss_, q += (double)q_, q_x += (double)q_x_; }
};

// A warp's 16 rows x 64 columns. Element 4 * j + e is row lane / 4 + 8 * (e / 2), column 8 * j + 2 * (lane % 4) + e % 2.
struct LogitPlace {
  i64 diagonal;    // a pair is positive when column - row == diagonal, both within the fragment
  int rows, cols;  // pairs at or beyond these do not exist
  u32 lane;
  float* positive;  // q of the fragment's positive pairs, by its rows
};

constexpr float WHOLE = 12582912.f;  // 1.5 2^23: adding it leaves the nearest whole number in the low bits

// prod(1 + u) - 1 of four parts.
DEV float join(const float (&s)[4]) {
  const float p = fmaf(s[0], s[1], s[0] + s[1]), r = fmaf(s[2], s[3], s[2] + s[3]);
  return fmaf(p, r, p + r);
}
// 1 / x, refined.
DEV float inverse_of(float x) {
  const float guess = reciprocal(x);
  return fmaf(guess, fmaf(-x, guess, 1.f), guess);
}

template <bool GRADIENT> DEV void pairs_quiet(float (&x)[32], LogitSums& sums, const LogitConstants& c) {
  float product[4] = {0.f, 0.f, 0.f, 0.f}, q_sum[2] = {0.f, 0.f}, q_x_sum[2] = {0.f, 0.f};
  const float shift = WHOLE + 127.f + c.bias_whole, least = -127.f - c.bias_whole;
#pragma unroll
  for (u32 i = 0; i < 32; ++i) {
    const float dot = x[i];
    // Below 2^-126 the bound keeps the exponent a valid one, 0, and f makes u 0; a NaN passes through f.
    const float biased = fmaxf(fmaf(c.scale, dot, c.bias_rest), least) + shift, part = biased - shift;
    const float f = fmaf(c.scale, dot, -part) + fmaf(c.scale_rest, dot, c.bias_rest);
    const float u = exp2_approx(f) * __int_as_float(__float_as_int(biased) << 23), one_u = 1.f + u;
    product[i % 4] = fmaf(product[i % 4], one_u, u);
    if constexpr (GRADIENT) {
      x[i] = u * inverse_of(one_u);
      q_sum[i % 2] += x[i];
      q_x_sum[i % 2] = fmaf(x[i], dot, q_x_sum[i % 2]);
    }
  }
  sums.add(log1pf(join(product)), q_sum[0] + q_sum[1], q_x_sum[0] + q_x_sum[1]);
}

// SPECIAL: there may be positive pairs, and pairs that do not exist. Gives the largest q it leaves.
template <bool GRADIENT, bool SPECIAL>
DEV float pairs_general(float (&x)[32], LogitSums& sums, const LogitConstants& c, const LogitPlace& place) {
  float product[4] = {0.f, 0.f, 0.f, 0.f}, large[2] = {0.f, 0.f}, q_sum[2] = {0.f, 0.f}, q_x_sum[2] = {0.f, 0.f}, most = 0.f;
  const int row = (int)place.lane / 4, column = (int)place.lane % 4 * 2;
#pragma unroll
  for (u32 i = 0; i < 32; ++i) {
    const int at_row = row + (i % 4) / 2 * 8, at_column = column + i / 4 * 8 + i % 2;
    const bool exists = !SPECIAL || (at_row < place.rows && at_column < place.cols);
    const bool positive = SPECIAL && exists && (i64)(at_column - at_row) == place.diagonal;
    const float dot = x[i];
    const float part = (fmaf(c.scale, dot, c.bias_rest) + WHOLE) - WHOLE, n = part + c.bias_whole;
    const float f = fmaf(c.scale, dot, -part) + fmaf(c.scale_rest, dot, c.bias_rest);
    const float t = n + f;  // z log2(e)
    // Beyond 2^22 n is not the nearest and f any number, but 2^-|n| is 0 then: the bound keeps their product from being NaN, and NaN as it is.
    const float power = __int_as_float(__float_as_int(fmaxf(-fabsf(n), -127.f) + (WHOLE + 127.f)) << 23);
    const float u = exp2_approx(min_nan(t >= 0.f ? -f : f, 1.f)) * power, one_u = 1.f + u;
    const float a = positive ? -t : t;
    if (exists) {
      large[i % 2] += fmaxf(a, 0.f);
      product[i % 4] = fmaf(product[i % 4], one_u, u);
    }
    if constexpr (GRADIENT) {
      const float sigmoid = (a >= 0.f ? 1.f : u) * inverse_of(one_u), q = positive ? -sigmoid : sigmoid;
      if (exists) {
        q_sum[i % 2] += q;
        q_x_sum[i % 2] = fmaf(q, dot, q_x_sum[i % 2]);
      }
      x[i] = exists && !positive ? q : 0.f;
      most = fmaxf(most, x[i]);
      if (positive) place.positive[at_row] = q;
    }
  }
  sums.add(fmaf(large[0] + large[1], LN2, log1pf(join(product))), q_sum[0] + q_sum[1], q_x_sum[0] + q_x_sum[1]);
  return most;
}

// x, dot products, become q, and 0 where the pair is positive or does not exist: q of a positive pair, large beside all others, goes to a place of
// its own. Gives a bound on the thread's q (with GRADIENT), at most three times the largest of the warp. All lanes call it together.
template <bool GRADIENT> DEV float logit_pairs(float (&x)[32], LogitSums& sums, const LogitConstants& c, const LogitPlace& place) {
  const bool plain = place.rows >= 16 && place.cols >= 64 && (place.diagonal <= -16 || place.diagonal >= 64);
  if (!plain) return pairs_general<GRADIENT, true>(x, sums, c, place);
  float most = x[0];  // of numbers
#pragma unroll
  for (u32 i = 1; i < 32; ++i) most = fmaxf(most, x[i]);
  const float t = fmaf(c.scale, most, c.bias_rest) + c.bias_whole;
  // `shift` of the quiet path must be whole; NaN fails both.
  if (!__all_sync(~0u, t < 1.f && fabsf(c.bias_whole) < 65536.f)) return pairs_general<GRADIENT, false>(x, sums, c, place);
  pairs_quiet<GRADIENT>(x, sums, c);
  return exp2_approx(t) * 1.0001f;  // q < e^z; t is off by less than 2^-8 at any bias that comes here, and planes have room for twice as much
}
