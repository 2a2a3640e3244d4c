// What the gradient kernels share.
#pragma once
#include "items.cuh"
#include "rows.cuh"

typedef ELEMENT E;
#if VECTORIZED
typedef Vector<E> Access;
#else
typedef Scalar<E> Access;
#endif
typedef RowSum<E, Access, ROW_LANES, ROW_SLICES> Sum;

// The slots in which a text takes part: `at(i)` for i < count, and the other side's text.
struct Meetings {
  const u32* starts;  // lists: of each text in `slots`; null otherwise
  const u32* slots;
};

struct GradientParams {
  Items items;
  Texts queries, docs;
  Meetings meetings;  // of the queries or of the documents
  u32 dim;
  const float* d_scores;
  const int* argmax;
  E::Storage* gradient;   // of the queries or of the documents
  u64 gradient_stride;    // elements
  float* scratch;         // partial sums of the queries' gradient, or f32 sums of the documents'
  u32 splits;             // queries: of the documents that one meets; documents: log2 of the places that a meeting has for its query's tokens
  u32 behind_queries;     // documents: nonzero when the launch before this one is of the queries' gradient, which it need not wait for
  u32 sharers;            // queries: warps of a block that sum one token, each over its share of the documents; a power of 2
  u32 choosing;           // documents: query tokens that may choose in one, the most of any
  u32 parts;              // documents: blocks of each one that keep the device busy
  u32 pieces;             // documents: blocks of the one that has most
};
