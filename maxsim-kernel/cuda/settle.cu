// After a scoring launch that met a NaN maximum: which token it was. The first one whose similarity is NaN.
//   ELEMENT: F16 or BF16
#include "items.cuh"
#include "ptx/sync.cuh"

typedef ELEMENT E;

struct SettleParams {
  Items items;
  Texts queries, docs;
  u32 dim;
  u32 slots;  // scores, of a cross: of one query
  int* argmax;
  u32 epoch;
  const u32* nan_epoch;
};

DEV float similarity(const SettleParams& params, u64 query_row, u64 doc_row) {
  const E::Storage* q = static_cast<const E::Storage*>(params.queries.rows) + query_row * params.queries.row_stride;
  const E::Storage* d = static_cast<const E::Storage*>(params.docs.rows) + doc_row * params.docs.row_stride;
  float sum = 0.f;
  for (u32 i = 0; i < params.dim; ++i) sum = fmaf(E::load(q + i), E::load(d + i), sum);
  return params.docs.scales ? sum * params.docs.scales[doc_row] : sum;
}

// One warp a (query, document); it looks at its choices, and searches where one is unsettled.
KERNEL __launch_bounds__(256) maxsim_settle(const __grid_constant__ SettleParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  if (*params.nan_epoch != params.epoch) return;
  const Items& items = params.items;
  const u32 lane = threadIdx.x % WARP;
  const u64 stride = (u64)gridDim.x * (blockDim.x / WARP);
  const u64 count = items.pairing == Pairing::Cross ? (u64)params.queries.count * items.docs : params.slots;
  for (u64 slot = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; slot < count; slot += stride) {
    const bool cross = items.pairing == Pairing::Cross;
    const u32 query = cross ? (u32)(slot / items.docs) : items.query_of((u32)slot), doc = cross ? (u32)(slot % items.docs) : items.doc_of((u32)slot);
    int* choices = params.argmax + items.arguments(params.queries, query, doc, cross ? 0 : (u32)slot);
    const u64 first_row = params.queries.start(query), doc_row = params.docs.start(doc);
    const u32 size = params.queries.size(query), end = params.docs.end(doc);
    for (u32 token = 0; token < size; ++token) {
      if (choices[token] != -2) continue;
      Best best = {MINUS_INFINITY, -1};
      for (u32 at = lane; at < end; at += WARP)
        if (params.docs.keeps(doc, at)) best.merge(similarity(params, first_row + token, doc_row + at), (int)at);
#pragma unroll
      for (u32 offset = 1; offset < WARP; offset *= 2) {
        const float value = __shfl_xor_sync(~0u, best.value, offset);
        const int at = __shfl_xor_sync(~0u, best.index, offset);
        best.merge(value, at);
      }
      __syncwarp();
      if (lane == 0) choices[token] = best.index;
    }
  }
}
