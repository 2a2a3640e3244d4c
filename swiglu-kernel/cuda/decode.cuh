// What both decode kernels share: a warp's accumulators, and what becomes of them.
#pragma once
#include "gate.cuh"
#include "ptx/matrix.cuh"
#include "ptx/sync.cuh"

enum class WeightMajor { K, MN };
constexpr bool LINEAR = WeightMajor::WEIGHTS == WeightMajor::K;

// acc[half][j][e]: column lane / 4 + 8 * (e / 2) of the warp's 16, token 8 * j + 2 * (lane % 4) + e % 2; half 0 is the gate's.
typedef float Accumulators[2][TOKENS / 8][4];

struct DecodeOutput {
  const u16 *gate_bias, *up_bias;  // or null
  u16* z;  // or null
  u64 z_stride;
  u16 *gate_saved, *up_saved;  // or null
  u64 saved_stride;
  u32 rows, outputs;
  Gate activation;
};

// 16 tokens from 16 * j on: both projections by two right operands.
DEV void multiply(Accumulators& acc, u32 j, const u32 (&gate)[4], const u32 (&up)[4], const u32 (&b)[4]) {
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    mma_m16n8k16<ELEMENT>(acc[0][2 * j + i], gate, b[2 * i], b[2 * i + 1]);
    mma_m16n8k16<ELEMENT>(acc[1][2 * j + i], up, b[2 * i], b[2 * i + 1]);
  }
}

template <Gate GATE> DEV void finish_as(const Accumulators& acc, const DecodeOutput& p, u32 first, u32 end, u32 lane) {
#pragma unroll
  for (u32 pair = 0; pair < 2; ++pair) {
    const u32 n = first + lane / 4 + 8 * pair;
    if (n >= end) continue;
    const float gate_bias = p.gate_bias ? ELEMENT::load(p.gate_bias + n) : 0.f, up_bias = p.up_bias ? ELEMENT::load(p.up_bias + n) : 0.f;
#pragma unroll
    for (u32 j = 0; j < TOKENS / 8; ++j)
#pragma unroll
      for (u32 e = 0; e < 2; ++e) {
        const u32 token = 8 * j + 2 * (lane % 4) + e;
        if (token >= p.rows) continue;
        const float g = acc[0][j][2 * pair + e] + gate_bias, u = acc[1][j][2 * pair + e] + up_bias;
        if (p.z) ELEMENT::store(p.z + token * p.z_stride + n, activate<GATE, false>(g) * u);
        if (p.gate_saved) {
          ELEMENT::store(p.gate_saved + token * p.saved_stride + n, g);
          ELEMENT::store(p.up_saved + token * p.saved_stride + n, u);
        }
      }
  }
}

// Columns first..first + 16 of z, as far as they lie before `end`.
DEV void finish(const Accumulators& acc, const DecodeOutput& p, u32 first, u32 end, u32 lane) {
  switch (p.activation) {
    case Gate::SILU: return finish_as<Gate::SILU>(acc, p, first, end, lane);
    case Gate::GELU_TANH: return finish_as<Gate::GELU_TANH>(acc, p, first, end, lane);
    case Gate::RELU: return finish_as<Gate::RELU>(acc, p, first, end, lane);
    case Gate::SIGMOID: return finish_as<Gate::SIGMOID>(acc, p, first, end, lane);
  }
}
