// The loss and the gradients of log_temp and bias, from the sums of the logit launches' warps.
#pragma once
#include "base.cuh"

struct ReduceParams {
  const double* sums;  // [slots][3]: loss, q, q x
  u32 slots, gradient;
  double inverse_batch;
  ScalarArg log_temp, upstream;
  float *loss, *d_log_temp, *d_bias;  // the last two only with a gradient
};

// What one of `threads` threads adds up: every so many slots, always in the same order.
struct Totals {
  double loss = 0.0, q = 0.0, q_x = 0.0;
  DEV Totals(const ReduceParams& params, u32 thread, u32 threads) {
    for (u32 i = thread; i < params.slots; i += threads) {
      loss += params.sums[3 * i];
      q += params.sums[3 * i + 1];
      q_x += params.sums[3 * i + 2];
    }
  }
  // By one thread, of all slots' sums.
  DEV void store(const ReduceParams& params) const {
    *params.loss = (float)(loss * params.inverse_batch);
    if (!params.gradient) return;
    const double upstream = params.upstream.load() * params.inverse_batch;
    *params.d_bias = (float)(upstream * q);
    *params.d_log_temp = (float)(upstream * exp((double)params.log_temp.load()) * q_x);
  }
};
