// Weighted sums of token rows, in f32 registers: what both gradients are made of.
//
// A row is read by LANES lanes of a warp, VECTOR elements (16 bytes) at a time and SLICES times; a warp sums 32 / LANES rows at once, each group
// of lanes its own: of different sums, or of one, and then adds the groups at the end. The order of the additions depends on nothing but the list.
#pragma once
#include "texts.cuh"
#include "numerics.cuh"

// A load that is not valid reads nothing and gives zeros.
template <class E> struct Vector;
template <> struct Vector<F32> {
  static constexpr u32 SIZE = 4;
  static DEV void load(float (&x)[SIZE], const float* p, bool valid = true) {
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    if (valid) v = *reinterpret_cast<const float4*>(p);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  }
  static DEV void store(float* p, const float (&x)[SIZE]) { *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]); }
};
template <class E> struct Vector {
  static constexpr u32 SIZE = 8;
  static DEV void load(float (&x)[SIZE], const u16* p, bool valid = true) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (valid) v = *reinterpret_cast<const uint4*>(p);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    unpack<E>(x, words);
  }
  static DEV void store(u16* p, const float (&x)[SIZE]) {
    *reinterpret_cast<uint4*>(p) = make_uint4(E::pack(x[0], x[1]), E::pack(x[2], x[3]), E::pack(x[4], x[5]), E::pack(x[6], x[7]));
  }
};
template <class E> struct Scalar {
  static constexpr u32 SIZE = 1;
  static DEV void load(float (&x)[1], const typename E::Storage* p, bool valid = true) { x[0] = valid ? E::load(p) : 0.f; }
  static DEV void store(typename E::Storage* p, const float (&x)[1]) { E::store(p, x[0]); }
};

// Access: Vector<E> or Scalar<E>.
template <class E, class Access, u32 LANES, u32 SLICES> struct RowSum {
  static constexpr u32 SIZE = Access::SIZE, GROUPS = WARP / LANES;
  typedef typename E::Storage Storage;
  float sum[SLICES][SIZE];

  DEV void clear() {
#pragma unroll
    for (u32 s = 0; s < SLICES; ++s)
#pragma unroll
      for (u32 i = 0; i < SIZE; ++i) sum[s][i] = 0.f;
  }
  // Whether all of the group's sums are 0.
  DEV bool is_zero() const {
    bool zero = true;
#pragma unroll
    for (u32 s = 0; s < SLICES; ++s)
#pragma unroll
      for (u32 i = 0; i < SIZE; ++i) zero &= sum[s][i] == 0.f;
    const u32 zeros = __ballot_sync(~0u, zero) >> group() * LANES, all = LANES == WARP ? ~0u : (1u << LANES % WARP) - 1;
    return (zeros & all) == all;
  }
  // Where slice `s` of this lane lies in a row.
  static DEV u32 column(u32 s) { return (s * LANES + threadIdx.x % LANES) * SIZE; }
  static DEV u32 group() { return threadIdx.x % WARP / LANES; }

  // Nothing of a row that is not `valid`, whatever its weight.
  DEV void add(const Storage* row, float weight, u32 dim, bool valid = true) { add_from(row + column(0), weight, dim, valid); }
  // `at`: this lane's first element of the row.
  DEV void add_from(const Storage* at, float weight, u32 dim, bool valid = true) {
#pragma unroll
    for (u32 s = 0; s < SLICES; ++s) {
      float x[SIZE];
      Access::load(x, at + s * LANES * SIZE, valid && column(s) < dim);
#pragma unroll
      for (u32 i = 0; i < SIZE; ++i) sum[s][i] = fmaf(valid ? weight : 0.f, x[i], sum[s][i]);
    }
  }
  // Every group ends with the sum of all.
  DEV void combine() {
#pragma unroll
    for (u32 offset = LANES; offset < WARP; offset *= 2)
#pragma unroll
      for (u32 s = 0; s < SLICES; ++s)
#pragma unroll
        for (u32 i = 0; i < SIZE; ++i) sum[s][i] += __shfl_xor_sync(~0u, sum[s][i], offset);
  }
  // The gradient of x / sqrt(max(|x|^2, 1e-12)) turned into that of x: inverse * (g - x * <x, g> * inverse^2), without the second term
  // where the norm is held at its floor. Of a row that is not `valid` nothing is read. By the whole warp.
  DEV void through_norm(const Storage* row, float inverse, u32 dim, bool valid = true) {
    float x[SLICES][SIZE], inner = 0.f;
#pragma unroll
    for (u32 s = 0; s < SLICES; ++s) {
      Access::load(x[s], row + column(s), valid && column(s) < dim);
#pragma unroll
      for (u32 i = 0; i < SIZE; ++i) inner = fmaf(x[s][i], column(s) < dim ? sum[s][i] : 0.f, inner);
    }
#pragma unroll
    for (u32 offset = 1; offset < LANES; offset *= 2) inner += __shfl_xor_sync(~0u, inner, offset);
    const float along = inverse < 0.999999e6f || inverse != inverse ? inner * inverse * inverse : 0.f;
#pragma unroll
    for (u32 s = 0; s < SLICES; ++s)
#pragma unroll
      for (u32 i = 0; i < SIZE; ++i) sum[s][i] = inverse * fmaf(-x[s][i], along, sum[s][i]);
  }
  DEV void store(Storage* row, u32 dim) const {
#pragma unroll
    for (u32 s = 0; s < SLICES; ++s)
      if (column(s) < dim) Access::store(row + column(s), sum[s]);
  }
  // To and from f32 scratch.
  DEV void spill(float* to, u32 dim) const {
#pragma unroll
    for (u32 s = 0; s < SLICES; ++s)
#pragma unroll
      for (u32 i = 0; i < SIZE; ++i)
        if (column(s) < dim) to[column(s) + i] = sum[s][i];
  }
  DEV void add_spilled(const float* from, u32 dim) {
#pragma unroll
    for (u32 s = 0; s < SLICES; ++s)
#pragma unroll
      for (u32 i = 0; i < SIZE; ++i)
        if (column(s) < dim) sum[s][i] += from[column(s) + i];
  }
};
