// Gradient of the documents: a block owns some consecutive tokens of a document, lists the query tokens that chose each of them (a counting sort
// that keeps their order), and sums their rows. No atomic additions of floats, no f32 copy of the gradient: the same bits on every run.
//   ELEMENT, VECTORIZED, ROW_LANES, ROW_SLICES: see rows.cuh    BLOCK_WARPS: warps of a block    RESIDENT: blocks that an SM should hold
//   OWNED: tokens that a block may have, at most one a thread
// A block lists as many query tokens at once as its dynamic shared memory holds.
//   NEIGHBOURS: 1 when blocks next to one another have tokens next to one another, 0 when they have documents next to one another
#include "gradients.cuh"
#include "ptx/sync.cuh"

constexpr u32 WARPS = BLOCK_WARPS, THREADS = WARPS * WARP;
constexpr u32 UNROLL = ROW_SLICES == 1 ? 4 : ROW_SLICES <= 4 ? 2 : 1;
constexpr bool HELD = NEIGHBOURS;  // no warp has more than one step
constexpr u32 AHEAD = HELD || Sum::SIZE == 4 ? 1 : 2;  // steps of choices that a warp has on the way at once
constexpr u32 WIDTH = Sum::SIZE * ROW_LANES * ROW_SLICES, GROUPS = Sum::GROUPS, PARTS = WARPS * GROUPS, NOBODY = ~0u, NOT_CROWDED = ~0u;
// A step is what a warp reads of the choices at once: 4 places a lane.
constexpr u32 STEP = 4 * WARP;
static_assert(OWNED <= THREADS, "a thread counts for one token");

constexpr u32 WORTHWHILE = 256;  // entries for which a block is not too short

struct Entry {
  u32 row;  // of the query token
  float weight;
};

struct alignas(16) Shared {  // and behind it the entries, by token
  u32 counts[WARPS][OWNED];   // of each warp's choices of a token; then where its next entry of the token goes
  u32 begin[OWNED + 1];       // of a token's entries
  u32 warp_totals[WARPS];
  float heads[PARTS][WIDTH];  // the sum of what a group of lanes has of the token in the midst of which its entries begin
  float crowded[WIDTH];       // how far the sum of a token is whose list does not fit
};

DEV Entry* entries_of(Shared& shared) { return reinterpret_cast<Entry*>(&shared + 1); }
DEV const Entry* entries_of(const Shared& shared) { return reinterpret_cast<const Entry*>(&shared + 1); }
// Entries that there is room for.
DEV u32 capacity() {
  u32 bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return (bytes - (u32)sizeof(Shared)) / (u32)sizeof(Entry);
}
// Of a list, entries when all tokens are chosen as often: some are chosen more often. Lists of few never overflow.
DEV u32 fill() { return NEIGHBOURS ? capacity() : capacity() / 16 * 15; }

// The tokens that a block has listed, and of which document.
struct Listed {
  u32 doc, first, count;
};

