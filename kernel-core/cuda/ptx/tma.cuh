// Tensor copies by the bulk copy engine (TMA), sm_90 up. Coordinates are elements, innermost first.
#pragma once
#include "base.cuh"

namespace tma {

DEV void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"((u64)map) : "memory"); }
DEV void load_2d(u32 shared, const TensorMap* map, u32 barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
      ::"r"(shared), "l"((u64)map), "r"(barrier), "r"(x), "r"(y) : "memory");
}
// Writes the tile, and signals the barrier, at the same offsets of every CTA in `mask`.
DEV void load_2d_multicast(u32 shared, const TensorMap* map, u32 barrier, int x, int y, u16 mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4}], [%2], %5;"
      ::"r"(shared), "l"((u64)map), "r"(barrier), "r"(x), "r"(y), "h"(mask) : "memory");
}
DEV void store_2d(const TensorMap* map, u32 shared, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
               ::"l"((u64)map), "r"(shared), "r"(x), "r"(y) : "memory");
}
// global += shared, element by element; one add per element and launch, so the result does not depend on timing.
DEV void add_2d(const TensorMap* map, u32 shared, int x, int y) {
  asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];"
               ::"l"((u64)map), "r"(shared), "r"(x), "r"(y) : "memory");
}
DEV void commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most PENDING of this thread's groups still read shared memory.
template <u32 PENDING> DEV void wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }
DEV void wait_all() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

}  // namespace tma
