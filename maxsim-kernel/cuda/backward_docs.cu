// Gradient of the documents: a block owns some consecutive tokens of a document, lists the query tokens that chose each of them (a counting sort
// that keeps their order), and sums their rows. No atomic additions, no f32 copy of the gradient: the same bits on every run.
//   ELEMENT, VECTORIZED, ROW_LANES, ROW_SLICES: see rows.cuh    BLOCK_WARPS: warps of a block    RESIDENT: blocks that an SM should hold
//   OWNED: tokens of a block    CAPACITY: query tokens that a block can list at once    BATCHED: 1 where more may choose in a document
#include "gradients.cuh"
#include "ptx/sync.cuh"

constexpr u32 WARPS = BLOCK_WARPS, THREADS = WARPS * WARP, SHARE = CAPACITY / WARPS, LONG_LIST = 256, UNROLL = 4, AHEAD = 4;
constexpr u32 WIDTH = Sum::SIZE * ROW_LANES * ROW_SLICES;

struct Entry {
  u32 row;  // of the query token
  float weight;
};

struct Shared {
  Entry entries[CAPACITY];  // as found, a share for each warp
  u16 order[CAPACITY];      // entries by token
  u16 tokens[CAPACITY];     // that the entries chose
  u32 counts[WARPS][OWNED]; // then: where each warp's entries of a token go
  u32 warp_totals[WARPS];
  u32 begin[OWNED + 1];     // of a token in `order`
  u32 overflow, any_long;
  float parts[WARPS][WIDTH];  // of a long list
  float sums[BATCHED ? OWNED : 1][BATCHED ? WIDTH : 1];
};

// Where the query tokens of a meeting's step (32 tokens) and their choices lie.
struct Step {
  u32 query, token;  // token of this lane
  u64 slot, choices;
};
DEV Step step_at(const GradientParams& params, u32 doc, u32 step, u32 blocks_per_meeting) {
  const Items& items = params.items;
  const u32 i = blocks_per_meeting == 1 ? step : step / blocks_per_meeting;
  u32 query = i;
  u64 slot = 0;
  switch (items.pairing) {
    case Pairing::Cross: slot = (u64)query * items.docs + doc; break;
    case Pairing::Candidates: query = doc / items.per_query, slot = doc; break;
    case Pairing::Pairs: query = doc, slot = doc; break;
    case Pairing::List: slot = params.meetings.slots[params.meetings.starts[doc] + i], query = items.query_of((u32)slot); break;
  }
  return {query, (step - i * blocks_per_meeting) * WARP + threadIdx.x % WARP, slot, items.arguments(params.queries, query, doc, (u32)slot)};
}

