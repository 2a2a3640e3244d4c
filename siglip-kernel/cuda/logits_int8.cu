// The logit GEMM of route int8 on Hopper, of rows as quantize_int8.cu leaves them, with the pair loss and its gradient in the epilogue: writes G = dL/dz and its transpose in unsigned
// 8-bit integers (only with WITH_GRADIENT), as both gradient products read them along K, and per-warp sums. Logits never reach memory.
//
// What 255 is worth differs by row and tile: the largest of the 128 of G that a product adds up as integers, those of a row of G in one tile or of a column of it. Positive pairs are 0, and
// the others at least 0, so no sign is needed. Bytes of G lie within every 16 columns, and those of the transpose within every 16 rows, in the order in which the fragments have them;
// quantize_int8.cu orders the rows that they are multiplied by alike.
//   WITH_GRADIENT: 0 or 1    CLUSTER_SIZE: 1 or 2
#include "ptx/matrix.cuh"
#include "sigmoid.cuh"
#include "sm90/mainloop.cuh"

struct LogitsInt8Params {
  ScalarArg log_temp, bias;
  u32 first;                // 1: this launch opens the sums, 0: it adds to them
  i64 diagonal;             // column - row of a positive pair, relative to this block's origin
  double* sums;             // [gridDim.x * 8][3]
  const float* img_scales;  // what 1 is worth in the rows of images and of texts, from this block's first ones on
  const float* txt_scales;
  const float* terms;       // of the logits of each image row, beside their dot products, from this block's first row on
  float* positives;         // the positive pairs' dot products less the terms, from this block's first row on, with a gradient to be replaced by their q
  float* g_scales;          // [tiles of columns][g_rows]: what 1 is worth in G
  float* transpose_scales;  // [tiles of rows][g_cols]: and in its transpose
  u32 g_rows, g_cols;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr u32 TILE = 128;
// Staging of a consumer: for each 64 rows G as PARTS * 4 boxes of 16 x 64 bytes and its transpose as one of TILE x 64; then the columns' maxima of each warp, and what scales them.
constexpr u32 PARTS = TILE / 64, BOX_BYTES = 16 * 64, TRANSPOSE_AT = PARTS * 4 * BOX_BYTES, STAGED_BYTES = TRANSPOSE_AT + TILE * 64;
constexpr u32 MAXIMA_AT = 2 * STAGED_BYTES, FACTORS_AT = MAXIMA_AT + 4 * TILE * 4;
static_assert(FACTORS_AT + TILE * 4 <= 36 * 1024, "does not fit");
typedef Mainloop<S8, Major::K, Major::K, Schedule::PING_PONG, CLUSTER_SIZE, WITH_GRADIENT ? 36 * 1024 : 0, TILE, 232, true> Loop;

struct LogitsEpilogue {
  static constexpr u32 HALF = Loop::ACC / 2, PIECE = HALF / 2;
  static constexpr float LARGEST = 255.f;
  const TensorMap *map_g, *map_transpose;
  const GemmShape& shape;
  const LogitsInt8Params& params;
  PairConstants constants;
  PairSums sums;
  u32 warp, lane;

  DEV void begin() { constants = PairConstants(params.log_temp.load(), params.bias.load()); }
  // What a lane's four rows and 32 columns have for themselves: read at once, as the memory is far.
  struct Scales {
    float img[4], terms[4];
    float2 txt[HALF / 4];
  };
  DEV Scales scales(u32 row, u32 n0) const {
    Scales of;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 r = min_of(row + lane / 4 + i / 2 * 64 + i % 2 * 8, shape.m - 1);  // what a row that does not exist has is of no account
      of.img[i] = params.img_scales[r];
      of.terms[i] = params.terms[r];
    }
#pragma unroll
    for (u32 j = 0; j < HALF / 4; ++j) of.txt[j] = *reinterpret_cast<const float2*>(params.txt_scales + min_of(n0 + lane % 4 * 2 + 8 * j, (shape.n - 1) & ~1u));
    return of;
  }
  DEV FragmentPlace place(u32 row, u32 column) const {
    const int diagonal = nearby(params.diagonal + (i64)row - (i64)column);
    return {diagonal, (int)shape.m - (int)row, (int)shape.n - (int)column, lane, params.positives, row};
  }

