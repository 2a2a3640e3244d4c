// Queries or documents in device memory: token rows, cut into texts.
#pragma once
#include "base.cuh"
#include "element.cuh"

#define MINUS_INFINITY __int_as_float(0xff800000)
constexpr u32 HOLES = 1u << 31;  // in `ends`: some token before the last kept one is masked

struct Texts {
  const void* rows;    // elements
  u64 row_stride;      // elements
  const u64* offsets;  // text i is rows offsets[i] .. offsets[i + 1]; null: padded, `length` rows each
  u64 length;
  const u32* ends;      // of a masked side, per text: one past the last kept token, and HOLES; null without a mask
  const int* firsts;    // of a masked side, per text: the first kept token, or -1
  const u32* bits;      // of a masked side: the mask, text i from word `bit_word(i)` on
  const float* scales;  // per row 1 / sqrt(max(|x|^2, 1e-12)); null unless tokens are normalised
  u32 count;

  DEV u64 start(u32 text) const { return offsets ? offsets[text] : text * length; }
  DEV u32 size(u32 text) const { return (u32)(offsets ? offsets[text + 1] - offsets[text] : length); }
  // Words of different texts never overlap: floor(a / 32) + ceil(n / 32) <= floor((a + n) / 32) + 1.
  DEV u64 bit_word(u32 text) const { return start(text) / 32 + text; }
  DEV bool keeps(u32 text, u32 token) const { return !bits || bits[bit_word(text) + token / 32] >> (token % 32) & 1; }
  // Tokens up to the last kept one.
  DEV u32 end(u32 text) const { return ends ? ends[text] & ~HOLES : size(text); }
  DEV bool has_holes(u32 text) const { return ends && ends[text] & HOLES; }
  // The first kept token, or -1 when there is none.
  DEV int first(u32 text) const { return firsts ? firsts[text] : size(text) ? 0 : -1; }
};

DEV float max_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
// The best similarity and where it is. A NaN beats every number; equals go to the lower index.
struct Best {
  float value;
  int index;
  DEV bool yields_to(float other) const { return other > value || (other != other && value == value); }
  DEV void merge(float other, int at) {
    const bool same = other == value || (other != other && value != value);
    if (yields_to(other) || (same && (u32)at < (u32)index)) value = other, index = at;
  }
};

// Of a token with this square of its length. A NaN stays NaN.
DEV float inverse_norm(float square) { return 1.f / sqrtf(max_nan(square, 1e-12f)); }

// Eight 16-bit elements.
template <class E> DEV void unpack(float (&x)[8], const u32 (&words)[4]) {
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    if constexpr (E::KIND == Kind::BF16) x[2 * i] = __uint_as_float(words[i] << 16), x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    else x[2 * i] = f16_to_float((u16)words[i]), x[2 * i + 1] = f16_to_float((u16)(words[i] >> 16));
  }
}
