// The portable GEMM mainloop, sm_80 up: cp.async ring, ldmatrix, mma.sync. C tile 128 x 128 = A (rows of K) * B^T (rows of K), f32 accumulation.
//
// Eight warps in a 2 x 4 arrangement, each 64 x 32 of the tile. K is a multiple of 8 and rows are 16-byte aligned (pad otherwise); rows beyond the
// matrix and K beyond its end read as zero.
#pragma once
#include "base.cuh"
#include "ptx/matrix.cuh"

template <class E> struct PortableMainloop {
  static constexpr u32 TILE_M = 128, TILE_N = 128, TILE_K = 32, STAGES = 4, THREADS = 256;
  static constexpr u32 OPERAND_BYTES = 128 * TILE_K * 2, SHARED_BYTES = STAGES * 2 * OPERAND_BYTES;

  struct Operand {
    const u16* data;  // row 0 of the block
    u64 row_stride;   // elements
    u32 rows;         // that exist, from row 0 of the block
  };

  // acc[i][4 * j + e]: row 64 * (warp % 2) + 16 * i + lane / 4 + 8 * (e / 2), column 32 * (warp / 2) + 8 * j + 2 * (lane % 4) + e % 2.
  static DEV void multiply(float (&acc)[4][16], void* dynamic_shared, const Operand& a, const Operand& b, u32 m0, u32 n0, u32 k_size) {
    const u32 shared_a = shared_address(dynamic_shared), shared_b = shared_a + STAGES * OPERAND_BYTES;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warp_m = (warp & 1) * 64, warp_n = (warp >> 1) * 32;
    const u32 steps = ceil_div(k_size, TILE_K);
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
#pragma unroll
      for (u32 j = 0; j < 16; ++j) acc[i][j] = 0.f;

    __syncthreads();  // the previous tile's readers are done
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; ++s) {
      if (s < steps) load(shared_a, shared_b, a, b, m0, n0, s, k_size);
      copy_async_commit();
    }
    for (u32 step = 0; step < steps; ++step) {
      copy_async_wait<STAGES - 2>();
      __syncthreads();
      if (step + STAGES - 1 < steps) load(shared_a, shared_b, a, b, m0, n0, step + STAGES - 1, k_size);
      copy_async_commit();
      const u32 from_a = shared_a + step % STAGES * OPERAND_BYTES, from_b = shared_b + step % STAGES * OPERAND_BYTES;
#pragma unroll
      for (u32 k = 0; k < TILE_K / 16; ++k) {
        u32 fa[4][4], fb[2][4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) load_matrix_x4(fa[i], from_a + swizzled(warp_m + i * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (u32 j = 0; j < 2; ++j)
          load_matrix_x4(fb[j], from_b + swizzled(warp_n + j * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
#pragma unroll
          for (u32 j = 0; j < 4; ++j)
            mma_m16n8k16<E>(reinterpret_cast<float(&)[4]>(acc[i][4 * j]), fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

 private:
  // Rows of 64 bytes; the 16-byte chunk is xored so that eight consecutive rows of one chunk touch all banks.
  static DEV u32 swizzled(u32 row, u32 chunk) { return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4); }

  static DEV void load(u32 shared_a, u32 shared_b, const Operand& a, const Operand& b, u32 m0, u32 n0, u32 step, u32 k_size) {
    const u32 stage = step % STAGES * OPERAND_BYTES;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 index = threadIdx.x + i * THREADS, row = index / 4, chunk = index % 4, k = step * TILE_K + chunk * 8;
      copy(shared_a + stage + swizzled(row, chunk), a, m0 + row, k, k_size);
      copy(shared_b + stage + swizzled(row, chunk), b, n0 + row, k, k_size);
    }
  }
  static DEV void copy(u32 to, const Operand& from, u32 row, u32 k, u32 k_size) {
    const bool valid = row < from.rows && k < k_size;
    copy_async_16(to, valid ? from.data + (u64)row * from.row_stride + k : from.data, valid);
  }
};
