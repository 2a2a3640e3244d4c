// From accumulators to global memory through a warp's own staging buffer: no barrier among the warps of a warpgroup.
#pragma once
#include "base.cuh"
#include "ptx/matrix.cuh"
#include "ptx/shared.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Buffers of 16 rows x 128 bytes, 128-byte swizzled, as a tensor map with a {128 bytes, 16 rows} box expects them: one for every 8 KB of the
// warpgroup's staging memory. A buffer lies 8 KB from the warp's next and 2 KB from the next warp's.
struct WarpStaging {
  u32 base;
  DEV WarpStaging(u32 staging, u32 warp) : base(staging + warp * 2048) {}
  DEV u32 buffer(u32 i) const { return base + i * 8192; }

  // Returns once at most PENDING of this warp's stores still read their buffer.
  template <u32 PENDING> DEV void acquire(u32 lane) const {
    if (lane == 0) tma::wait_read<PENDING>();
    __syncwarp();
  }
  // 16 rows x 64 columns of 16-bit elements, packed in pairs as the accumulators hold them: packed[2 * j + half].
  DEV void write_16bit(u32 to, const u32* packed, u32 lane) const {
#pragma unroll
    for (u32 j = 0; j < 4; ++j) write_16_columns(to, j, packed + 4 * j, lane);
  }
  // Columns 16 * j to 16 * j + 15 of them.
  DEV void write_16_columns(u32 to, u32 j, const u32* packed, u32 lane) const {
    const u32 row = lane & 15, chunk = j * 2 + (lane >> 4);
    store_matrix_x4(to + row * 128 + ((chunk ^ (row & 7)) << 4), packed[0], packed[1], packed[2], packed[3]);
  }
  // Where an element of such rows lies in its buffer.
  static DEV u32 of_16bit(u32 row, u32 column) { return row * 128 + ((column / 8 ^ (row & 7)) << 4) + column % 8 * 2; }
  // Such rows from a buffer to global memory, as whole rows of 128 bytes, without the copy engine: its queue may be long. All lanes together; the buffer
  // is free again afterwards.
  DEV void copy_16bit(u16* to, u64 row_stride, u32 from, u32 lane) const {
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 row = i * 4 + lane / 8, chunk = lane % 8;
      *reinterpret_cast<uint4*>(to + row * row_stride + chunk * 8) = load_shared_vector(from + row * 128 + ((chunk ^ (row & 7)) << 4));
    }
    __syncwarp();
  }
  // 16 rows x 32 columns of f32.
  DEV void write_f32(u32 to, const float* acc, u32 lane) const {
#pragma unroll
    for (u32 j = 0; j < 4; ++j)
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        const u32 row = lane / 4 + half * 8, column = j * 8 + (lane & 3) * 2;
        const u32 at = to + row * 128 + (((column >> 2) ^ (row & 7)) << 4) + (column & 3) * 4;
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(acc[4 * j + 2 * half]), "f"(acc[4 * j + 2 * half + 1]) : "memory");
      }
  }
  // The sums of a warp's 16 rows, and of those 64 further on where acc holds both, into f32 rows from (column, row) on, through BUFFERS buffers in turn.
  // `opens`: they are stored, else added.
  template <u32 BUFFERS, u32 TILE_N, u32 N>
  DEV void store_sums(const float (&acc)[N], const TensorMap* map, u32 column, u32 row, u32 opens, u32 lane) const {
    constexpr u32 ACROSS = TILE_N / 32;
#pragma unroll
    for (u32 i = 0; i < N / 16; ++i) {  // 16 rows x 32 columns at a time
      const int y = (int)(row + i / ACROSS * 64), x = (int)(column + i % ACROSS * 32);
      const u32 to = buffer(i % BUFFERS);
      acquire<BUFFERS - 1>(lane);
      write_f32(to, acc + 16 * i, lane);
      publish();
      if (lane == 0) {
        if (opens) tma::store_2d(map, to, x, y);
        else tma::add_2d(map, to, x, y);
        tma::commit();
      }
    }
  }
  // Makes what the warp wrote visible to the copy engine; then lane 0 may issue the store.
  DEV void publish() const {
    fence_async_shared();
    __syncwarp();
  }
};
#endif
