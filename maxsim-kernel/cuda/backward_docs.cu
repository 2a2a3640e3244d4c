// Gradient of the documents: a block owns some consecutive tokens of a document, lists the query tokens that chose each of them (a counting sort
// that keeps their order), and sums their rows. No atomic additions, no f32 copy of the gradient: the same bits on every run.
//   ELEMENT, VECTORIZED, ROW_LANES, ROW_SLICES: see rows.cuh    OWNED: tokens of a block    BATCHED: 1 where the lists may not fit at once
#include "gradients.cuh"

constexpr u32 WARPS = 8, THREADS = WARPS * WARP, CAPACITY = 4096, STEPS = CAPACITY / WARP, LONG_LIST = 256, UNROLL = 4;

struct Entry {
  u32 row;  // of the query token
  float weight;
};

struct Shared {
  Entry entries[CAPACITY];
  u32 counts[WARPS][OWNED];  // then: where each warp's entries of a token go
  u32 begin[OWNED + 1];
  u32 warp_totals[WARPS];
  float parts[WARPS][Sum::SIZE * ROW_LANES * ROW_SLICES];  // of a long list
  float sums[BATCHED ? OWNED : 1][BATCHED ? Sum::SIZE * ROW_LANES * ROW_SLICES : 1];
};

// One query token of a step (32 tokens of one meeting's query), or none.
struct Candidate {
  u32 token;  // owned token that it chose, OWNED for none
  Entry entry;
};
DEV Candidate candidate(const GradientParams& params, u32 doc, u32 first_owned, u32 step, u32 blocks_per_meeting) {
  const Items& items = params.items;
  const u32 i = step / blocks_per_meeting, token = step % blocks_per_meeting * WARP + threadIdx.x % WARP;
  u32 query = i;
  u64 slot = 0;
  switch (items.pairing) {
    case Pairing::Cross: slot = (u64)query * items.docs + doc; break;
    case Pairing::Candidates: query = doc / items.per_query, slot = doc; break;
    case Pairing::Pairs: query = doc, slot = doc; break;
    case Pairing::List: slot = params.meetings.slots[params.meetings.starts[doc] + i], query = items.query_of((u32)slot); break;
  }
  Candidate none = {OWNED, {0, 0.f}};
  if (token >= params.queries.size(query)) return none;
  const int chosen = params.argmax[items.arguments(params.queries, query, doc, (u32)slot) + token];
  const u32 owned = (u32)chosen - first_owned;
  if (chosen < 0 || owned >= OWNED) return none;
  const u32 row = (u32)(params.queries.start(query) + token);
  const float d_score = params.d_scores[slot];
  return {owned, {row, params.queries.scales ? d_score * params.queries.scales[row] : d_score}};
}

// Lanes of the warp with the same key. OWNED is a power of two and the key OWNED (no entry) has a bit of its own.
DEV u32 same_key(u32 key) { return __match_any_sync(~0u, key); }

// Sorts the entries of steps [first, last) into `entries` by token. Gives their number; sorts nothing when that is beyond the capacity.
DEV u32 sort(Shared& shared, const GradientParams& params, u32 doc, u32 first_owned, u32 first, u32 last, u32 blocks_per_meeting) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, steps = last - first;
  const u32 from = first + steps * warp / WARPS, to = first + steps * (warp + 1) / WARPS;
  for (u32 i = threadIdx.x; i < WARPS * OWNED; i += THREADS) (&shared.counts[0][0])[i] = 0;
  __syncthreads();
  for (u32 step = from; step < to; ++step) {
    const u32 token = candidate(params, doc, first_owned, step, blocks_per_meeting).token;
    if (__all_sync(~0u, token == OWNED)) continue;
    const u32 peers = same_key(token);
    if (token < OWNED && lane == __ffs(peers) - 1) shared.counts[warp][token] += __popc(peers);
    __syncwarp();
  }
  __syncthreads();
  // Exclusive sums over tokens, and within a token over warps. A thread has consecutive tokens.
  constexpr u32 EACH = (OWNED + THREADS - 1) / THREADS;
  u32 own = 0;
  for (u32 e = 0; e < EACH; ++e) {
    const u32 token = threadIdx.x * EACH + e;
    for (u32 w = 0; token < OWNED && w < WARPS; ++w) own += shared.counts[w][token];
  }
  u32 sum = own;
#pragma unroll
  for (u32 offset = 1; offset < WARP; offset *= 2) {
    const u32 below = __shfl_up_sync(~0u, sum, offset);
    if (lane >= offset) sum += below;
  }
  if (lane == WARP - 1) shared.warp_totals[warp] = sum;
  __syncthreads();
  u32 at = sum - own, total = 0;
  for (u32 w = 0; w < WARPS; ++w) {
    if (w < warp) at += shared.warp_totals[w];
    total += shared.warp_totals[w];
  }
  for (u32 e = 0; e < EACH; ++e) {
    const u32 token = threadIdx.x * EACH + e;
    if (token >= OWNED) break;
    shared.begin[token] = at;
    for (u32 w = 0; w < WARPS; ++w) {
      const u32 count = shared.counts[w][token];
      shared.counts[w][token] = at;
      at += count;
    }
  }
  if (threadIdx.x == 0) shared.begin[OWNED] = total;
  __syncthreads();
  if (total == 0 || total > CAPACITY) return total;
  for (u32 step = from; step < to; ++step) {
    const Candidate found = candidate(params, doc, first_owned, step, blocks_per_meeting);
    if (__all_sync(~0u, found.token == OWNED)) continue;
    const u32 peers = same_key(found.token);
    u32 place = 0;
    if (found.token < OWNED) place = shared.counts[warp][found.token] + __popc(peers & ((1u << lane) - 1));
    __syncwarp();
    if (found.token < OWNED) {
      shared.entries[place] = found.entry;
      if (lane == __ffs(peers) - 1) shared.counts[warp][found.token] += __popc(peers);
    }
    __syncwarp();
  }
  __syncthreads();
  return total;
}

