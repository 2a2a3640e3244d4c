// Scores on any GPU from sm_80, any dtype, dimension and alignment, in f32 on the CUDA cores.
//   ELEMENT: F32, F16 or BF16    WITH_ARGMAX: 0 or 1
#include "forward.cuh"

constexpr u32 THREADS = 256, COLS = 64, DEPTH = 16;
typedef float Panel[DEPTH][TILE_ROWS + 4];

// Columns of the panel are 64 token rows from `row` on; rows past `rows` and depths past `dim` are zero.
DEV void load_panel(Panel& panel, const Texts& texts, u64 row, u32 rows, u32 k, u32 dim) {
#pragma unroll
  for (u32 i = 0; i < DEPTH * TILE_ROWS / THREADS; ++i) {
    const u32 depth = threadIdx.x % DEPTH, column = threadIdx.x / DEPTH + i * (THREADS / DEPTH);
    const bool exists = column < rows && k + depth < dim;
    const E::Storage* at = static_cast<const E::Storage*>(texts.rows) + (row + column) * texts.row_stride + k + depth;
    panel[depth][column] = exists ? E::load(at) : 0.f;
  }
}

KERNEL __launch_bounds__(THREADS, 2) maxsim_forward_portable(const __grid_constant__ ForwardParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  __shared__ Panel of_queries, of_docs;
  __shared__ float best_values[TILE_ROWS];
  const Items& items = params.items;
  // A thread has rows 4 * y .. and columns 4 * x .. of a tile.
  const u32 x = threadIdx.x % 16, y = threadIdx.x / 16, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (u32 chunk = 0; chunk < items.chunks; ++chunk) {
    const u32 last = first_unit(items, chunk, blockIdx.x + 1, gridDim.x);
    for (u32 index = first_unit(items, chunk, blockIdx.x, gridDim.x); index < last; ++index) {
      const Unit unit = unit_at(items, chunk, index);
      const u64 start = params.docs.start(unit.doc);
      const u32 end = params.docs.end(unit.doc);
      for (u32 w = 0; w < params.tiles; ++w) {
        const QueryTile tile = tile_of(items, params.queries, unit, w, params.tiles);
        Best best[4];
#pragma unroll
        for (u32 r = 0; r < 4; ++r) best[r] = {MINUS_INFINITY, -1};
        for (u32 column = 0; column < end; column += COLS) {
          float acc[4][4] = {};
          for (u32 k = 0; k < params.dim; k += DEPTH) {
            __syncthreads();
            load_panel(of_queries, params.queries, tile.row, tile.rows, k, params.dim);
            load_panel(of_docs, params.docs, start + column, end - column, k, params.dim);
            __syncthreads();
#pragma unroll
            for (u32 depth = 0; depth < DEPTH; ++depth) {
              const float4 a = *reinterpret_cast<const float4*>(&of_queries[depth][4 * y]);
              const float4 b = *reinterpret_cast<const float4*>(&of_docs[depth][4 * x]);
              const float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
              for (u32 r = 0; r < 4; ++r)
#pragma unroll
                for (u32 c = 0; c < 4; ++c) acc[r][c] = fmaf(as[r], bs[c], acc[r][c]);
            }
          }
#pragma unroll
          for (u32 c = 0; c < 4; ++c) {
            const u32 token = column + 4 * x + c;
            if (token >= end || !params.docs.keeps(unit.doc, token)) continue;
            const float scale = params.docs.scales ? params.docs.scales[start + token] : 1.f;
#pragma unroll
            for (u32 r = 0; r < 4; ++r) {
              const float similarity = acc[r][c] * scale;
              if (best[r].index < 0 || best[r].yields_to(similarity)) best[r] = {similarity, (int)token};
            }
          }
        }
#pragma unroll
        for (u32 r = 0; r < 4; ++r) {
#pragma unroll
          for (u32 offset = 1; offset < 16; offset *= 2) {
            const float value = __shfl_xor_sync(~0u, best[r].value, offset);
            const int at = __shfl_xor_sync(~0u, best[r].index, offset);
            best[r].merge(value, at);  // -1, no token, is the largest index
          }
          if (x == 0) {
            const u32 row = 4 * y + r;
            const RowInfo info = row_info(items, params.queries, tile, row);
            const bool counts = info.counts && best[r].index >= 0;
            best_values[row] = counts ? best[r].value * info.scale : 0.f;
            if (WITH_ARGMAX && info.exists) {
              const u64 base = items.pairing == Pairing::Cross ? (u64)unit.doc * info.step : items.arguments(params.queries, unit.query, unit.doc, unit.slot);
              params.argmax[base + info.argument] = counts ? best[r].index : -1;
            }
          }
        }
        __syncthreads();
        for (u32 s = warp; s < tile.queries; s += THREADS / WARP) {
          u32 from = 0, to = tile.rows;
          if (tile.queries > 1) from = (u32)(params.queries.start(tile.query + s) - tile.row), to = from + params.queries.size(tile.query + s);
          float sum = 0.f;
          for (u32 row = from + lane; row < to; row += WARP) sum += best_values[row];
          sum = warp_sum(sum);
          if (lane == 0) params.sums[sum_index(items, tile, s, unit, params.tiles)] = sum;
        }
        __syncthreads();
      }
    }
  }
}
