// Both projections and the gate in one GEMM on Hopper: z = act(x W_gate + b_gate) * (x W_up + b_up), and with SAVE the pre-activations. A tile is
// 128 rows x COLUMNS of z: as many columns of each projection lie side by side in B, so a thread holds matching gate and up values.
//   ELEMENT: BF16 or F16    ACTIVATION: SILU, GELU_TANH, RELU or SIGMOID    WEIGHTS: MN ([K, N] each) or K ([N, K] each)
//   SAVE: 0 or 1    WITH_BIAS: 0 or 1    CLUSTER_SIZE: 1 or 2    COLUMNS: 64 or 96
#include "gate.cuh"
#include "ptx/matrix.cuh"
#include "sm90/mainloop.cuh"

struct ForwardParams {
  const u16 *gate_bias, *up_bias;  // [N] each, only WITH_BIAS
  u32 with_z;                      // 0: only the pre-activations are wanted
  u32 wide;                        // TWO_WIDTHS: how many tiles of a row have COLUMNS; those after them have 64
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// What is stored at a time, and a warpgroup's staging buffers, used in turn. More would cost the mainloop stages, which is slower.
constexpr u32 SLICE = COLUMNS % 64 ? 32 : 64, BUFFERS = SLICE == 64 ? 2 : 3, BUFFER_BYTES = 64 * SLICE * 2;
// Who stores together: a warp its 16 rows, or, where three matrices leave, the warpgroup its 64: among so many stores the copy engine brings operands late.
constexpr u32 STORERS = SAVE ? WARPGROUP : WARP, STORED_ROWS = STORERS / 2;
typedef Mainloop<ELEMENT, Major::K, Major::WEIGHTS, Schedule::PING_PONG, CLUSTER_SIZE, BUFFERS * BUFFER_BYTES, 2 * COLUMNS, 232> Loop;
// Not with a bias: it is added to the sums, and the compiler lets nobody else write sums that only some products overwrite.
constexpr bool TWO_WIDTHS = COLUMNS > 64 && !WITH_BIAS;
static_assert(SLICE == Loop::TwoMatrices::BOX, "gate and up alternate as they are stored");

struct ForwardEpilogue {
  const TensorMap &map_z, &map_gate, &map_up;
  const GemmShape& shape;
  const ForwardParams& params;
  u32 thread, turn;  // of the warpgroup; the buffer of the next store

  DEV void begin() {}
  DEV void tile(float (&acc)[Loop::ACC], u32 m0, u32 n0, u32 staging) {
    if constexpr (WITH_BIAS) add_bias(acc, n0);
    const bool narrow = TWO_WIDTHS && n0 >= params.wide * COLUMNS;
#pragma unroll
    for (u32 i = 0; i < 2 * COLUMNS / SLICE; ++i) {  // the slices of the upper 64 rows, then those of the lower
      constexpr u32 ACROSS = COLUMNS / SLICE;
      if (narrow && i % ACROSS >= 64 / SLICE) continue;
      const float *gate = acc + SLICE * i, *up = gate + SLICE / 2;
      const int row = (int)(m0 + i / ACROSS * 64 + thread / STORERS * STORED_ROWS), column = (int)(n0 + i % ACROSS * SLICE);
      u32 packed[SLICE / 4];
#pragma unroll
      for (u32 j = 0; j < SLICE / 4; ++j)
        packed[j] = ELEMENT::pack(activate<Gate::ACTIVATION, false>(gate[2 * j]) * up[2 * j], activate<Gate::ACTIVATION, false>(gate[2 * j + 1]) * up[2 * j + 1]);
      if (!SAVE || params.with_z) store(staging, packed, map_z, column, row);
      if constexpr (SAVE) {
        pack(packed, gate);
        store(staging, packed, map_gate, column, row);
        pack(packed, up);
        store(staging, packed, map_up, column, row);
      }
    }
  }
  DEV void finish() {
    if (thread % STORERS == 0) tma::wait_all();
  }

  static DEV void pack(u32 (&packed)[SLICE / 4], const float* values) {
#pragma unroll
    for (u32 i = 0; i < SLICE / 4; ++i) packed[i] = ELEMENT::pack(values[2 * i], values[2 * i + 1]);
  }
  // By the mainloop's barrier of this warpgroup, which is as free as its sums.
  static DEV void meet() {
    if constexpr (STORERS == WARPGROUP) named_barrier(threadIdx.x / WARPGROUP, WARPGROUP);
    else __syncwarp();
  }
  // STORED_ROWS x SLICE columns, through the next buffer, in the swizzle of rows of its width.
  DEV void store(u32 staging, const u32 (&packed)[SLICE / 4], const TensorMap& map, int column, int row) {
    const u32 lane = thread % WARP, in_buffer = thread / WARP * 16 + (lane & 15), swizzle = SLICE == 64 ? in_buffer & 7 : in_buffer >> 1 & 3;
    const u32 buffer = staging + turn * BUFFER_BYTES, part = buffer + thread / STORERS * STORED_ROWS * SLICE * 2;
    turn = (turn + 1) % BUFFERS;
    if (thread % STORERS == 0) tma::wait_read<BUFFERS - 1>();
    meet();
#pragma unroll
    for (u32 j = 0; j < SLICE / 16; ++j) {
      const u32 chunk = (j * 2 + (lane >> 4)) ^ swizzle;
      store_matrix_x4(buffer + in_buffer * SLICE * 2 + (chunk << 4), packed[4 * j], packed[4 * j + 1], packed[4 * j + 2], packed[4 * j + 3]);
    }
    fence_async_shared();
    meet();
    if (thread % STORERS == 0) {
      tma::store_2d(&map, part, column, row);
      tma::commit();
    }
  }
  DEV void add_bias(float (&acc)[Loop::ACC], u32 n0) const {
#pragma unroll
    for (u32 j = 0; j < COLUMNS / 8; ++j) {
      const u32 column = n0 + 8 * j + 2 * (thread % 4);  // even, as N is: both or none exist
      constexpr u32 EIGHTS = SLICE / 8;
      float* sums = acc + j / EIGHTS * SLICE + j % EIGHTS * 4;
      if (column >= shape.n) continue;
      const u32 gate = *reinterpret_cast<const u32*>(params.gate_bias + column), up = *reinterpret_cast<const u32*>(params.up_bias + column);
      const u16 pairs[4] = {(u16)gate, (u16)(gate >> 16), (u16)up, (u16)(up >> 16)};
#pragma unroll
      for (u32 e = 0; e < 4; ++e)
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
          sums[half * COLUMNS + e] += ELEMENT::load(pairs + e % 2);
          sums[half * COLUMNS + SLICE / 2 + e] += ELEMENT::load(pairs + 2 + e % 2);
        }
    }
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
swiglu_forward_sm90(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w_gate, const __grid_constant__ TensorMap w_up,
                    const __grid_constant__ TensorMap z, const __grid_constant__ TensorMap gate, const __grid_constant__ TensorMap up,
                    const __grid_constant__ GemmShape shape, const __grid_constant__ ForwardParams params) {
  extern __shared__ __align__(1024) u8 shared[];
  ForwardEpilogue epilogue = {z, gate, up, shape, params, threadIdx.x % WARPGROUP, 0};
  if constexpr (TWO_WIDTHS) Loop(shared).run(x, Loop::TwoWidths(w_gate, w_up, params.wide), shape, epilogue);
  else Loop(shared).run(x, Loop::TwoMatrices{w_gate, w_up}, shape, epilogue);
}
#endif
