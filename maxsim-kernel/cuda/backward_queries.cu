// Gradient of the queries: each token's is summed by one warp (or by `splits` times `sharers` warps, whose sums are added in order), over the
// document tokens that it chose. Optionally also the documents' sums, by atomic additions.
//   ELEMENT, VECTORIZED, ROW_LANES, ROW_SLICES: see rows.cuh    WITH_DOCS: 0 or 1
#include "gradients.cuh"
#include "ptx/sync.cuh"

constexpr u32 WARPS = 8, UNROLL = ROW_SLICES == 1 ? 8 : ROW_SLICES <= 4 ? 2 : 1, PARTIAL_UNROLL = WITH_DOCS ? 1 : UNROLL;

struct Choice {
  u64 row;       // of the document token
  float weight;  // 0 together with `valid` false
  bool valid;
};

// What query token `token` chose in the i-th meeting of its query.
DEV Choice choice(const GradientParams& params, u32 query, u32 token, u32 i, u32 count) {
  Choice none = {0, 0.f, false};
  if (i >= count) return none;
  const Items& items = params.items;
  u32 doc = i;
  u64 slot = 0;
  switch (items.pairing) {
    case Pairing::Cross: slot = (u64)query * items.docs + i; break;
    case Pairing::Candidates: slot = doc = query * items.per_query + i; break;
    case Pairing::Pairs: slot = doc = query; break;
    case Pairing::List: slot = params.meetings.slots[params.meetings.starts[query] + i], doc = items.doc_of((u32)slot); break;
  }
  const int chosen = params.argmax[items.arguments(params.queries, query, doc, (u32)slot) + token];
  if (chosen < 0 || (u32)chosen >= params.docs.size(doc)) return none;
  const u64 row = params.docs.start(doc) + chosen;
  const float d_score = params.d_scores[slot];
  return {row, params.docs.scales ? d_score * params.docs.scales[row] : d_score, true};
}

KERNEL __launch_bounds__(WARPS * WARP, ROW_SLICES > 4 ? 1 : Sum::SIZE * ROW_SLICES > 8 ? 2 : 4) maxsim_backward_queries(const __grid_constant__ GradientParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  __shared__ float parts[WARPS][Sum::SIZE * ROW_LANES * ROW_SLICES];
  __shared__ bool any_touched[WARPS];
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, sharer = warp & (params.sharers - 1);
  const u32 query = blockIdx.x, token = (blockIdx.y * WARPS + warp) / params.sharers;
  const Items& items = params.items;
  if (blockIdx.y * WARPS / params.sharers >= params.queries.size(query)) return;
  const bool exists = token < params.queries.size(query);
  const u64 row = params.queries.start(query) + token;
  u32 count = 1;
  if (items.pairing == Pairing::Cross) count = items.docs;
  else if (items.pairing == Pairing::Candidates) count = items.per_query;
  else if (items.pairing == Pairing::List) count = params.meetings.starts[query + 1] - params.meetings.starts[query];
  if (!exists) count = 0;
  const u32 share = ceil_div(count, params.splits * params.sharers), first = (blockIdx.z * params.sharers + sharer) * share, last = min_of(count, first + share);
  const E::Storage* docs = static_cast<const E::Storage*>(params.docs.rows);
  const E::Storage* own = static_cast<const E::Storage*>(params.queries.rows) + row * params.queries.row_stride;
  const float own_scale = exists && params.queries.scales ? params.queries.scales[row] : 1.f;

  Sum sum;
  sum.clear();
  bool touched = false;  // what a masked token holds must not reach its gradient through its norm
#if WITH_DOCS
  float own_values[ROW_SLICES][Access::SIZE];
#pragma unroll
  for (u32 s = 0; s < ROW_SLICES; ++s)
    Access::load(own_values[s], own + Sum::column(s), exists && Sum::column(s) < params.dim);
#endif
  for (u32 from = first; from < last; from += WARP) {
    const Choice mine = choice(params, query, token, from + lane, last);
    const u32 valid = __ballot_sync(~0u, mine.valid);
    if (!valid) continue;
    touched = true;
    if (!WITH_DOCS && valid == ~0u) {  // no branch between the loads
#pragma unroll UNROLL
      for (u32 i = 0; i < WARP; i += Sum::GROUPS) {
        const u64 at = __shfl_sync(~0u, mine.row, i + Sum::group());
        sum.add(docs + at * params.docs.row_stride, __shfl_sync(~0u, mine.weight, i + Sum::group()), params.dim);
      }
      continue;
    }
#pragma unroll PARTIAL_UNROLL
    for (u32 i = 0; i < WARP; i += Sum::GROUPS) {
      const u32 source = i + Sum::group();
      const u64 at = __shfl_sync(~0u, mine.row, source);
      const float weight = __shfl_sync(~0u, mine.weight, source);
      sum.add(docs + at * params.docs.row_stride, weight, params.dim, valid >> source & 1);
#if WITH_DOCS
      if (!(valid >> source & 1)) continue;
      // The weight of the query's row in the document's sum has the query's scale, not the document's.
      const float d_score = params.docs.scales ? weight / params.docs.scales[at] : weight;
#pragma unroll
      for (u32 s = 0; s < ROW_SLICES; ++s)
#pragma unroll
        for (u32 e = 0; e < Access::SIZE; ++e)
          if (Sum::column(s) < params.dim) atomicAdd(params.scratch + at * params.dim + Sum::column(s) + e, d_score * own_scale * own_values[s][e]);
#endif
    }
  }
  sum.combine();
  if (params.sharers > 1) {
    if (Sum::group() == 0) sum.spill(parts[warp], params.dim);
    if (lane == 0) any_touched[warp] = touched;
    __syncthreads();
    if (sharer > 0) return;
    for (u32 w = warp + 1; w < warp + params.sharers; ++w) {
      sum.add_spilled(parts[w], params.dim);
      touched |= any_touched[w];
    }
  }
  if (!exists) return;
  if (!WITH_DOCS && params.splits > 1) {
    const u64 tokens = params.queries.start(params.queries.count);
    if (Sum::group() == 0) sum.spill(params.scratch + (blockIdx.z * tokens + row) * params.dim, params.dim);
    return;
  }
  if (params.gradient == nullptr) return;
  if (touched && params.queries.scales) sum.through_norm(own, own_scale, params.dim);
  if (Sum::group() == 0) sum.store(params.gradient + row * params.gradient_stride, params.dim);
}
