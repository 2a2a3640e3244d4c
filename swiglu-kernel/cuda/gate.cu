// The gate and its derivative as passes over pre-activations in memory.
//   ELEMENT: F32, BF16 or F16    VECTOR: elements of an access, 8 or 1
#include "gate.cuh"
#include "ptx/sync.cuh"
#include "vector.cuh"

typedef ELEMENT::Storage Storage;
constexpr bool EXACT = ELEMENT::KIND == Kind::F32;

// Where a thread is in a rows x vectors grid that all threads walk together; no division after the first.
struct Walk {
  u64 row, row_step;
  u32 vector, vector_step, vectors;
  DEV explicit Walk(u32 vectors_) : vectors(vectors_) {
    const u64 first = (u64)blockIdx.x * blockDim.x + threadIdx.x, step = (u64)gridDim.x * blockDim.x;
    row = first / vectors, vector = (u32)(first % vectors);
    row_step = step / vectors, vector_step = (u32)(step % vectors);
  }
  DEV u32 column() const { return vector * VECTOR; }
  DEV void next() {
    row += row_step, vector += vector_step;
    if (vector >= vectors) vector -= vectors, ++row;
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
    for (Walk at(p.vectors); at.row < p.rows; at.next()) {
      const u32 column = at.column();
      float g[VECTOR], u[VECTOR], z[VECTOR];
      load_vector<F32, VECTOR>(p.gate + at.row * p.stride + column, g);
      load_vector<F32, VECTOR>(p.up + at.row * p.stride + column, u);
      add_bias(g, p.gate_bias, column);
      add_bias(u, p.up_bias, column);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) z[i] = activate<GATE, EXACT>(g[i]) * u[i];
      if (p.z) store_vector<ELEMENT, VECTOR>(p.z + at.row * p.z_stride + column, z);
      if (p.gate_saved) {
        store_vector<ELEMENT, VECTOR>(p.gate_saved + at.row * p.saved_stride + column, g);
        store_vector<ELEMENT, VECTOR>(p.up_saved + at.row * p.saved_stride + column, u);
      }
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
    for (Walk at(p.vectors); at.row < p.rows; at.next()) {
      const u32 column = at.column();
      float g[VECTOR], u[VECTOR], dz[VECTOR], z[VECTOR];
      load_vector<ELEMENT, VECTOR>(p.gate + at.row * p.stride + column, g);
      load_vector<ELEMENT, VECTOR>(p.up + at.row * p.stride + column, u);
      load_vector<ELEMENT, VECTOR>(p.dz + at.row * p.dz_stride + column, dz);
#pragma unroll
      for (u32 i = 0; i < VECTOR; ++i) {
        const Activation a = activate_with_slope<GATE, EXACT>(g[i]);
        z[i] = a.value * u[i];
        g[i] = dz[i] * u[i] * a.slope;
        u[i] = dz[i] * a.value;
      }
      store_vector<ELEMENT, VECTOR>(p.d_gate + at.row * p.d_stride + column, g);
      store_vector<ELEMENT, VECTOR>(p.d_up + at.row * p.d_stride + column, u);
      if (p.z) store_vector<ELEMENT, VECTOR>(p.z + at.row * p.z_stride + column, z);
    }
  }
};

KERNEL __launch_bounds__(256) swiglu_gate_backward(const __grid_constant__ GateBackwardParams params) {
  grid_dependency_wait();
  with_gate(params.activation, GateBackward{params});
}
