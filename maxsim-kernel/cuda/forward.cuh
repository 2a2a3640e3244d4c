// What the scoring kernels of any GPU are told.
#pragma once
#include "items.cuh"
#include "numerics.cuh"
#include "ptx/sync.cuh"

typedef ELEMENT E;

struct ForwardParams {
  Items items;
  Texts queries, docs;
  u32 dim;
  float* sums;  // scores, or partial sums of long queries
  int* argmax;
  u32 tiles;    // query tiles of a block
  u32 stages;   // of the ring on tensor cores
};
