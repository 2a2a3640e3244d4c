// The gated projections for a few rows (M <= TOKENS): reading the weights once is the whole cost, so they are the left operand, streamed through a
// deep cp.async ring, and x is the right one, padded to TOKENS columns instead of 128 rows. sm_80 up, mma.sync.
//
// A block owns `width` columns of z (a multiple of 16, at most 128) and all of K. Each of its eight warps owns 16 of them, of both projections.
//   ELEMENT: BF16 or F16    WEIGHTS: MN ([K, N] each) or K ([N, K] each)    TOKENS: 16, 32 or 64    STAGES
#include "decode.cuh"

constexpr u32 THREADS = 256, TILE_K = 64, CHUNK = 8;  // elements of a 16-byte copy
constexpr u32 MAX_WIDTH = 128, PIECES = 2 * MAX_WIDTH * TILE_K / CHUNK / THREADS, X_PIECES = (TOKENS * TILE_K / CHUNK + THREADS - 1) / THREADS;
// Rows of shared tiles are an odd number of 16-byte chunks apart, so that eight rows of one ldmatrix touch all banks.
constexpr u32 K_PITCH = TILE_K * 2 + 16, X_BYTES = TOKENS * K_PITCH;

struct DecodeParams {
  const u16 *x, *gate, *up;  // weights: [K, N] or [N, K] each
  u64 x_stride, gate_stride, up_stride;
  DecodeOutput out;
  u32 inputs, width;
};

// One half's tile of a stage.
DEV u32 half_bytes(u32 width) { return LINEAR ? width * K_PITCH : TILE_K * (width * 2 + 16); }

// The copies of one thread into every stage: where each comes from at k = 0, and where it goes in a stage.
struct Copies {
  const u16* from[PIECES];  // null: a zero
  u64 advance[PIECES];
  u32 to[PIECES];
  int k[PIECES];  // first k of the piece, or beyond every K where there is no piece
  const u16* x_from[X_PIECES];
  u32 x_to[X_PIECES];
  u32 x_k;

  DEV Copies(const DecodeParams& p, u32 n0) {
    const u32 across = LINEAR ? TILE_K / CHUNK : p.width / CHUNK, pieces = 2 * p.width * TILE_K / CHUNK, in_half = pieces / 2;
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) {
      const u32 index = threadIdx.x + i * THREADS, half = index >= in_half, rest = index - half * in_half, row = rest / across, chunk = rest % across;
      const u32 n = n0 + (LINEAR ? row : chunk * CHUNK);
      const u64 stride = half ? p.up_stride : p.gate_stride, offset = LINEAR ? n * stride + chunk * CHUNK : row * stride + n;
      advance[i] = LINEAR ? TILE_K : TILE_K * stride;
      from[i] = index < pieces && n < p.out.outputs ? (half ? p.up : p.gate) + offset : nullptr;
      to[i] = index < pieces ? half * half_bytes(p.width) + row * (LINEAR ? K_PITCH : p.width * 2 + 16) + chunk * 16 : ~0u;
      k[i] = (int)(LINEAR ? chunk * CHUNK : row);
    }
#pragma unroll
    for (u32 i = 0; i < X_PIECES; ++i) {
      const u32 index = threadIdx.x + i * THREADS, row = index / (TILE_K / CHUNK), chunk = index % (TILE_K / CHUNK);
      x_from[i] = row < p.out.rows ? p.x + (u64)row * p.x_stride + chunk * CHUNK : nullptr;
      x_to[i] = row < TOKENS ? 2 * half_bytes(p.width) + row * K_PITCH + chunk * 16 : ~0u;
      x_k = chunk * CHUNK;  // the same for every i
    }
  }
  // Queues stage `step` and goes on to the next.
  DEV void issue(const DecodeParams& p, u32 stage, u32 step) {
    const int k0 = (int)(step * TILE_K), left = (int)p.inputs - k0;
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) {
      if (to[i] != ~0u) copy_async_16(stage + to[i], from[i] ? from[i] : p.gate, from[i] && k[i] < left);
      if (from[i]) from[i] += advance[i];
    }
#pragma unroll
    for (u32 i = 0; i < X_PIECES; ++i) {
      if (x_to[i] != ~0u) copy_async_16(stage + x_to[i], x_from[i] ? x_from[i] : p.x, x_from[i] && (int)x_k < left);
      if (x_from[i]) x_from[i] += TILE_K;
    }
  }
};

// 16 columns of the weights by 16 of K as the left operand.
DEV void load_weights(u32 (&fragment)[4], u32 tile, u32 n, u32 k, u32 width, u32 lane) {
  if constexpr (LINEAR) {
    load_matrix_x4(fragment, tile + (n + lane % 16) * K_PITCH + (k + lane / 16 * 8) * 2);
  } else {
    const u32 row = k + lane / 16 * 8 + lane % 8, column = n + lane / 8 % 2 * 8;
    load_matrix_x4_transposed(fragment, tile + row * (width * 2 + 16) + column * 2);
  }
}

KERNEL __launch_bounds__(THREADS, 1) swiglu_decode(const __grid_constant__ DecodeParams params) {
  extern __shared__ __align__(128) u8 shared[];
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, base = shared_address(shared);
  const u32 half = half_bytes(params.width), stage_bytes = 2 * half + X_BYTES, steps = ceil_div(params.inputs, TILE_K);
  const u32 n0 = blockIdx.x * params.width, mine = warp * 16;
  grid_dependency_wait();
  Copies copies(params, n0);
#pragma unroll
  for (u32 s = 0; s < STAGES - 1; ++s) {
    if (s < steps) copies.issue(params, base + s * stage_bytes, s);
    copy_async_commit();
  }
  Accumulators acc = {};
  u32 reading = 0, writing = STAGES - 1;
#pragma unroll 1
  for (u32 step = 0; step < steps; ++step) {
    copy_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) copies.issue(params, base + writing * stage_bytes, step + STAGES - 1);
    copy_async_commit();
    if (mine < params.width) {
      const u32 tile = base + reading * stage_bytes, x = tile + 2 * half;
#pragma unroll
      for (u32 k = 0; k < TILE_K; k += 16) {
        u32 gate[4], up[4];
        load_weights(gate, tile, mine, k, params.width, lane);
        load_weights(up, tile + half, mine, k, params.width, lane);
#pragma unroll
        for (u32 j = 0; j < TOKENS / 16; ++j) {  // 16 tokens: two right operands
          u32 b[4];
          load_matrix_x4(b, x + (j * 16 + lane % 8 + lane / 16 * 8) * K_PITCH + (k + lane / 8 % 2 * 8) * 2);
          multiply(acc, j, gate, up, b);
        }
      }
    }
    reading = reading + 1 == STAGES ? 0 : reading + 1;
    writing = writing + 1 == STAGES ? 0 : writing + 1;
  }
  if (mine < params.width) finish(acc, params.out, n0 + mine, min_of(n0 + params.width, params.out.outputs), lane);
}