// Some choices of one query. Meetings have as many places as the power of two that no query's length exceeds.
struct Choices {
  u32 row, chosen[4];  // of the first; beyond the query nobody
  float d_score;
};
// Where the choices of a document's places lie.
struct Places {
  u32 doc, meetings;
  bool regular;            // all queries meet the document, and are as long
  const int* argmax;       // then: of the document's first query; from one query to the next so many further
  const float* d_scores;
  u64 pitch;
};
DEV Choices read_choices(const GradientParams& params, const Places& places, u32 step) {
  const Items& items = params.items;
  const u64 place = (u64)step * STEP + threadIdx.x % WARP * 4;
  const u32 i = (u32)(place >> params.splits), token = (u32)place & ((1u << params.splits) - 1);
  Choices read = {0, {NOBODY, NOBODY, NOBODY, NOBODY}, 0.f};
  u32 query = i, size = (u32)params.queries.length;
  if (i >= places.meetings) return read;
  const int* at;
  if (places.regular) {
    if (token >= size) return read;
    at = places.argmax + i * places.pitch + token;
    read.row = i * size + token, read.d_score = places.d_scores[(u64)i * items.docs];
  } else {
    u64 slot = 0;
    switch (items.pairing) {
      case Pairing::Cross: slot = (u64)query * items.docs + places.doc; break;
      case Pairing::Candidates: query = places.doc / items.per_query, slot = places.doc; break;
      case Pairing::Pairs: query = places.doc, slot = places.doc; break;
      case Pairing::List: slot = params.meetings.slots[params.meetings.starts[places.doc] + i], query = items.query_of((u32)slot); break;
    }
    size = params.queries.size(query);
    if (token >= size) return read;
    at = params.argmax + items.arguments(params.queries, query, places.doc, (u32)slot) + token;
    read.row = (u32)params.queries.start(query) + token, read.d_score = params.d_scores[slot];
  }
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

// Counts what a warp read of its steps.
DEV void count_choices(Shared& shared, const Choices& read, u32 first, u32 count) {
#pragma unroll
  for (u32 e = 0; e < 4; ++e) {
    const u32 token = read.chosen[e] - first;
    if (token < count) atomicAdd(&shared.counts[threadIdx.x / WARP][token], 1u);
  }
}
// Lists it, each entry behind the warp's ones before it.
DEV void list_choices(Shared& shared, const GradientParams& params, const Choices& read, u32 first, u32 count) {
  const u32 below = (1u << threadIdx.x % WARP) - 1;
#pragma unroll
  for (u32 e = 0; e < 4; ++e) {
    const u32 token = read.chosen[e] - first, row = read.row + e;
    const bool listed = token < count;
    const u32 peers = __match_any_sync(~0u, listed ? token : NOBODY);
    u32* next = &shared.counts[threadIdx.x / WARP][token];
    u32 place = 0;
    if (listed) place = *next + __popc(peers & below);
    __syncwarp();
    if (listed) {
      if ((peers & below) == 0) *next = place + __popc(peers);
      entries_of(shared)[place] = {row, params.queries.scales ? read.d_score * params.queries.scales[row] : read.d_score};
    }
    __syncwarp();
  }
}

// Exclusive sums of the counts over tokens, and within a token over warps: a thread has a token. Gives of how many of `count` tokens the entries fit.
DEV u32 place_lists(Shared& shared, u32 count) {
  const u32 thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
  u32 own = 0;
  if (thread < OWNED)
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) own += shared.counts[w][thread];
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
  if (thread < OWNED) {
    shared.begin[thread] = at;
    if (thread == OWNED - 1) shared.begin[OWNED] = at + own;
    u32 next = at;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
      const u32 found = shared.counts[w][thread];
      shared.counts[w][thread] = next;
      next += found;
    }
  }
  return __syncthreads_count(thread < count && at + own <= capacity());
}

// The steps of a warp, in order.
struct Steps {
  u32 from, to;
};
DEV Steps steps_of_warp(u32 first, u32 last) {
  const u32 warp = uniform(threadIdx.x / WARP);
  return {first + (u32)((u64)(last - first) * warp / WARPS), first + (u32)((u64)(last - first) * (warp + 1) / WARPS)};
}
// Reads the steps from `step` on that are on the way at once, and does `each` to what was read.
template <class Each> DEV void read_steps(const GradientParams& params, const Places& places, u32 step, u32 to, Each each) {
  Choices read[AHEAD];
#pragma unroll
  for (u32 a = 0; a < AHEAD; ++a)
    if (a < to - step) read[a] = read_choices(params, places, step + a);
#pragma unroll
  for (u32 a = 0; a < AHEAD; ++a)
    if (a < to - step) each(read[a]);
}

// Counts what the warps' steps chose among `count` tokens from `first` on. Gives of how many of these the entries fit.
// `held`: what a warp reads that has one step only.
DEV u32 count_lists(Shared& shared, const GradientParams& params, const Places& places, Choices& held, u32 first, u32 count, Steps steps) {
  for (u32 i = threadIdx.x; i < WARPS * OWNED; i += THREADS) (&shared.counts[0][0])[i] = 0;
  __syncthreads();
  if constexpr (HELD) {
    if (steps.from < steps.to) {
      held = read_choices(params, places, steps.from);
      count_choices(shared, held, first, count);
    }
  } else {
#pragma unroll 1
    for (u32 step = steps.from; step < steps.to; step += AHEAD)
      read_steps(params, places, step, steps.to, [&](const Choices& read) { count_choices(shared, read, first, count); });
  }
  __syncthreads();
  return uniform(place_lists(shared, count));
}
// Lists it by token, reading again what is not held.
DEV void fill_lists(Shared& shared, const GradientParams& params, const Places& places, const Choices& held, u32 first, u32 count, Steps steps) {
  if constexpr (HELD) {
    if (steps.from < steps.to) list_choices(shared, params, held, first, count);
  } else {
#pragma unroll 1
    for (u32 step = steps.from; step < steps.to; step += AHEAD)
      read_steps(params, places, step, steps.to, [&](const Choices& read) { list_choices(shared, params, read, first, count); });
  }
  __syncthreads();
}

