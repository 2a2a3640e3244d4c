// The activations of gated projections and their derivatives, on f32 in registers.
//   silu       g s(g)                      GLU variants: arXiv 2002.05202
//   gelu-tanh  g s(2 sqrt(2/pi) (g + 0.044715 g^3)), which is g/2 (1 + tanh(...))
//   relu       max(g, 0), slope 0 at 0
//   sigmoid    s(g)
// with s(g) = 1 / (1 + e^-g). EXACT spends a few more instructions for f32 results; otherwise one ex2 and one rcp, relative error below 1e-6 for
// |g| <= 10 (a 16-bit rounding is 5e-4 or more).
#pragma once
#include "base.cuh"
#include "ptx/math.cuh"

enum class Gate : u32 { SILU, GELU_TANH, RELU, SIGMOID };

struct Activation {
  float value, slope;
};

template <bool EXACT> DEV float sigmoid(float g) {
  if constexpr (EXACT) return 1.f / (1.f + expf(-g));
  else return reciprocal(1.f + exp2_approx(g * -LOG2E));
}

constexpr float GELU_SCALE = 1.5957691216057308f, GELU_CUBE = 0.044715f;  // 2 sqrt(2 / pi)

template <Gate GATE, bool EXACT> DEV float activate(float g) {
  if constexpr (GATE == Gate::SILU) return g * sigmoid<EXACT>(g);
  else if constexpr (GATE == Gate::GELU_TANH) return g * sigmoid<EXACT>(GELU_SCALE * g * fmaf(GELU_CUBE * g, g, 1.f));
  else if constexpr (GATE == Gate::RELU) return g <= 0.f ? 0.f : g;  // unlike fmaxf, this keeps a NaN
  else return sigmoid<EXACT>(g);
}

template <Gate GATE, bool EXACT> DEV Activation activate_with_slope(float g) {
  if constexpr (GATE == Gate::SILU) {
    const float s = sigmoid<EXACT>(g);
    return {g * s, s * fmaf(g, 1.f - s, 1.f)};
  } else if constexpr (GATE == Gate::GELU_TANH) {
    const float square = g * g, s = sigmoid<EXACT>(GELU_SCALE * g * fmaf(GELU_CUBE, square, 1.f)), tail = s * (1.f - s);
    // Far out the tail is 0 and the rest may be infinite; the limit of their product is 0.
    const float bend = tail == 0.f ? 0.f : tail * g * GELU_SCALE * fmaf(3.f * GELU_CUBE, square, 1.f);
    return {g * s, s + bend};
  } else if constexpr (GATE == Gate::RELU) {
    return {g <= 0.f ? 0.f : g, g <= 0.f ? 0.f : 1.f};
  } else {
    const float s = sigmoid<EXACT>(g);
    return {s, s * (1.f - s)};
  }
}
