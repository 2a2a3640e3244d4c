// Gradient of the documents: a block owns some consecutive tokens of a document, lists the query tokens that chose each of them (a counting sort
// that keeps their order), and sums their rows. No atomic additions, no f32 copy of the gradient: the same bits on every run.
//   ELEMENT, VECTORIZED, ROW_LANES, ROW_SLICES: see rows.cuh    BLOCK_WARPS: warps of a block    RESIDENT: blocks that an SM should hold
//   OWNED: tokens that a block may have, at most 128    CAPACITY: query tokens that a block can list at once
//   NEIGHBOURS: 1 when blocks next to one another have tokens next to one another, 0 when they have documents next to one another
#include "gradients.cuh"
#include "ptx/sync.cuh"

constexpr u32 WARPS = BLOCK_WARPS, THREADS = WARPS * WARP, SHARE = CAPACITY / WARPS, LONG_LIST = 256, AHEAD = 2;
constexpr u32 UNROLL = ROW_SLICES == 1 ? 4 : ROW_SLICES <= 4 ? 2 : 1;
constexpr u32 NOT_CROWDED = ~0u, WIDTH = Sum::SIZE * ROW_LANES * ROW_SLICES, GROUPS = Sum::GROUPS;
// A step is what a warp reads of the choices at once: 4 places a lane.
constexpr u32 STEP = 4 * WARP, SURE_STEPS = SHARE / STEP * WARPS;  // so many steps fit whatever they chose
static_assert(OWNED <= 128 && SHARE <= 512 && SHARE >= STEP, "a mark is a token and a rank in 16 bits, and a warp's step fits its share");

struct Entry {
  u32 row;  // of the query token
  float weight;
};

struct Shared {
  Entry entries[CAPACITY];   // as found, a share for each warp
  u16 marks[CAPACITY];       // of the entries: the token that was chosen, and how many of the warp's entries before this one chose it
  u16 order[CAPACITY];       // entries by token
  u32 counts[WARPS][OWNED];  // then: where each warp's entries of a token go
  u32 warp_totals[WARPS];
  u32 begin[OWNED + 1];      // of a token in `order`
  u32 overflow, any_long, crowded_step;  // where the sum of a token whose list does not fit stands
  float parts[WARPS][WIDTH];  // of a long list
  float crowded[WIDTH];       // that sum, by warp 0
  u32 doc;                    // of the block, unless it is `blockIdx.x`
};

DEV u32 doc_of_block(const Shared& shared) { return NEIGHBOURS ? shared.doc : blockIdx.x; }

// Some choices of one query. Meetings have as many places as the power of two that no query's length exceeds.
struct Choices {
  u32 row, chosen[4];  // of the first; beyond the query ~0
  float d_score;
};
DEV Choices read_choices(const GradientParams& params, u32 doc, u32 meetings, u32 step) {
  const Items& items = params.items;
  const u64 place = (u64)step * STEP + threadIdx.x % WARP * 4;
  const u32 i = (u32)(place >> params.splits), token = (u32)place & ((1u << params.splits) - 1);
  Choices read = {0, {~0u, ~0u, ~0u, ~0u}, 0.f};
  if (i >= meetings) return read;
  u32 query = i;
  u64 slot = 0;
  switch (items.pairing) {
    case Pairing::Cross: slot = (u64)query * items.docs + doc; break;
    case Pairing::Candidates: query = doc / items.per_query, slot = doc; break;
    case Pairing::Pairs: query = doc, slot = doc; break;
    case Pairing::List: slot = params.meetings.slots[params.meetings.starts[doc] + i], query = items.query_of((u32)slot); break;
  }
  const u32 size = params.queries.size(query);
  if (token >= size) return read;
  const int* at = params.argmax + items.arguments(params.queries, query, doc, (u32)slot) + token;
  read.row = (u32)params.queries.start(query) + token, read.d_score = params.d_scores[slot];
  if (token + 4 <= size && ((u64)at & 15) == 0) {
    const uint4 four = *reinterpret_cast<const uint4*>(at);
    read.chosen[0] = four.x, read.chosen[1] = four.y, read.chosen[2] = four.z, read.chosen[3] = four.w;
  } else {
#pragma unroll
    for (u32 e = 0; e < 4; ++e)
      if (token + e < size) read.chosen[e] = (u32)at[e];
  }
  return read;
}

