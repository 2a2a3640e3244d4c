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
// What is read leaves the L2 before what lies there else.
DEV void load_2d_evict_first(u32 shared, const TensorMap* map, u32 barrier, int x, int y) {
  asm volatile(
      "{\n.reg .b64 policy;\ncreatepolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], policy;\n}"
      ::"r"(shared), "l"((u64)map), "r"(barrier), "r"(x), "r"(y) : "memory");
}
// Writes the tile, and signals the barrier, at the same offsets of every CTA in `mask`.
DEV void load_2d_multicast(u32 shared, const TensorMap* map, u32 barrier, int x, int y, u16 mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4}], [%2], %5;"
      ::"r"(shared), "l"((u64)map), "r"(barrier), "r"(x), "r"(y), "h"(mask) : "memory");
}
// Copies of bytes one after another, 16 of them or a multiple, which need no map.
DEV void load_bulk(u32 shared, const void* global, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier) : "memory");
}
DEV void load_bulk_evict_first(u32 shared, const void* global, u32 bytes, u32 barrier) {
  asm volatile(
      "{\n.reg .b64 policy;\ncreatepolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], policy;\n}"
      ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier) : "memory");
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

// The 128-byte line at `from`, into the L2.
DEV void prefetch_l2(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from) : "memory"); }