// Lists what steps [first, last) chose among the owned tokens, by token. Gives how many; more than fit leave nothing listed.
DEV u32 sort(Shared& shared, const GradientParams& params, u32 doc, u32 first_owned, u32 first, u32 last, u32 blocks_per_meeting) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, steps = last - first;
  const u32 from = first + (u32)((u64)steps * warp / WARPS), to = first + (u32)((u64)steps * (warp + 1) / WARPS);
  for (u32 i = threadIdx.x; i < WARPS * OWNED; i += THREADS) (&shared.counts[0][0])[i] = 0;
  if (threadIdx.x == 0) shared.overflow = shared.any_long = 0;
  __syncthreads();
  // Each warp reads its steps in order, some ahead, and keeps what is owned in its share.
  u32 found = 0;
  for (u32 step = from; step < to; step += AHEAD) {
    Step at[AHEAD];
    u32 chosen[AHEAD];
#pragma unroll
    for (u32 a = 0; a < AHEAD; ++a) {
      chosen[a] = ~0u;
      if (step + a >= to) continue;
      at[a] = step_at(params, doc, step + a, blocks_per_meeting);
      if (at[a].token < params.queries.size(at[a].query)) chosen[a] = (u32)params.argmax[at[a].choices + at[a].token] - first_owned;
    }
#pragma unroll
    for (u32 a = 0; a < AHEAD; ++a) {
      const bool owned = chosen[a] < OWNED;
      const u32 mask = __ballot_sync(~0u, owned);
      if (!mask) continue;
      const u32 place = found + __popc(mask & ((1u << lane) - 1));
      if (owned && place < SHARE) {
        const u64 row = params.queries.start(at[a].query) + at[a].token;
        const float d_score = params.d_scores[at[a].slot];
        shared.entries[warp * SHARE + place] = {(u32)row, params.queries.scales ? d_score * params.queries.scales[row] : d_score};
        shared.tokens[warp * SHARE + place] = (u16)chosen[a];
      }
      found += __popc(mask);
    }
  }
  if (found > SHARE && lane == 0) shared.overflow = 1;
  __syncwarp();
  const u32 kept = min_of(found, SHARE);
  for (u32 i = lane; i - lane < kept; i += WARP) {
    const u32 token = i < kept ? shared.tokens[warp * SHARE + i] : OWNED, peers = __match_any_sync(~0u, token);
    if (token < OWNED && lane == __ffs(peers) - 1) shared.counts[warp][token] += __popc(peers);
    __syncwarp();
  }
  __syncthreads();
  if (shared.overflow) {
    __syncthreads();
    return CAPACITY + 1;
  }
  // Exclusive sums over tokens, and within a token over warps. A thread has consecutive tokens.
  constexpr u32 EACH = (OWNED + THREADS - 1) / THREADS;
  u32 own = 0;
  for (u32 e = 0; e < EACH; ++e) {
    const u32 token = threadIdx.x * EACH + e;
    u32 count = 0;
    for (u32 w = 0; token < OWNED && w < WARPS; ++w) count += shared.counts[w][token];
    if (count > LONG_LIST) shared.any_long = 1;
    own += count;
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
  for (u32 i = lane; i - lane < kept; i += WARP) {
    const u32 token = i < kept ? shared.tokens[warp * SHARE + i] : OWNED, peers = __match_any_sync(~0u, token);
    u32 place = 0;
    if (token < OWNED) place = shared.counts[warp][token] + __popc(peers & ((1u << lane) - 1));
    __syncwarp();
    if (token < OWNED) {
      shared.order[place] = (u16)(warp * SHARE + i);
      if (lane == __ffs(peers) - 1) shared.counts[warp][token] += __popc(peers);
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
    const Entry entry = shared.entries[shared.order[i]];
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

// Zeros for the tokens that no query token chose, 16 bytes a thread.
DEV void store_zeros(const Shared& shared, const GradientParams& params, u64 first_row, u32 owned) {
  constexpr u32 PIECE = Access::SIZE;
  const u32 pieces = ceil_div(params.dim, PIECE);
  const float zeros[PIECE] = {};
  for (u32 i = threadIdx.x; i < owned * pieces; i += THREADS) {
    const u32 token = i / pieces, piece = i - token * pieces;
    if (shared.begin[token] == shared.begin[token + 1])
      Access::store(params.gradient + (first_row + token) * params.gradient_stride + piece * PIECE, zeros);
  }
}

// A token's sum over the listed entries goes to its gradient, or in batches to its f32 sum.
DEV void put(Sum& sum, Shared& shared, const GradientParams& params, u64 first_row, u32 token, bool batched) {
  if (!batched) return finish(sum, params, first_row + token);
  float* sums = shared.sums[BATCHED ? token : 0];
  if (Sum::group() == 0) sum.add_spilled(sums, params.dim);
  sum.spill(sums, params.dim);
}

DEV void sum_lists(Shared& shared, const GradientParams& params, u64 first_row, u32 owned, bool batched) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  // Warp w has tokens w, w + WARPS, ...: a lane looks at one of them.
  for (u32 from = 0; from * WARPS < owned; from += WARP) {
    const u32 mine = (from + lane) * WARPS + warp;
    const u32 length = mine < owned ? shared.begin[mine + 1] - shared.begin[mine] : 0;
    for (u32 left = __ballot_sync(~0u, length > 0 && length <= LONG_LIST); left; left &= left - 1) {
      const u32 token = (from + __ffs(left) - 1) * WARPS + warp;
      Sum sum;
      sum.clear();
      add_entries(sum, shared, params, shared.begin[token], shared.begin[token + 1]);
      sum.combine();
      put(sum, shared, params, first_row, token, batched);
    }
  }
  if (!shared.any_long) return;
  // A token that many chose keeps all warps busy.
  for (u32 token = 0; token < owned; ++token) {
    const u32 begin = shared.begin[token], count = shared.begin[token + 1] - begin;
    if (count <= LONG_LIST) continue;
    Sum sum;
    sum.clear();
    add_entries(sum, shared, params, begin + count * warp / WARPS, begin + count * (warp + 1) / WARPS);
    sum.combine();
    sum.spill(shared.parts[warp], params.dim);
    __syncthreads();
    if (warp == token % WARPS) {
      sum.clear();
      for (u32 w = 0; w < WARPS; ++w) sum.add_spilled(shared.parts[w], params.dim);
      put(sum, shared, params, first_row, token, batched);
    }
    __syncthreads();
  }
}

// On Ada (sm_89) the compiler spills at the 64 registers that two blocks of 512 threads leave each thread.
#if __CUDA_ARCH__ == 890
constexpr u32 BLOCKS_PER_SM = THREADS > 256 ? 1 : RESIDENT;
#else
constexpr u32 BLOCKS_PER_SM = RESIDENT;
#endif

DEV void sum_owned(const GradientParams& params) {
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

  // All steps at once, or as many as can be listed; a warp's part of WARPS steps always can.
  bool batched = false;
  for (u32 from = 0, width = steps;;) {
    width = min_of(width, steps - from);
    if (sort(shared, params, doc, first_owned, from, from + width, blocks_per_meeting) > CAPACITY) {
      if constexpr (!BATCHED) return;  // not reached: the launcher knows that they fit
      width = ceil_div(width, 2);
      if (!batched)
        for (u32 i = threadIdx.x; BATCHED && i < OWNED * WIDTH; i += THREADS) (&shared.sums[0][0])[i] = 0.f;
      batched = true;
      continue;
    }
    if (!batched) store_zeros(shared, params, first_row, owned);
    sum_lists(shared, params, first_row, owned, batched);
    if (!batched) return;
    __syncthreads();
    from += width;
    if (from >= steps) break;
  }
  for (u32 token = warp; BATCHED && token < owned; token += WARPS) {
    Sum sum;
    sum.clear();
    sum.add_spilled(shared.sums[BATCHED ? token : 0], params.dim);
    finish(sum, params, first_row + token);
  }
}

// The launch of the queries' gradient waits for all before it before it lets this one begin, so that what is read here is there; this one, at its
// end, waits for that one, so that whoever waits for this one has waited for both.
KERNEL __launch_bounds__(THREADS, BLOCKS_PER_SM) maxsim_backward_docs(const __grid_constant__ GradientParams params) {
  if (!params.behind_queries) grid_dependency_wait();
  grid_dependency_launch();
  sum_owned(params);
  if (params.behind_queries) grid_dependency_wait();
}
