// What turns sums of gain * q * feature into gradients of image and text rows.
#pragma once
#include "base.cuh"

struct GradientFactor {
  ScalarArg log_temp, upstream;
  double inverse;  // 1 / (batch * gain)
  DEV float load() const { return (float)(exp((double)log_temp.load()) * (double)upstream.load() * inverse); }
};
