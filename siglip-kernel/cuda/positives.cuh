// The pairs that are kept out of the products (f32, and route int8): row i of one side with row i + shift of the other.
#pragma once
#include "element.cuh"

template <class E> struct PositivePairs {
  const float* q;  // by image row; null: none are kept out
  const typename E::Storage* other;
  u64 other_stride;
  i64 shift, other_rows;
  u32 by_other;  // 1: the other side's rows are the images

  struct Pair {
    const typename E::Storage* other;  // null: this row has none
    float q;
  };
  DEV Pair of(u64 row) const {
    const i64 partner = (i64)row + shift;
    if (!q || partner < 0 || partner >= other_rows) return {nullptr, 0.f};
    return {other + partner * other_stride, q[by_other ? partner : (i64)row]};
  }
};
