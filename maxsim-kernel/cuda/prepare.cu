// What the other kernels need to know of masks and norms, and the division of ragged work.
//   ELEMENT: F32, F16 or BF16 (norms only)
#include "items.cuh"
#include "numerics.cuh"
#include "rows.cuh"
#include "ptx/sync.cuh"

struct MaskParams {
  Texts texts;
  const u8* mask;  // one byte a row: nonzero keeps
  u32* ends;
  int* firsts;
  u32* bits;
};

// One warp a text: its mask as bits, its first and one past its last kept token.
KERNEL __launch_bounds__(256) maxsim_mask(const __grid_constant__ MaskParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  const u32 lane = threadIdx.x % WARP, stride = gridDim.x * (blockDim.x / WARP);
  for (u32 text = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; text < params.texts.count; text += stride) {
    const u8* mask = params.mask + params.texts.start(text);
    u32* words = params.bits + params.texts.bit_word(text);
    const u32 size = params.texts.size(text);
    int first = -1;
    u32 end = 0, kept = 0;
    for (u32 from = 0; from < size; from += WARP) {
      const u32 word = __ballot_sync(~0u, from + lane < size && mask[from + lane]);
      if (lane == 0) words[from / WARP] = word;
      if (word) {
        if (first < 0) first = (int)(from + __ffs(word) - 1);
        end = from + WARP - __clz(word);
        kept += __popc(word);
      }
    }
    if (lane == 0) {
      params.firsts[text] = first;
      params.ends[text] = end | (kept < end ? HOLES : 0);
    }
  }
}

struct NormParams {
  const void* rows;
  u64 row_stride, count;
  u32 dim;
  float* scales;
};

// Some lanes of a warp a token, 16 bytes each, four tokens on the way at once.
template <class E> DEV void norms_of_aligned(const NormParams& params) {
  constexpr u32 SIZE = Vector<E>::SIZE, AT_ONCE = 4;
  const u32 pieces = params.dim / SIZE, lanes = pieces > WARP / 2 ? WARP : pieces > 1 ? 2u << (31 - __clz(pieces - 1)) : 1;
  const u32 lane = threadIdx.x % lanes, group = threadIdx.x % WARP / lanes, groups = WARP / lanes;
  const u64 warp = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, stride = (u64)gridDim.x * (blockDim.x / WARP);
  for (u64 from = warp * groups * AT_ONCE; from < params.count; from += stride * groups * AT_ONCE) {
    float square[AT_ONCE] = {};
    for (u32 piece = lane; piece - lane < pieces; piece += lanes) {
      float x[AT_ONCE][SIZE];
#pragma unroll
      for (u32 a = 0; a < AT_ONCE; ++a) {
        const u64 row = from + a * groups + group;
        Vector<E>::load(x[a], static_cast<const typename E::Storage*>(params.rows) + row * params.row_stride + piece * SIZE, row < params.count && piece < pieces);
      }
#pragma unroll
      for (u32 a = 0; a < AT_ONCE; ++a)
#pragma unroll
        for (u32 i = 0; i < SIZE; ++i) square[a] = fmaf(x[a][i], x[a][i], square[a]);
    }
#pragma unroll
    for (u32 a = 0; a < AT_ONCE; ++a) {
      for (u32 offset = 1; offset < lanes; offset *= 2) square[a] += __shfl_xor_sync(~0u, square[a], offset);
      const u64 row = from + a * groups + group;
      if (lane == 0 && row < params.count) params.scales[row] = inverse_norm(square[a]);
    }
  }
}

KERNEL __launch_bounds__(256) maxsim_norms(const __grid_constant__ NormParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  typedef ELEMENT E;
  constexpr u32 SIZE = Vector<E>::SIZE;
  if ((u64)params.rows % 16 == 0 && params.row_stride % SIZE == 0 && params.dim % SIZE == 0) return norms_of_aligned<E>(params);
  const u32 lane = threadIdx.x % WARP;
  const u64 stride = (u64)gridDim.x * (blockDim.x / WARP);
  for (u64 row = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; row < params.count; row += stride) {
    const E::Storage* x = static_cast<const E::Storage*>(params.rows) + row * params.row_stride;
    float square = 0.f;
    for (u32 i = lane; i < params.dim; i += WARP) {
      const float value = E::load(x + i);
      square = fmaf(value, value, square);
    }
    square = warp_sum(square);
    if (lane == 0) params.scales[row] = inverse_norm(square);
  }
}

struct PadParams {
  const void* from;
  void* to;
  u64 from_stride, to_stride, rows;  // strides in elements
  u32 dim, padded;
};

// Rows copied to where they are 16-byte aligned, zeros behind them.
KERNEL __launch_bounds__(256) maxsim_pad(const __grid_constant__ PadParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  typedef ELEMENT E;
  const u32 lane = threadIdx.x % WARP;
  const u64 stride = (u64)gridDim.x * (blockDim.x / WARP);
  for (u64 row = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; row < params.rows; row += stride) {
    const E::Storage* from = static_cast<const E::Storage*>(params.from) + row * params.from_stride;
    E::Storage* to = static_cast<E::Storage*>(params.to) + row * params.to_stride;
    for (u32 i = lane; i < params.padded; i += WARP) to[i] = i < params.dim ? from[i] : (E::Storage)0;
  }
}

