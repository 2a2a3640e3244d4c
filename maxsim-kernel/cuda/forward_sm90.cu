// Scores on Hopper: query tiles as the rows of warpgroup multiplies, document tokens as their columns.
//   ELEMENT: BF16 or F16    WITH_ARGMAX: 0 or 1    NORMALIZED: 1 when tokens are, and queries held in registers
//   TILE_TOKENS: document tokens of a full tile    QUERY_BLOCKS: d / 64 rounded up when queries are held in registers (1, 2), else 0
//
// One producer warp streams document tiles through a ring of shared memory by TMA. Consumer warpgroups multiply and search: the reduced axis
// lies in registers, a thread keeps the best of its columns for its two rows. The other warps of the producer's warpgroup merge and add up what the
// consumers found, one warp a consumer, off the path of the tensor cores.
//
// Either every consumer holds a query tile of its own and meets every document tile, which is loaded once for all of them; or (`split`) there is
// one query tile, and consumers take documents in turn, each with a ring of its own, all of which are fed at the same time. Each consumer has one
// accumulator and takes turns with the others on the tensor cores: three are enough to hide the search for the best.
#include "forward_sm90/adder.cuh"
#include "forward_sm90/consumer.cuh"
#include "forward_sm90/producer.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where a block begins among its units of a cross: with a new row block, or else with one of a few documents that are the same for all row blocks,
// so that the first loads of a launch, for which all multiplies wait, are of few documents.
DEV u32 together(const Items& items, u32 begin, u32 end) {
  if (items.pairing != Pairing::Cross) return begin;
  const u32 row_block = begin / items.docs, doc = begin - row_block * items.docs, next = begin - doc + items.docs;
  const u32 share = max_of(begin < items.first_units ? items.shares[0] : items.shares[1], 1u), from = begin - doc + ceil_div(doc, share) * share;
  return next < end ? next : from < end ? from : begin;
}

KERNEL __launch_bounds__((1 + MAX_WARPGROUPS) * WARPGROUP, 1)
maxsim_forward_sm90(const __grid_constant__ TensorMap map_queries, const __grid_constant__ TensorMap map_full,
                    const __grid_constant__ TensorMap map_half, const __grid_constant__ TensorMap map_rest,
                    const __grid_constant__ TensorMap map_quarter, const __grid_constant__ HopperParams params) {
  extern __shared__ u8 dynamic[];
  u32 base = shared_address(dynamic);
  base += -base & 1023u;          // the 128-byte swizzle repeats every 1024 bytes
  asm volatile("" : "+r"(base));  // the compiler would rather work it out again for every tile
  Control& control = *reinterpret_cast<Control*>(__cvta_shared_to_generic(base));
  const u32 slots = params.rings() * params.slots;
  const u32 warpgroup = threadIdx.x / WARPGROUP, warp = threadIdx.x / WARP;
  if (threadIdx.x == 0) {
    tma::prefetch_map(&map_queries);
    tma::prefetch_map(&map_full);
    tma::prefetch_map(&map_half);
    tma::prefetch_map(&map_rest);
    tma::prefetch_map(&map_quarter);
#pragma unroll 1
    for (u32 i = 0; i < slots; ++i) {
      mbarrier::init(shared_address(control.full + i), NORMALIZED ? 1 + WARP : 1);
      mbarrier::init(shared_address(control.empty + i), (params.split() ? 1 : params.warpgroups) * RELEASES);
    }
    for (u32 w = 0; w < params.warpgroups; ++w) {
      mbarrier::init(shared_address(control.queries_full + w), 1);
      mbarrier::init(shared_address(control.queries_empty + w), 1);
      for (u32 i = 0; i < 2; ++i) {
        mbarrier::init(shared_address(control.result_full[w] + i), WARPGROUP / WARP);
        mbarrier::init(shared_address(control.result_empty[w] + i), 1);
      }
    }
    mbarrier::fence_init();
  }
  if (threadIdx.x == WARP && !params.items.starts) {
    const u32 begin = first_unit(params.items, 0, blockIdx.x, gridDim.x), end = first_unit(params.items, 0, blockIdx.x + 1, gridDim.x);
    const u32 from = params.split() ? begin : together(params.items, begin, end);
    control.units_of_block[0] = from, control.units_of_block[1] = end;
    control.units_of_block[2] = begin, control.units_of_block[3] = from;
  }
  __syncthreads();
  grid_dependency_wait();
  grid_dependency_launch();
  if (warpgroup == 0) {
    registers_shrink<IN_REGISTERS ? 56 : 80>();
    if (warp == 0) {
      Producer producer = {params, map_queries, map_full, map_half, map_rest, map_quarter, control, 0, 0, 0, 0, 0};
      producer.run();
    } else if (warp > 0 && warp <= params.warpgroups) {
      Adder adder = {params, control, warp - 1, {0, 0, 0, 0, 0}, {}, false};
      adder.run();
    }
  } else {
    registers_grow<IN_REGISTERS ? 152 : 144>();
    const u32 w = warpgroup - 1, first_slot = params.split() ? w * params.slots : 0;
    // A quad of threads has a row, and the eighth one after it.
    const u32 thread = kept(threadIdx.x % WARPGROUP), row = thread / WARP * 16 + thread % WARP / 4;
    const u32 result = kept(shared_address(control.results[w][0].best[row]) + thread % 4 * 4);
    const u32 barriers = kept(shared_address(control.result_full[w]));
    Consumer consumer = {params, control, w, first_slot, {first_slot, 0}, 0, 0, 0, 0, thread, result, barriers};
    consumer.run();
  }
}
#endif
