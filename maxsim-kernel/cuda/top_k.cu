// The best documents of each query so far, updated with the scores of a further run of documents. One block a query.
#include "base.cuh"
#include "ptx/sync.cuh"

constexpr u32 THREADS = 256, MOST = 1024;

struct TopKParams {
  const float* scores;  // [queries, docs]
  u32 docs;             // of this run
  u32 first_doc;        // of this run, among all
  u32 k;
  u32 fresh;            // 1: nothing was kept before
  u64* kept;            // [queries, k], ascending
  float* best_scores;   // [queries, k]: written when not null
  u32* best_docs;
};

// Ascending keys: the higher score first, then the lower index; NaN after every number.
DEV u64 key_of(float score, u32 doc) {
  const u32 bits = __float_as_uint(score);
  u32 ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  if (score != score) ordered = 0;
  return (u64)(~ordered) << 32 | doc;
}
DEV float score_of(u64 key) {
  const u32 ordered = ~(u32)(key >> 32);
  if (ordered == 0) return __uint_as_float(0x7fc00000u);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// Bitonic, ascending, of 2^n keys.
DEV void sort(u64* keys, u32 count) {
  for (u32 size = 2; size <= count; size *= 2)
    for (u32 stride = size / 2; stride; stride /= 2) {
      __syncthreads();
      for (u32 i = threadIdx.x; i < count; i += THREADS) {
        const u32 other = i ^ stride;
        if (other <= i) continue;
        const u64 a = keys[i], b = keys[other];
        if ((a > b) == ((i & size) == 0)) keys[i] = b, keys[other] = a;
      }
    }
  __syncthreads();
}

KERNEL __launch_bounds__(THREADS) maxsim_top_k(const __grid_constant__ TopKParams params) {
  // The kept keys, then the new ones that may displace them.
  __shared__ u64 keys[2 * MOST];
  __shared__ u32 found;
  grid_dependency_wait();
  grid_dependency_launch();
  const u32 query = blockIdx.x;
  const float* scores = params.scores + (u64)query * params.docs;
  u64* kept = params.kept + (u64)query * params.k;
  for (u32 i = threadIdx.x; i < 2 * MOST; i += THREADS) keys[i] = params.fresh || i >= params.k ? ~0ull : kept[i];
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  for (u32 from = 0; from < params.docs; from += THREADS) {
    const u32 doc = from + threadIdx.x;
    if (doc < params.docs) {
      const u64 key = key_of(scores[doc], params.first_doc + doc);
      if (key < keys[params.k - 1]) keys[MOST + atomicAdd(&found, 1)] = key;
    }
    __syncthreads();
    if (found > MOST - THREADS || from + THREADS >= params.docs) {
      sort(keys, 2 * MOST);
      for (u32 i = threadIdx.x; i < MOST; i += THREADS) keys[MOST + i] = ~0ull;
      if (threadIdx.x == 0) found = 0;
    }
    __syncthreads();
  }
  for (u32 i = threadIdx.x; i < params.k; i += THREADS) kept[i] = keys[i];
  if (params.best_scores)
    for (u32 i = threadIdx.x; i < params.k; i += THREADS) {
      params.best_scores[(u64)query * params.k + i] = score_of(keys[i]);
      params.best_docs[(u64)query * params.k + i] = (u32)keys[i];
    }
}