// Lists what steps [first, last) chose among `owned` tokens from `first_owned` on, by token. Gives whether they fit; if not, nothing is listed.
DEV bool sort(Shared& shared, const GradientParams& params, u32 meetings, u32 first_owned, u32 owned, u32 first, u32 last) {
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, steps = last - first, below = (1u << lane) - 1;
  const u32 from = first + (u32)((u64)steps * warp / WARPS), to = first + (u32)((u64)steps * (warp + 1) / WARPS);
  for (u32 i = threadIdx.x; i < WARPS * OWNED; i += THREADS) (&shared.counts[0][0])[i] = 0;
  if (threadIdx.x == 0) shared.overflow = shared.any_long = 0;
  __syncthreads();
  // Each warp reads its steps in order, some ahead, and keeps what is owned in its share.
  u32 found = 0;
#pragma unroll 1
  for (u32 step = from; step < to; step += AHEAD) {
    Choices read[AHEAD];
#pragma unroll
    for (u32 a = 0; a < AHEAD; ++a) read[a] = read_choices(params, doc_of_block(shared), step + a < to ? meetings : 0, step + a);
#pragma unroll
    for (u32 a = 0; a < AHEAD; ++a)
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        const u32 token = read[a].chosen[e] - first_owned, mask = __ballot_sync(~0u, token < owned);
        const u32 place = found + __popc(mask & below);
        if (token < owned && place < SHARE) {
          const u32 row = read[a].row + e;
          shared.entries[warp * SHARE + place] = {row, params.queries.scales ? read[a].d_score * params.queries.scales[row] : read[a].d_score};
          shared.marks[warp * SHARE + place] = (u16)token;
        }
        found += __popc(mask);
      }
  }
  if (found > SHARE && lane == 0) shared.overflow = 1;
  __syncwarp();
  const u32 kept = min_of(found, SHARE);
#pragma unroll 1
  for (u32 i = lane; i - lane < kept; i += WARP) {
    const u32 token = i < kept ? shared.marks[warp * SHARE + i] : OWNED, peers = __match_any_sync(~0u, token);
    if (token < OWNED) shared.marks[warp * SHARE + i] = (u16)(token | (shared.counts[warp][token] + __popc(peers & below)) << 7);
    __syncwarp();
    if (token < OWNED && lane == __ffs(peers) - 1) shared.counts[warp][token] += __popc(peers);
    __syncwarp();
  }
  __syncthreads();
  if (shared.overflow) {
    __syncthreads();
    return false;
  }
  // Exclusive sums over tokens, and within a token over warps. A thread has consecutive tokens.
  constexpr u32 EACH = (OWNED + THREADS - 1) / THREADS;
  u32 own = 0;
#pragma unroll
  for (u32 e = 0; e < EACH; ++e) {
    const u32 token = threadIdx.x * EACH + e;
    u32 count = 0;
    if (token < OWNED)
#pragma unroll
      for (u32 w = 0; w < WARPS; ++w) count += shared.counts[w][token];
    if (count > LONG_LIST) shared.any_long = 1;
    own += count;
  }
  u32 sum = own;
#pragma unroll
  for (u32 offset = 1; offset < WARP; offset *= 2) {
    const u32 before = __shfl_up_sync(~0u, sum, offset);
    if (lane >= offset) sum += before;
  }
  if (lane == WARP - 1) shared.warp_totals[warp] = sum;
  __syncthreads();
  u32 at = sum - own;
#pragma unroll
  for (u32 w = 0; w < WARPS; ++w)
    if (w < warp) at += shared.warp_totals[w];
  if (threadIdx.x == THREADS - 1) shared.begin[OWNED] = at + own;
#pragma unroll
  for (u32 e = 0; e < EACH; ++e) {
    const u32 token = threadIdx.x * EACH + e;
    if (token >= OWNED) break;
    shared.begin[token] = at;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
      const u32 count = shared.counts[w][token];
      shared.counts[w][token] = at;
      at += count;
    }
  }
  __syncthreads();
  for (u32 i = lane; i < kept; i += WARP) {
    const u32 mark = shared.marks[warp * SHARE + i];
    shared.order[shared.counts[warp][mark & 127] + (mark >> 7)] = (u16)(warp * SHARE + i);
  }
  __syncthreads();
  return true;
}