  DEV void tile(const int (&acc)[Loop::ACC], u32 m0, u32 n0, u32 staging) {
    const u32 row = m0 + warp * 16;
    const Scales of = scales(row, n0);
    float x[Loop::ACC];  // dot products, then q
#pragma unroll
    for (u32 i = 0; i < Loop::ACC; ++i) {
      const float2 txt = of.txt[i % HALF / 4];
      x[i] = (float)acc[i] * (i % 2 ? txt.y : txt.x) * of.img[i / HALF * 2 + i / 2 % 2];
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const RowConstants of_rows(constants, {of.terms[2 * half], of.terms[2 * half + 1]});
      const FragmentPlace at = place(row + half * 64, n0);
      if constexpr (!WITH_GRADIENT) pairs<Unrounded, false, HALF>(x + HALF * half, nullptr, sums, of_rows, at);
      else if (__builtin_expect(is_plain(at, TILE), 1)) pairs_in_place<HALF>(x + HALF * half, sums, of_rows);
      else
#pragma unroll
        for (u32 piece = 0; piece < HALF / PIECE; ++piece)
          pairs_special_in_place<PIECE>(x + HALF * half + PIECE * piece, sums, of_rows, place(row + half * 64, n0 + piece * PIECE * 2));
    }
    if constexpr (WITH_GRADIENT) {
      float factors[2][2];  // of rows
      scale_rows(factors, x, row, n0);
      scale_columns(x, m0, n0, staging);
      write(x, factors, staging);
      store(staging, m0, n0);
    }
  }

  // What takes a row's q to integers, by its largest one in this tile; all are at least 0, or a NaN, of which the bits read as the largest. One that leaves f32's range is cut.
  static DEV float factor_of(int largest) { return largest == 0 ? 0.f : fminf(LARGEST * reciprocal(__int_as_float(largest)), 3e38f); }
  static DEV float scale_of(int largest) { return __int_as_float(largest) * (1.f / LARGEST); }