DEV void add_entries(Sum& sum, const Shared& shared, const GradientParams& params, u32 from, u32 to) {
  const E::Storage* queries = static_cast<const E::Storage*>(params.queries.rows);
#pragma unroll UNROLL
  for (u32 i = from + Sum::group(); i < to; i += Sum::GROUPS) {
    const Entry entry = shared.entries[i];
    sum.add(queries + (u64)entry.row * params.queries.row_stride, entry.weight, params.dim);
  }
}

// What an unchosen token holds must not reach its gradient through its norm.
DEV void finish(Sum& sum, const GradientParams& params, u64 row) {
  if (params.docs.scales && !sum.is_zero()) {
    const E::Storage* own = static_cast<const E::Storage*>(params.docs.rows) + row * params.docs.row_stride;
    sum.through_norm(own, params.docs.scales[row], params.dim);
  }
  sum.store(params.gradient + row * params.gradient_stride, params.dim);
}

KERNEL __launch_bounds__(THREADS, 2) maxsim_backward_docs(const __grid_constant__ GradientParams params) {
  extern __shared__ __align__(16) u8 dynamic[];
  Shared& shared = *reinterpret_cast<Shared*>(dynamic);
  const Items& items = params.items;
  const u32 doc = blockIdx.x, first_owned = blockIdx.y * OWNED, size = params.docs.size(doc);
  if (first_owned >= size) return;
  const u32 warp = threadIdx.x / WARP, owned = min_of(OWNED, size - first_owned);
  const u64 first_row = params.docs.start(doc) + first_owned;
  u32 meetings = 1;
  if (items.pairing == Pairing::Cross) meetings = params.queries.count;
  else if (items.pairing == Pairing::List) meetings = params.meetings.starts[doc + 1] - params.meetings.starts[doc];
  const u32 blocks_per_meeting = params.splits;  // of 32 tokens, in the longest query
  const u32 steps = meetings * blocks_per_meeting;

  const u32 total = sort(shared, params, doc, first_owned, 0, steps, blocks_per_meeting);
  const bool batched = BATCHED && total > CAPACITY;
  if (batched)
    for (u32 i = threadIdx.x; i < sizeof(shared.sums) / 4; i += THREADS) (&shared.sums[0][0])[i] = 0.f;
  for (u32 from = 0; from < steps; from += STEPS) {
    if (batched) {
      __syncthreads();
      sort(shared, params, doc, first_owned, from, min_of(steps, from + STEPS), blocks_per_meeting);
    }
    for (u32 token = warp; token < owned; token += WARPS) {
      const u32 begin = shared.begin[token], end = shared.begin[token + 1];
      if (end - begin > LONG_LIST || (batched && begin == end)) continue;
      Sum sum;
      sum.clear();
      if (begin != end) {
        add_entries(sum, shared, params, begin, end);
        sum.combine();
      }
      if (!batched) {
        finish(sum, params, first_row + token);
      } else {
        if (Sum::group() == 0) sum.add_spilled(shared.sums[BATCHED ? token : 0], params.dim);
        sum.spill(shared.sums[BATCHED ? token : 0], params.dim);
      }
    }
    // A token that many chose keeps all warps busy.
    for (u32 token = 0; token < owned; ++token) {
      const u32 begin = shared.begin[token], end = shared.begin[token + 1];
      if (end - begin <= LONG_LIST) continue;
      Sum sum;
      sum.clear();
      const u32 count = end - begin;
      add_entries(sum, shared, params, begin + count * warp / WARPS, begin + count * (warp + 1) / WARPS);
      sum.combine();
      sum.spill(shared.parts[warp], params.dim);
      __syncthreads();
      if (warp == token % WARPS) {
        sum.clear();
        for (u32 w = 0; w < WARPS; ++w) sum.add_spilled(shared.parts[w], params.dim);
        if (!batched) finish(sum, params, first_row + token);
        else {
          if (Sum::group() == 0) sum.add_spilled(shared.sums[BATCHED ? token : 0], params.dim);
          sum.spill(shared.sums[BATCHED ? token : 0], params.dim);
        }
      }
      __syncthreads();
    }
    if (!batched) return;
  }
  __syncthreads();
  for (u32 token = warp; token < owned; token += WARPS) {
    Sum sum;
    sum.clear();
    sum.add_spilled(shared.sums[BATCHED ? token : 0], params.dim);
    finish(sum, params, first_row + token);
  }
}