// What an unchosen token holds must not reach its gradient through its norm. By a warp, each group's own token if it is `valid`.
DEV void finish(Sum& sum, const GradientParams& params, const Listed& listed, u32 token, bool valid) {
  const u64 row = params.docs.start(listed.doc) + listed.first + token;
  if (params.docs.scales) {
    const bool zero = sum.is_zero(), through = valid && !zero;
    const E::Storage* own = static_cast<const E::Storage*>(params.docs.rows) + row * params.docs.row_stride;
    sum.through_norm(own, through ? params.docs.scales[row] : 0.f, params.dim, through);
  }
  if (valid) sum.store(params.gradient + row * params.gradient_stride, params.dim);
}

// Zeros for the tokens that no query token chose, 16 bytes a thread.
DEV void store_zeros(const Shared& shared, const GradientParams& params, const Listed& listed) {
  const u64 first_row = params.docs.start(listed.doc) + listed.first;
  constexpr u32 PIECE = Access::SIZE;
  const u32 pieces = ceil_div(params.dim, PIECE);
  const float zeros[PIECE] = {};
  for (u32 i = threadIdx.x; i < listed.count * pieces; i += THREADS) {
    const u32 token = i / pieces, piece = i - token * pieces;
    if (shared.begin[token] == shared.begin[token + 1])
      Access::store(params.gradient + (first_row + token) * params.gradient_stride + piece * PIECE, zeros);
  }
}

// Adds entries [from, to), each group its own. Of all groups' numbers of entries `shortest` and `longest`.
DEV void add_entries(Sum& sum, const Shared& shared, const GradientParams& params, u32 from, u32 to, u32 shortest, u32 longest) {
  // Lanes beyond a row's end read its first elements, of which nothing is stored: so no load has a test.
  const bool beyond = ROW_SLICES == 1 && Sum::column(0) >= params.dim;
  const u32 dim = ROW_SLICES == 1 ? WIDTH : params.dim;
  const u8* own = static_cast<const u8*>(params.queries.rows) + (beyond ? 0 : Sum::column(0) * sizeof(E::Storage));
  const u64 stride = params.queries.row_stride * sizeof(E::Storage);
  const Entry* entries = entries_of(shared) + from;
  u32 done = 0;
#pragma unroll 1
  for (; done + UNROLL <= shortest; done += UNROLL)
#pragma unroll
    for (u32 u = 0; u < UNROLL; ++u) {
      const Entry entry = entries[done + u];
      sum.add_from(reinterpret_cast<const E::Storage*>(own + entry.row * stride), entry.weight, dim);
    }
#pragma unroll 1
  for (; done < longest; done += UNROLL)
#pragma unroll
    for (u32 u = 0; u < UNROLL; ++u) {
      const bool valid = from + done + u < to;
      Entry entry = {0, 0.f};
      if (valid) entry = entries[done + u];
      sum.add_from(reinterpret_cast<const E::Storage*>(own + entry.row * stride), entry.weight, dim, valid);
    }
}

