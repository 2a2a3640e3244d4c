// Both projections and the gate in one GEMM on Hopper: z = act(x W_gate + b_gate) * (x W_up + b_up), and with SAVE the pre-activations. A tile is
// 128 rows x 64 columns of z: 64 columns of each projection lie side by side in B, so a thread holds matching gate and up values.
//   ELEMENT: BF16 or F16    ACTIVATION: SILU, GELU_TANH, RELU or SIGMOID    WEIGHTS: MN ([K, N] each) or K ([N, K] each)
//   SAVE: 0 or 1    WITH_BIAS: 0 or 1    CLUSTER_SIZE: 1 or 2
#include "gate.cuh"
#include "sm90/mainloop.cuh"
#include "sm90/store.cuh"

struct ForwardParams {
  const u16 *gate_bias, *up_bias;  // [N] each, only WITH_BIAS
  u32 with_z;                      // 0: only the pre-activations are wanted
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Staging buffers of a warp, used in turn. More would cost the mainloop stages, which is slower.
constexpr u32 BUFFERS = 2;
typedef Mainloop<ELEMENT, Major::K, Major::WEIGHTS, Schedule::PING_PONG, CLUSTER_SIZE, BUFFERS * 8192> Loop;

struct ForwardEpilogue {
  const TensorMap &map_z, &map_gate, &map_up;
  const GemmShape& shape;
  const ForwardParams& params;
  u32 warp, lane, turn;  // `turn`: the buffer of the next store

  DEV void begin() {}
  DEV void tile(float (&acc)[128], u32 m0, u32 n0, u32 staging) {
    const WarpStaging stage(staging, warp);
    if constexpr (WITH_BIAS) add_bias(acc, n0);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const float *gate = acc + 64 * half, *up = gate + 32;
      const int row = (int)(m0 + half * 64 + warp * 16);
      u32 packed[16];
#pragma unroll
      for (u32 i = 0; i < 16; ++i)
        packed[i] = ELEMENT::pack(activate<Gate::ACTIVATION, false>(gate[2 * i]) * up[2 * i], activate<Gate::ACTIVATION, false>(gate[2 * i + 1]) * up[2 * i + 1]);
      if (!SAVE || params.with_z) store(stage, packed, map_z, (int)n0, row);
      if constexpr (SAVE) {
        pack(packed, gate);
        store(stage, packed, map_gate, (int)n0, row);
        pack(packed, up);
        store(stage, packed, map_up, (int)n0, row);
      }
    }
  }
  DEV void finish() {
    if (lane == 0) tma::wait_all();
  }

  static DEV void pack(u32 (&packed)[16], const float* values) {
#pragma unroll
    for (u32 i = 0; i < 16; ++i) packed[i] = ELEMENT::pack(values[2 * i], values[2 * i + 1]);
  }
  DEV void store(const WarpStaging& stage, const u32 (&packed)[16], const TensorMap& map, int column, int row) {
    const u32 buffer = stage.buffer(turn);
    turn = (turn + 1) % BUFFERS;
    stage.acquire<BUFFERS - 1>(lane);
    stage.write_16bit(buffer, packed, lane);
    stage.publish();
    if (lane == 0) {
      tma::store_2d(&map, buffer, column, row);
      tma::commit();
    }
  }
  DEV void add_bias(float (&acc)[128], u32 n0) const {
#pragma unroll
    for (u32 j = 0; j < 8; ++j) {
      const u32 column = n0 + 8 * j + 2 * (lane % 4);  // even, as N is: both or none exist
      if (column >= shape.n) continue;
      const u32 gate = *reinterpret_cast<const u32*>(params.gate_bias + column), up = *reinterpret_cast<const u32*>(params.up_bias + column);
      const u16 pairs[4] = {(u16)gate, (u16)(gate >> 16), (u16)up, (u16)(up >> 16)};
#pragma unroll
      for (u32 e = 0; e < 4; ++e)
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
          acc[64 * half + 4 * j + e] += ELEMENT::load(pairs + e % 2);
          acc[64 * half + 32 + 4 * j + e] += ELEMENT::load(pairs + 2 + e % 2);
        }
    }
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
swiglu_forward_sm90(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w_gate, const __grid_constant__ TensorMap w_up,
                    const __grid_constant__ TensorMap z, const __grid_constant__ TensorMap gate, const __grid_constant__ TensorMap up,
                    const __grid_constant__ GemmShape shape, const __grid_constant__ ForwardParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  ForwardEpilogue epilogue = {z, gate, up, shape, params, threadIdx.x / WARP % 4, threadIdx.x % WARP, 0};
  Loop(shared).run(x, Loop::TwoMatrices{w_gate, w_up}, shape, epilogue);
}
#endif
