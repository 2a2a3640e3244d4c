// V consecutive elements between memory and f32 registers: 16-byte accesses when V is 8 (the address must allow it), single ones otherwise.
#pragma once
#include "element.cuh"

template <class E, u32 V> DEV void load_vector(const typename E::Storage* from, float (&to)[V]) {
  if constexpr (V == 1) to[0] = E::load(from);
  else if constexpr (E::KIND == Kind::F32) {
#pragma unroll
    for (u32 i = 0; i < V; i += 4) {
      const float4 part = *reinterpret_cast<const float4*>(from + i);
      to[i] = part.x, to[i + 1] = part.y, to[i + 2] = part.z, to[i + 3] = part.w;
    }
  } else {
    static_assert(V == 8, "eight 16-bit elements are 16 bytes");
    const uint4 part = *reinterpret_cast<const uint4*>(from);
    const u32 words[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u16 pair[2] = {(u16)words[i], (u16)(words[i] >> 16)};
      to[2 * i] = E::load(pair), to[2 * i + 1] = E::load(pair + 1);
    }
  }
}

template <class E, u32 V> DEV void store_vector(typename E::Storage* to, const float (&from)[V]) {
  if constexpr (V == 1) E::store(to, from[0]);
  else if constexpr (E::KIND == Kind::F32) {
#pragma unroll
    for (u32 i = 0; i < V; i += 4) *reinterpret_cast<float4*>(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
  } else {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(E::pack(from[0], from[1]), E::pack(from[2], from[3]), E::pack(from[4], from[5]), E::pack(from[6], from[7]));
  }
}