  DEV void scale_rows(float (&factors)[2][2], const float (&x)[Loop::ACC], u32 row, u32 n0) const {
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
      int largest = 0;
#pragma unroll
      for (u32 i = 0; i < HALF / 2; ++i) largest = max_of(largest, __float_as_int(x[HALF * (k / 2) + 4 * (i / 2) + 2 * (k % 2) + i % 2]));
#pragma unroll
      for (u32 offset = 1; offset < 4; offset *= 2) largest = max_of(largest, __shfl_xor_sync(~0u, largest, offset));
      factors[k / 2][k % 2] = factor_of(largest);
      const u32 r = row + lane / 4 + k / 2 * 64 + k % 2 * 8;
      if (lane % 4 == 0 && r < shape.m) params.g_scales[(u64)(n0 / TILE) * params.g_rows + r] = scale_of(largest);
    }
  }
  // The columns' over all 128 rows, and their factors in staging memory; once the stores of the tile before have read it.
  DEV void scale_columns(const float (&x)[Loop::ACC], u32 m0, u32 n0, u32 staging) const {
#pragma unroll
    for (u32 batch = 0; batch < 4; ++batch) {  // of 32 columns, eight a lane
      int largest[8];
#pragma unroll
      for (u32 k = 0; k < 8; ++k) {
        largest[k] = 0;
#pragma unroll
        for (u32 of_row = 0; of_row < 4; ++of_row)
          largest[k] = max_of(largest[k], __float_as_int(x[HALF * (of_row / 2) + 4 * (4 * batch + k / 2) + 2 * (of_row % 2) + k % 2]));
      }
      // Of eight lanes with the same columns each keeps half of them, then a quarter, then one.
#pragma unroll
      for (u32 width = 4; width; width /= 2) {
        const bool upper = lane & 4 * width;
#pragma unroll
        for (u32 k = 0; k < width; ++k) {
          const int kept = upper ? largest[k + width] : largest[k], given = upper ? largest[k] : largest[k + width];
          largest[k] = max_of(kept, __shfl_xor_sync(~0u, given, 4 * width));
        }
      }
      const u32 index = (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
      store_shared(staging + MAXIMA_AT + 4 * (warp * TILE + batch * 32 + index / 2 * 8 + lane % 4 * 2 + index % 2), (u32)largest[0]);
    }
    if (lane == 0) tma::wait_read<0>();
    named_barrier(barrier(), WARPGROUP);
    const u32 column = warp * WARP + lane;
    int largest = 0;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) largest = max_of(largest, (int)load_shared(staging + MAXIMA_AT + 4 * (i * TILE + column)));
    store_shared(staging + FACTORS_AT + 4 * column, __float_as_uint(factor_of(largest)));
    if (n0 + column < shape.n) params.transpose_scales[(u64)(m0 / TILE) * params.g_cols + n0 + column] = scale_of(largest);
    named_barrier(barrier(), WARPGROUP);
  }
  DEV u32 barrier() const { return 2 + threadIdx.x / WARPGROUP; }

  // q * factor as an integer in the low byte: up to 255, and a little more by rounding.
  static DEV u32 integer(float q, float factor) { return __float_as_uint(fmaf(q, factor, 8388608.f)); }
  static DEV u32 low_bytes(u32 a, u32 b) { return __byte_perm(a, b, 0x0040); }

  // 32 columns at a time of both halves, and their transpose. Rows of 64 bytes lie in 64-byte swizzle.
  DEV void write(const float (&x)[Loop::ACC], const float (&of_row)[2][2], u32 staging) const {
    float2 of_column[TILE / 8];
#pragma unroll
    for (u32 j = 0; j < TILE / 8; ++j) of_column[j] = load_shared_pair(staging + FACTORS_AT + 4 * (8 * j + lane % 4 * 2));
    // Lanes from 16 on address the second 16 columns.
    const u32 line = lane & 15, second = lane >> 4, swizzle = (line >> 1 & 3) << 4;
    const u32 rows_at = staging + warp * BOX_BYTES + line * 64 + (swizzle ^ second << 4);
    const u32 columns_at = staging + TRANSPOSE_AT + second * 1024 + line * 64 + (swizzle ^ warp << 4);
#pragma unroll
    for (u32 i = 0; i < TILE / 32; ++i)
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        u32 rows[4], columns[4];
        const auto q = [&](u32 k, u32 e) { return x[HALF * half + 4 * (4 * i + k) + e]; };
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
          const u32 r = k % 2, first = k / 2 * 2;
          // Two columns of a row, and two 8 further on.
          const float factor = of_row[half][r];
          const u32 near = low_bytes(integer(q(first, 2 * r), factor), integer(q(first, 2 * r + 1), factor));
          rows[k] = __byte_perm(near, low_bytes(integer(q(first + 1, 2 * r), factor), integer(q(first + 1, 2 * r + 1), factor)), 0x5410);
          // Of a column a row and the one 8 further on, then those of the next column.
          const float2 of = of_column[4 * i + k];
          columns[k] = __byte_perm(low_bytes(integer(q(k, 0), of.x), integer(q(k, 2), of.x)), low_bytes(integer(q(k, 1), of.y), integer(q(k, 3), of.y)), 0x5410);
        }
        const u32 to = half * STAGED_BYTES;
        store_matrix_x4((rows_at ^ i % 2 << 5) + i / 2 * 4 * BOX_BYTES + to, rows[0], rows[1], rows[2], rows[3]);
        store_matrix_x4_transposed(columns_at + i * 2048 + to, columns[0], columns[1], columns[2], columns[3]);
      }
  }
  DEV void store(u32 staging, u32 m0, u32 n0) const {
    fence_async_shared();
    named_barrier(barrier(), WARPGROUP);
    if (lane != 0) return;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 from = staging + half * STAGED_BYTES, row = m0 + half * 64;
#pragma unroll
      for (u32 i = 0; i < PARTS; ++i) tma::store_2d(map_g, from + (i * 4 + warp) * BOX_BYTES, (int)(n0 + i * 64), (int)(row + warp * 16));
      if (warp == 0) tma::store_2d(map_transpose, from + TRANSPOSE_AT, (int)row, (int)n0);
    }
    tma::commit();
  }
  DEV void finish() {
    if (WITH_GRADIENT && lane == 0) tma::wait_all();
    const u32 slot = blockIdx.x * 8 + threadIdx.x / WARP - 4;
    store_sums<Unrounded>(params.sums, slot, sums, params.first, lane);
  }
};

KERNEL __launch_bounds__(Loop::THREADS, 1) __cluster_dims__(CLUSTER_SIZE, 1, 1)
siglip_logits_int8(const __grid_constant__ TensorMap img, const __grid_constant__ TensorMap txt, const __grid_constant__ TensorMap g,
                   const __grid_constant__ TensorMap transpose, const __grid_constant__ GemmShape shape, const __grid_constant__ LogitsInt8Params params) {
  extern __shared__ __align__(1024) u8 shared[];
  LogitsEpilogue epilogue = {&g, &transpose, shape, params, {}, {}, uniform(threadIdx.x / WARP % 4), threadIdx.x % WARP};
  Loop(shared).run(img, txt, shape, epilogue);
}
#endif