struct ScheduleParams {
  Items items;
  Texts docs;
  u32 entries;     // documents in a cross, else slots
  u32 blocks;      // of the launch that follows: fewer than this block's threads
  u32 entry_cost;  // tokens that an entry costs beside its own
  u64* prefix;     // [entries + 1]: scratch
  u32* starts;     // [chunks][blocks + 1]
};

constexpr u32 SCHEDULE_THREADS = 1024;
struct Add {
  static DEV u64 of(u64 a, u64 b) { return a + b; }
};
struct Most {
  static DEV u64 of(u64 a, u64 b) { return max_of(a, b); }
};
// Over the block: what thread i gets is of the values of threads 0 to i. 0 changes nothing in any Op.
template <class Op> DEV u64 scan(u64 value, u64 (&warps)[WARP]) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
  for (u32 offset = 1; offset < WARP; offset *= 2) {
    const u64 below = __shfl_up_sync(~0u, value, offset);
    if (lane >= offset) value = Op::of(value, below);
  }
  if (lane == WARP - 1) warps[warp] = value;
  __syncthreads();
  for (u32 w = 0; w < warp; ++w) value = Op::of(value, warps[w]);
  __syncthreads();
  return value;
}

// Divides the units among the blocks of the scoring launch by the tokens that the masks leave. One block.
KERNEL __launch_bounds__(SCHEDULE_THREADS, 1) maxsim_schedule(const __grid_constant__ ScheduleParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  __shared__ u64 warps[WARP];
  __shared__ u64 total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  for (u32 from = 0; from < params.entries; from += SCHEDULE_THREADS) {
    const u32 entry = from + threadIdx.x;
    u64 cost = 0;
    if (entry < params.entries) {
      const u32 doc = params.items.pairing == Pairing::Cross ? entry : params.items.doc_of(entry);
      cost = (params.docs.end(doc) + 7) / 8 * 8 + params.entry_cost;
    }
    const u64 before = total, sum = before + scan<Add>(cost, warps);
    if (entry < params.entries) params.prefix[entry] = sum - cost;
    if (threadIdx.x == SCHEDULE_THREADS - 1) total = sum;
    __syncthreads();
  }
  if (threadIdx.x == 0) params.prefix[params.entries] = total;
  __syncthreads();
  // A thread has one boundary between blocks. Of the chunks so far: their cost, and how much of it went to the blocks before the boundary.
  const Items& items = params.items;
  const u32 block = min_of(threadIdx.x, params.blocks);
  u64 due = 0, given = 0;
  for (u32 chunk = 0; chunk < items.chunks; ++chunk) {
    u32 first = 0, last = params.entries;
    if (items.chunk_starts) first = items.chunk_starts[chunk], last = items.chunk_starts[chunk + 1];
    const u64 base = params.prefix[first], cost = params.prefix[last] - base, whole = cost * total_cost(items);
    due += whole;
    // A block that had too much of one chunk gets less of the next.
    const u64 share = due * block / params.blocks;
    const u64 target = scan<Most>(min_of(share - min_of(share, given), whole), warps);
    u64 rest = target;
    const u32 row_block = row_block_at(items, cost, rest);
    const u32 weight = cost_of(items, row_block);
    u32 low = first, high = last;  // the first entry at or past `rest`
    while (low < high) {
      const u32 middle = (low + high) / 2;
      if ((params.prefix[middle] - base) * weight < rest) low = middle + 1;
      else high = middle;
    }
    given += target - rest + (params.prefix[low] - base) * weight;
    if (threadIdx.x <= params.blocks) params.starts[chunk * (params.blocks + 1) + block] = (row_block * (last - first) + low - first) * items.parts;
  }
}

struct ReduceParams {
  Items items;
  Texts queries;
  const float* partials;
  const u32* segments;  // cross: the first segment of each query, and the end
  u32 tiles;            // of a block
  float* scores;
  u64 count;
};

// Scores of queries longer than a tile: their segments' sums, in order.
KERNEL __launch_bounds__(256) maxsim_reduce(const __grid_constant__ ReduceParams params) {
  grid_dependency_wait();
  grid_dependency_launch();
  const Items& items = params.items;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < params.count; i += (u64)gridDim.x * blockDim.x) {
    float sum = 0.f;
    if (items.pairing == Pairing::Cross) {
      const u32 query = (u32)(i / items.docs), doc = (u32)(i % items.docs);
      for (u32 s = params.segments[query]; s < params.segments[query + 1]; ++s) sum += params.partials[(u64)s * items.docs + doc];
    } else {
      const u32 parts = ceil_div(params.queries.size(items.query_of((u32)i)), TILE_ROWS);
      for (u32 s = 0; s < parts; ++s) sum += params.partials[i * (items.parts * params.tiles) + s];
    }
    params.scores[i] = sum;
  }
}
