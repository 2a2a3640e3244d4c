// The element types of operands, as tags: conversions to and from f32, and how many fit in a 128-byte row of a tile.
#pragma once
#include "base.cuh"
#include "ptx/math.cuh"

enum class Kind { F32, F16, BF16, E4M3, S8, U8_BY_S8 };

struct F32 {
  static constexpr Kind KIND = Kind::F32;
  typedef float Storage;
  static DEV float load(const float* p) { return *p; }
  static DEV void store(float* p, float x) { *p = x; }
};
struct BF16 {
  static constexpr Kind KIND = Kind::BF16;
  typedef u16 Storage;
  static DEV u32 pack(float low, float high) { return pack_bf16(low, high); }
  static DEV float load(const u16* p) { return bf16_to_float(*p); }
  static DEV void store(u16* p, float x) { *p = (u16)pack_bf16(x, 0.f); }
};
struct F16 {
  static constexpr Kind KIND = Kind::F16;
  typedef u16 Storage;
  static DEV u32 pack(float low, float high) { return pack_f16(low, high); }
  static DEV float load(const u16* p) { return f16_to_float(*p); }
  static DEV void store(u16* p, float x) { *p = (u16)pack_f16(x, 0.f); }
};
struct E4M3 {
  static constexpr Kind KIND = Kind::E4M3;
  typedef u8 Storage;
};
// 8-bit integers, whose products add up in s32.
struct S8 {
  static constexpr Kind KIND = Kind::S8;
  typedef u8 Storage;
};
// A unsigned, B signed.
struct U8ByS8 {
  static constexpr Kind KIND = Kind::U8_BY_S8;
  typedef u8 Storage;
};

// What sums of products are kept in.
template <class E> constexpr bool INTEGER = E::KIND == Kind::S8 || E::KIND == Kind::U8_BY_S8;
template <bool INTEGERS> struct AccumulatorOf {
  typedef float Type;
};
template <> struct AccumulatorOf<true> {
  typedef int Type;
};
template <class E> using Accumulator = typename AccumulatorOf<INTEGER<E>>::Type;