// What an unchosen token holds must not reach its gradient through its norm.
DEV void finish(Sum& sum, const GradientParams& params, u64 row, bool valid) {
  if (params.docs.scales) {
    const bool zero = sum.is_zero(), through = valid && !zero;
    const E::Storage* own = static_cast<const E::Storage*>(params.docs.rows) + row * params.docs.row_stride;
    sum.through_norm(own, through ? params.docs.scales[row] : 0.f, params.dim, through);
  }
  if (valid) sum.store(params.gradient + row * params.gradient_stride, params.dim);
}

// Zeros for the tokens that no query token chose, 16 bytes a thread.
DEV void store_zeros(const Shared& shared, const GradientParams& params, u32 first_owned, u32 owned) {
  const u64 first_row = params.docs.start(doc_of_block(shared)) + first_owned;
  constexpr u32 PIECE = Access::SIZE;
  const u32 pieces = ceil_div(params.dim, PIECE);
  const float zeros[PIECE] = {};
  for (u32 i = threadIdx.x; i < owned * pieces; i += THREADS) {
    const u32 token = i / pieces, piece = i - token * pieces;
    if (shared.begin[token] == shared.begin[token + 1])
      Access::store(params.gradient + (first_row + token) * params.gradient_stride + piece * PIECE, zeros);
  }
}

// The sum of entries [from, to) in `order`; lanes without work have an empty range. Of all lanes' ranges `shortest` and `longest`.
DEV void add_entries(Sum& sum, const Shared& shared, const GradientParams& params, u32 from, u32 to, u32 shortest, u32 longest) {
  const E::Storage* queries = static_cast<const E::Storage*>(params.queries.rows);
  u32 done = 0;
#pragma unroll 1
  for (; done + UNROLL <= shortest; done += UNROLL)
#pragma unroll
    for (u32 u = 0; u < UNROLL; ++u) {
      const Entry entry = shared.entries[shared.order[from + done + u]];
      sum.add(queries + (u64)entry.row * params.queries.row_stride, entry.weight, params.dim);
    }
#pragma unroll 1
  for (; done < longest; done += UNROLL)
#pragma unroll
    for (u32 u = 0; u < UNROLL; ++u) {
      const u32 i = from + done + u;
      const bool valid = i < to;
      const Entry entry = shared.entries[valid ? shared.order[i] : 0];
      sum.add(queries + (u64)entry.row * params.queries.row_stride, entry.weight, params.dim, valid);
    }
}
// The same by all warps: warp 0 ends with it, added to what it had.
DEV void add_long(Sum& sum, Shared& shared, const GradientParams& params, u32 from, u32 count) {
  const u32 warp = threadIdx.x / WARP, part = warp * GROUPS + Sum::group(), longest = ceil_div(count, WARPS * GROUPS);
  const u32 first = min_of(part * longest, count);
  Sum own;
  own.clear();
  add_entries(own, shared, params, from + first, from + min_of(first + longest, count), 0, longest);
  own.combine();
  if (Sum::group() == 0) own.spill(shared.parts[warp], params.dim);
  __syncthreads();
  if (warp == 0)
    for (u32 w = 0; w < WARPS; ++w) sum.add_spilled(shared.parts[w], params.dim);
  __syncthreads();
}

// Some of the entries of a token that too many chose.
DEV void add_crowded(Shared& shared, const GradientParams& params, u32 token, bool first, bool last) {
  Sum sum;
  sum.clear();
  if (!first && threadIdx.x < WARP) sum.add_spilled(shared.crowded, params.dim);
  add_long(sum, shared, params, 0, shared.begin[1]);
  if (threadIdx.x < ROW_LANES) sum.spill(shared.crowded, params.dim);
  if (last && threadIdx.x < WARP) finish(sum, params, params.docs.start(doc_of_block(shared)) + token, Sum::group() == 0);
}

