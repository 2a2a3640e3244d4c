// The power of two that brings numbers into the range where two f16 planes hold them best.
#pragma once
#include "base.cuh"
#include "ptx/math.cuh"

// From the bits of the largest magnitude: scaled it lies in [2^14, 2^15), so that no sum of two planes' parts leaves f16, and what is 2^-18 of it
// or larger keeps 22 bits; smaller numbers are off by 2^-40 of the largest. An infinity or a NaN is left as it is.
struct PlaneScale {
  float scale, inverse;
  DEV explicit PlaneScale(u32 largest_bits) {
    const int exponent = (int)(largest_bits >> 23) - 127;
    const int shift = largest_bits == 0 || exponent == 128 ? 0 : min_of(14 - exponent, 126);
    scale = __int_as_float((127 + shift) << 23);
    inverse = __int_as_float((127 - shift) << 23);
  }
};

// Two scaled numbers as two f16 parts each, packed.
DEV void split(float first, float second, u32& high, u32& low) {
  high = pack_f16(first, second);
  low = pack_f16(first - f16_to_float((u16)high), second - f16_to_float((u16)(high >> 16)));
}
