// How the kernels that quantise inputs walk their rows.
//   ELEMENT: BF16 or F16
#pragma once
#include "element.cuh"

constexpr u32 VECTOR = 8;  // elements of a load
struct Vector {
  float x[VECTOR];
  DEV explicit Vector(const ELEMENT::Storage* from) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    const u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (u32 i = 0; i < VECTOR; ++i) {
      const ELEMENT::Storage element = (ELEMENT::Storage)(words[i / 2] >> (i % 2 * 16));
      x[i] = ELEMENT::load(&element);
    }
  }
};

DEV bool is_finite(float x) { return fabsf(x) < __int_as_float(0x7f800000); }

// A warp takes a row at a time, of all rows of the grid's y.
struct Rows {
  u32 lane = threadIdx.x % WARP, first = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, step = gridDim.x * (blockDim.x / WARP);
};
