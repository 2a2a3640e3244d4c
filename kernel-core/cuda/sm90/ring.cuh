// A place in a ring of shared-memory stages, each with a `full` and an `empty` barrier.
#pragma once
#include "base.cuh"

// The stage, and the parity with which its `full` barrier completes; its `empty` barrier's is the other one.
struct RingPlace {
  u32 stage = 0, parity = 0;
  // Goes on by one; gives the place left.
  DEV RingPlace next(u32 stages) {
    const RingPlace here = *this;
    if (++stage == stages) stage = 0, parity ^= 1;
    return here;
  }
  DEV void skip(u32 count, u32 stages) {
    const u32 to = stage + count;
    parity ^= (to / stages) & 1;
    stage = to % stages;
  }
  // The same place. The compiler loses sight of its being one for all lanes where an epilogue has branched; descriptors would then be worked out
  // in every lane, moved to uniform registers one by one, and queueing a stage's products could take longer than the products.
  DEV RingPlace broadcast() const { return {uniform(stage), uniform(parity)}; }
};
