// The gate's derivative in the down projection's backward GEMM on Hopper: dz = dy W_down^T never reaches memory; each tile of it meets the saved
// pre-activations of its place and leaves as their gradients, and as z for the down projection's own gradient. The gradients may overwrite the
// pre-activations: a warp reads a piece of 16 rows x 64 columns before it writes the same piece.
//   ELEMENT: BF16 or F16    ACTIVATION: SILU, GELU_TANH, RELU or SIGMOID    DOWN: K ([N, K_out]) or MN ([K_out, N])    CLUSTER_SIZE: 1 or 2
#include "gate.cuh"
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Two slots of three buffers a warp: gate, up, z.
typedef Mainloop<ELEMENT, Major::K, Major::DOWN, Schedule::PING_PONG, CLUSTER_SIZE, 6 * 8192> Loop;
constexpr u32 PIECE_BYTES = 16 * 128, SLOTS = 2, PIECES = 4;

struct Maps {
  const TensorMap &gate, &up, &d_gate, &d_up, &z;
};

struct ThroughEpilogue {
  Maps maps;
  u32 with_z, loaded;  // `loaded`: barriers of this warp's slots
  u32 warp, lane;

  DEV void begin() {}
  DEV void tile(float (&acc)[128], u32 m0, u32 n0, u32 staging) {
    const WarpStaging stage(staging, warp);
    load(stage, m0, n0, 0);
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) {
      if (i + 1 < PIECES) load(stage, m0, n0, i + 1);
      const u32 slot = i % SLOTS, gate_at = stage.buffer(3 * slot), up_at = stage.buffer(3 * slot + 1), z_at = stage.buffer(3 * slot + 2);
      mbarrier::wait(loaded + 8 * slot, i / SLOTS & 1);
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {  // 16 columns at a time, as ldmatrix and stmatrix take them
        const u32 row = lane & 15, at = row * 128 + (((j * 2 + (lane >> 4)) ^ (row & 7)) << 4);
        const float* dz = acc + 32 * i + 8 * j;
        u32 gate[4], up[4], z[4];
        load_matrix_x4(gate, gate_at + at);
        load_matrix_x4(up, up_at + at);
#pragma unroll
        for (u32 e = 0; e < 4; ++e) differentiate(gate[e], up[e], z[e], dz[2 * e], dz[2 * e + 1]);
        store_matrix_x4(gate_at + at, gate[0], gate[1], gate[2], gate[3]);
        store_matrix_x4(up_at + at, up[0], up[1], up[2], up[3]);
        if (with_z) store_matrix_x4(z_at + at, z[0], z[1], z[2], z[3]);
      }
      stage.publish();
      if (lane == 0) {
        const int row = (int)row_of(m0, i), column = (int)column_of(n0, i);
        tma::store_2d(&maps.d_gate, gate_at, column, row);
        tma::store_2d(&maps.d_up, up_at, column, row);
        if (with_z) tma::store_2d(&maps.z, z_at, column, row);
        tma::commit();
      }
    }
  }
  DEV void finish() {
    if (lane == 0) tma::wait_all();
  }

  DEV u32 row_of(u32 m0, u32 piece) const { return m0 + piece / 2 * 64 + warp * 16; }
  static DEV u32 column_of(u32 n0, u32 piece) { return n0 + piece % 2 * 64; }
  DEV void load(const WarpStaging& stage, u32 m0, u32 n0, u32 piece) const {
    const u32 slot = piece % SLOTS, barrier = loaded + 8 * slot;
    stage.acquire<0>(lane);  // what was stored from the slot has left it
    if (lane != 0) return;
    mbarrier::expect_bytes(barrier, 2 * PIECE_BYTES);
    tma::load_2d(stage.buffer(3 * slot), &maps.gate, barrier, (int)column_of(n0, piece), (int)row_of(m0, piece));
    tma::load_2d(stage.buffer(3 * slot + 1), &maps.up, barrier, (int)column_of(n0, piece), (int)row_of(m0, piece));
  }
  // A pair of pre-activations becomes their gradients, and z.
  static DEV void differentiate(u32& gate, u32& up, u32& z, float dz0, float dz1) {
    const u16 g[2] = {(u16)gate, (u16)(gate >> 16)}, u[2] = {(u16)up, (u16)(up >> 16)};
    const float dz[2] = {dz0, dz1};
    float d_gate[2], d_up[2], value[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
      const Activation a = activate_with_slope<Gate::ACTIVATION, false>(ELEMENT::load(g + e));
      const float factor = ELEMENT::load(u + e);
      value[e] = a.value * factor;
      d_gate[e] = dz[e] * factor * a.slope;
      d_up[e] = dz[e] * a.value;
    }
    gate = ELEMENT::pack(d_gate[0], d_gate[1]);
    up = ELEMENT::pack(d_up[0], d_up[1]);
    z = ELEMENT::pack(value[0], value[1]);
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
swiglu_through_sm90(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap down, const __grid_constant__ TensorMap gate,
                    const __grid_constant__ TensorMap up, const __grid_constant__ TensorMap d_gate, const __grid_constant__ TensorMap d_up,
                    const __grid_constant__ TensorMap z, const __grid_constant__ GemmShape shape, u32 with_z) {
  extern __shared__ __align__(1024) u8 shared[];
  Loop loop(shared);
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const u32 loaded = loop.turn + 8 * Loop::CONSUMERS + 8 * SLOTS * warp;  // behind the mainloop's own barriers
  static_assert(Loop::SHARED_BYTES + 8 * SLOTS * Loop::THREADS / WARP <= Loop::SHARED_LIMIT, "no room for the barriers");
  if (lane == 0) {
    for (u32 i = 0; i < SLOTS; ++i) mbarrier::init(loaded + 8 * i, 1);
    mbarrier::fence_init();
  }
  ThroughEpilogue epilogue = {{gate, up, d_gate, d_up, z}, with_z, loaded, warp % 4, lane};
  loop.run(dy, down, shape, epilogue);
}
#endif