DEV void sum_lists(Shared& shared, const GradientParams& params, u32 first_owned, u32 owned) {
  const u64 first_row = params.docs.start(doc_of_block(shared)) + first_owned;
  const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  // Warp w has tokens w, w + WARPS, ...: a lane looks at one of them, and each group of lanes sums one.
  for (u32 from = 0; from * WARPS < owned; from += WARP) {
    const u32 mine = (from + lane) * WARPS + warp;
    const u32 length = mine < owned ? shared.begin[mine + 1] - shared.begin[mine] : 0;
    for (u32 left = __ballot_sync(~0u, length > 0 && length <= LONG_LIST); left;) {
      u32 chosen = 0;
      bool valid = false;
      u32 shortest = ~0u, longest = 0;
#pragma unroll
      for (u32 g = 0; g < GROUPS; ++g) {
        if (!left) {
          shortest = 0;
          break;
        }
        const u32 next = __ffs(left) - 1, token = (from + next) * WARPS + warp, count = shared.begin[token + 1] - shared.begin[token];
        shortest = min_of(shortest, count), longest = max_of(longest, count);
        if (g == Sum::group()) chosen = token, valid = true;
        left &= left - 1;
      }
      Sum sum;
      sum.clear();
      add_entries(sum, shared, params, shared.begin[chosen], valid ? shared.begin[chosen + 1] : 0, shortest, longest);
      finish(sum, params, first_row + chosen, valid);
    }
  }
  if (!shared.any_long) return;
  // A token that many chose keeps all warps busy.
  for (u32 token = 0; token < owned; ++token) {
    const u32 begin = shared.begin[token], count = shared.begin[token + 1] - begin;
    if (count <= LONG_LIST) continue;
    Sum sum;
    sum.clear();
    add_long(sum, shared, params, begin, count);
    if (warp == 0) finish(sum, params, first_row + token, Sum::group() == 0);
  }
}

// On Ada and Blackwell the compiler spills at the 64 registers that four blocks of 256 threads leave each thread.
#if __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1000
constexpr u32 BLOCKS_PER_SM = RESIDENT > 3 ? RESIDENT - 1 : RESIDENT;
#else
constexpr u32 BLOCKS_PER_SM = RESIDENT;
#endif

DEV void sum_owned(const GradientParams& params) {
  extern __shared__ __align__(16) u8 dynamic[];
  Shared& shared = *reinterpret_cast<Shared*>(dynamic);
  const Items& items = params.items;
  u32 doc = blockIdx.x, piece = blockIdx.y;
  if constexpr (NEIGHBOURS) {
    doc = blockIdx.y * (gridDim.x / params.pieces) + blockIdx.x / params.pieces, piece = blockIdx.x % params.pieces;
    if (doc >= params.docs.count) return;
  }
  u32 meetings = 1;
  if (items.pairing == Pairing::Cross) meetings = params.queries.count;
  else if (items.pairing == Pairing::List) meetings = params.meetings.starts[doc + 1] - params.meetings.starts[doc];
  // A document of a list may have far fewer choosers than the one that `parts` is for.
  const u64 own_parts = (((u64)meetings << params.splits) + CAPACITY / 3 * 2 - 1) / (CAPACITY / 3 * 2);
  const u32 size = params.docs.size(doc), parts = own_parts < params.parts ? max_of((u32)own_parts, 1u) : params.parts;
  const u32 blocks = max_of(ceil_div(size, params.owned), min_of(size, parts));
  if (piece >= blocks) return;
  const u32 share = ceil_div(size, blocks), end = min_of(size, (piece + 1) * share);
  const u32 steps = (u32)((((u64)meetings << params.splits) + STEP - 1) / STEP);

  // As many tokens at once as can be listed; of one that too many chose, as many steps.
  if (threadIdx.x == 0) {
    if constexpr (NEIGHBOURS) shared.doc = doc;
    shared.crowded_step = NOT_CROWDED;
  }
  __syncthreads();
#pragma unroll 1
  for (u32 first = piece * share, width = share; first < end;) {
    width = min_of(width, end - first);
    const bool crowded = shared.crowded_step != NOT_CROWDED;
    const u32 from = crowded ? shared.crowded_step : 0, to = crowded ? min_of(steps, from + SURE_STEPS) : steps;
    if (!sort(shared, params, meetings, first, width, from, to)) {
      if (width == 1 && threadIdx.x == 0) shared.crowded_step = 0;
      __syncthreads();
      width = ceil_div(width, 2);
      continue;
    }
    const u32 step = shared.crowded_step, next = step + SURE_STEPS;
    if (step == NOT_CROWDED) {
      store_zeros(shared, params, first, width);
      sum_lists(shared, params, first, width);
      first += width;
      if (shared.begin[OWNED] <= CAPACITY / 4) width *= 2;  // it was a crowded token that had made it small
    } else {
      add_crowded(shared, params, first, step == 0, next >= steps);
      if (threadIdx.x == 0) shared.crowded_step = next < steps ? next : NOT_CROWDED;
      first += next < steps ? 0 : 1;
    }
    __syncthreads();
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
