// Passes over matrices in memory: the gate, its derivative, and the rounding of a sum.
//   ELEMENT: F32, BF16 or F16    VECTOR: elements of an access, 8 or 1
#include "gate.cuh"
#include "ptx/sync.cuh"
#include "vector.cuh"

typedef ELEMENT::Storage Storage;
constexpr bool EXACT = ELEMENT::KIND == Kind::F32;

// Where a thread works: on eight neighbouring elements, or one. A grid of all of them streams faster than a smaller one that walks.
struct Place {
  u64 row;
  u32 column;
  DEV explicit Place(u32 vectors) {
    const u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    row = index / vectors, column = (u32)(index - row * vectors) * VECTOR;
  }
};

template <class Body> DEV void with_gate(Gate gate, const Body& body) {
  switch (gate) {
    case Gate::SILU: return body.template operator()<Gate::SILU>();
    case Gate::GELU_TANH: return body.template operator()<Gate::GELU_TANH>();
    case Gate::RELU: return body.template operator()<Gate::RELU>();
    case Gate::SIGMOID: return body.template operator()<Gate::SIGMOID>();
  }
}

DEV void add_bias(float (&values)[VECTOR], const Storage* bias, u32 column) {
  if (!bias) return;
#pragma unroll
  for (u32 i = 0; i < VECTOR; ++i) values[i] += ELEMENT::load(bias + column + i);
}

struct GateForwardParams {
  const float *gate, *up;  // pre-activations without bias, [rows, vectors * VECTOR], rows `stride` elements apart
  u64 stride;
  const Storage *gate_bias, *up_bias;  // or null
  Storage* z;  // or null
  u64 z_stride;
  Storage *gate_saved, *up_saved;  // or null: with bias, rounded
  u64 saved_stride, rows;
  u32 vectors;
  Gate activation;
};

struct GateForward {
  const GateForwardParams& p;
  template <Gate GATE> DEV void operator()() const {
    const Place at(p.vectors);
    if (at.row >= p.rows) return;
    float g[VECTOR], u[VECTOR], z[VECTOR];
    load_vector<F32, VECTOR>(p.gate + at.row * p.stride + at.column, g);
    load_vector<F32, VECTOR>(p.up + at.row * p.stride + at.column, u);
    add_bias(g, p.gate_bias, at.column);
    add_bias(u, p.up_bias, at.column);
#pragma unroll
    for (u32 i = 0; i < VECTOR; ++i) z[i] = activate<GATE, EXACT>(g[i]) * u[i];
    if (p.z) store_vector<ELEMENT, VECTOR>(p.z + at.row * p.z_stride + at.column, z);
    if (p.gate_saved) {
      store_vector<ELEMENT, VECTOR>(p.gate_saved + at.row * p.saved_stride + at.column, g);
      store_vector<ELEMENT, VECTOR>(p.up_saved + at.row * p.saved_stride + at.column, u);
    }
  }
};

KERNEL __launch_bounds__(256) swiglu_gate_forward(const __grid_constant__ GateForwardParams params) {
  grid_dependency_wait();
  with_gate(params.activation, GateForward{params});
}

struct GateBackwardParams {
  const Storage *gate, *up;  // pre-activations, rows `stride` elements apart
  u64 stride;
  const Storage* dz;
  u64 dz_stride;
  Storage *d_gate, *d_up;  // may be `gate` and `up`
  u64 d_stride;
  Storage* z;  // or null; may be `dz`
  u64 z_stride, rows;
  u32 vectors;
  Gate activation;
};

struct GateBackward {
  const GateBackwardParams& p;
  template <Gate GATE> DEV void operator()() const {
    const Place at(p.vectors);
    if (at.row >= p.rows) return;
    // The last rows first: of a forward just before, those are still in the L2; and the products just after begin with the first ones.
    const u64 row = p.rows - 1 - at.row;
    float g[VECTOR], u[VECTOR], dz[VECTOR], z[VECTOR];
    load_vector<ELEMENT, VECTOR>(p.gate + row * p.stride + at.column, g);
    load_vector<ELEMENT, VECTOR>(p.up + row * p.stride + at.column, u);
    load_vector<ELEMENT, VECTOR>(p.dz + row * p.dz_stride + at.column, dz);
#pragma unroll
    for (u32 i = 0; i < VECTOR; ++i) {
      const Activation a = activate_with_slope<GATE, EXACT>(g[i]);
      z[i] = a.value * u[i];
      g[i] = dz[i] * u[i] * a.slope;
      u[i] = dz[i] * a.value;
    }
    store_vector<ELEMENT, VECTOR>(p.d_gate + row * p.d_stride + at.column, g);
    store_vector<ELEMENT, VECTOR>(p.d_up + row * p.d_stride + at.column, u);
    if (p.z) store_vector<ELEMENT, VECTOR>(p.z + row * p.z_stride + at.column, z);
  }
};

KERNEL __launch_bounds__(256) swiglu_gate_backward(const __grid_constant__ GateBackwardParams params) {
  grid_dependency_wait();
  with_gate(params.activation, GateBackward{params});
}

struct RoundingParams {
  const float* from;  // [rows, vectors * VECTOR], rows `from_stride` elements apart
  u64 from_stride;
  Storage* to;
  u64 to_stride, rows;
  u32 vectors;
};

KERNEL __launch_bounds__(256) swiglu_round(const __grid_constant__ RoundingParams params) {
  const Place at(params.vectors);
  grid_dependency_wait();
  if (at.row >= params.rows) return;
  float values[VECTOR];
  load_vector<F32, VECTOR>(params.from + at.row * params.from_stride + at.column, values);
  store_vector<ELEMENT, VECTOR>(params.to + at.row * params.to_stride + at.column, values);
}