// Every group of lanes sums as many entries, whatever tokens they are of. A token's sum is the group's with which its entries begin; that adds what
// others have of it. `crowded`: the entries are some of the first token's, and nothing is stored before the last of them.
DEV void sum_lists(Shared& shared, const GradientParams& params, const Listed& listed, bool crowded, bool first_part, bool last_part) {
  const u32 part = threadIdx.x / (WARP / GROUPS), total = uniform(shared.begin[listed.count]);
  const u32 end = (u32)((u64)total * (part + 1) / PARTS);
  u32 at = (u32)((u64)total * part / PARTS), token = 0, token_end = 0;
  for (u32 beyond = listed.count; beyond - token > 1;) {
    const u32 middle = (token + beyond) / 2;
    if (shared.begin[middle] <= at) token = middle;
    else beyond = middle;
  }
  bool owner = crowded && total == 0 && part == 0;
  Sum sum;
  sum.clear();
#pragma unroll 1
  while (__any_sync(~0u, at < end)) {
    const bool active = at < end;
    u32 to = at;
    if (active) {
      while (shared.begin[token + 1] <= at) ++token;
      token_end = shared.begin[token + 1], to = min_of(token_end, end);
      sum.clear();
    }
    add_entries(sum, shared, params, at, to, __reduce_min_sync(~0u, to - at), __reduce_max_sync(~0u, to - at));
    const bool begun = active && shared.begin[token] < at, cut = token_end > end || crowded;
    if (begun) sum.spill(shared.heads[part], params.dim);
    owner |= active && !begun && cut;  // then this is the group's last one, which it keeps
    Sum whole = sum;
    finish(whole, params, listed, token, active && !begun && !cut);
    at = to;
  }
  __syncthreads();
  if (!__any_sync(~0u, owner)) return;
  if (owner) {
#pragma unroll 1
    for (u32 p = part + 1, from = end; p < PARTS && from < token_end; ++p) {
      const u32 next = (u32)((u64)total * (p + 1) / PARTS);
      if (next > from) sum.add_spilled(shared.heads[p], params.dim);  // else it had no entries
      from = next;
    }
    if (crowded && !first_part) sum.add_spilled(shared.crowded, params.dim);
    if (crowded && !last_part) sum.spill(shared.crowded, params.dim);
  }
  finish(sum, params, listed, token, owner && (!crowded || last_part));
}

// Blocks of a document of `size` tokens: as many as its lists take when all tokens are chosen as often, and as keep the device busy. Query tokens
// choose as often in a short document as in a long one. `Choosers::blocks` on the host says how many any document has at most.
DEV u32 blocks_of(const GradientParams& params, u32 size, u32 meetings) {
  if (size == 0) return 0;
  // A document of a list may have far fewer choosers than the one that has most.
  const u64 places = (u64)meetings << params.splits;
  const u32 choosing = max_of(places < params.choosing ? (u32)places : params.choosing, 1u);
  const u32 share = max_of(min_of(min_of(size, ~0u / fill()) * fill() / choosing, OWNED), 1u);
  return min_of(max_of(ceil_div(size, share), min_of(min_of(params.parts, ceil_div(choosing, WORTHWHILE)), size)), params.pieces);
}

// But for Hopper the compiler spills at the 64 registers that four blocks of 256 threads leave each thread.
#if __CUDA_ARCH__ != 900
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
  meetings = uniform(meetings);
  Places places = {doc, meetings, items.pairing == Pairing::Cross && !params.queries.offsets, params.argmax, params.d_scores + doc, 0};
  if (places.regular) places.argmax += doc * params.queries.length, places.pitch = params.queries.length * items.docs;
  const u32 size = uniform(params.docs.size(doc)), blocks = uniform(blocks_of(params, size, meetings));
  if (piece >= blocks) return;
  // The first ones have one token more.
  const u32 share = size / blocks, more = size - share * blocks, begin = uniform(piece * share + min_of(piece, more));
  const u32 end = uniform(begin + share + (piece < more ? 1 : 0)), steps = (u32)((((u64)meetings << params.splits) + STEP - 1) / STEP);
  const u32 sure = capacity() / STEP;  // so many steps fit whatever they chose
  // As many tokens at once as can be listed; of one that too many chose, as many steps.
#pragma unroll 1
  for (u32 first = begin, step = NOT_CROWDED; first < end;) {
    const bool crowded = step != NOT_CROWDED;
    const u32 from = crowded ? step : 0, to = crowded && steps - step > sure ? step + sure : steps;
    const Steps own = steps_of_warp(from, to);
    Choices held;
    const u32 fit = count_lists(shared, params, places, held, first, crowded ? 1 : end - first, own);
    if (fit == 0) {
      step = 0;
      continue;
    }
    const Listed listed = {doc, first, fit};
    if (!crowded) store_zeros(shared, params, listed);
    fill_lists(shared, params, places, held, first, fit, own);
    sum_lists(shared, params, listed, crowded, from == 0, to == steps);
    step = crowded && to < steps ? to : NOT_CROWDED;
    if (step == NOT_CROWDED) first += fit;
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
