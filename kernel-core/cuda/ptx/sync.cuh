// Named barriers, cluster barriers, proxy fences, counters between CTAs, register reallocation and programmatic dependent launch.
#pragma once
#include "base.cuh"

DEV void named_barrier(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// Counts as arrived without waiting for the others.
DEV void named_barrier_arrive(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

#if __CUDA_ARCH__ >= 900
DEV u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
DEV void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Orders this thread's ordinary shared-memory writes before later reads by the copy engine or the tensor cores.
DEV void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Orders what this thread has seen written, or has written by the copy engine, with copies on its other side, in any memory.
DEV void fence_async() { asm volatile("fence.proxy.async;" ::: "memory"); }
// One lane of a whole warp, always the same, which the compiler knows to be one: it puts no loop over the lanes around a copy.
DEV bool elect() {
  u32 elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}
#endif

// Counters in global memory, by which CTAs of one launch tell each other what they have written.
// Everything this thread has seen written before is seen by who reads the counter with `wait_for`.
DEV void add_release(u32* counter, u32 count) { asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(count) : "memory"); }
// Gives what the counter was.
DEV u32 add_acquire_release(u32* counter, u32 count) {
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(count) : "memory");
  return before;
}
// Returns once the counter has reached that count.
DEV void wait_for(const u32* counter, u32 count) {
  u32 now;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
  while (now < count);
}

// The same of a counter in shared memory, among the threads of a CTA.
DEV u32 add_acquire_release_shared(u32* counter, u32 count) {
  u32 before;
  asm volatile("atom.acq_rel.cta.shared::cta.add.u32 %0, [%1], %2;" : "=r"(before) : "r"(shared_address(counter)), "r"(count) : "memory");
  return before;
}

// Programmatic dependent launch: `wait` returns once every earlier grid of the stream has finished and flushed; `launch` lets the next grid's
// prologue start. Both do nothing in a launch without the attribute, and before sm_90.
DEV void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEV void grid_dependency_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <u32 COUNT> DEV void registers_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <u32 COUNT> DEV void registers_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
#endif
