// Counters in global memory by which CTAs of one launch tell each other what they have written.
#pragma once
#include "base.cuh"

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
