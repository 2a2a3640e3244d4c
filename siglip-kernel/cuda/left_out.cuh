// Pairs of a fragment that are taken out of it before the others are summed: positives, and those that do not exist.
#pragma once
#include "fragment.cuh"

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
