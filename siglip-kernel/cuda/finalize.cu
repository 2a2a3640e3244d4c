// What is left around the blocks: the scalars from the per-warp sums, gradients from f32 accumulators to the output's type, and padded copies of
// inputs whose rows the tensor cores' loads cannot address.
//   ELEMENT: F32, BF16 or F16
#include "element.cuh"
#include "numerics.cuh"
#include "ptx/sync.cuh"

struct ReduceParams {
  const double* sums;      // [slots][2]: loss, q
  const double* products;  // [product_slots]: q-weighted <d_img, img>; null without gradients
  u32 slots, product_slots;
  double inverse_batch;
  double inverse_gain;  // of the accumulators behind `products`
  ScalarArg log_temp, upstream;
  float *loss, *d_log_temp, *d_bias;
};

// The block's total of one value a thread, in thread 0. Order of addition is fixed.
DEV double block_sum(double x) {
  __shared__ double partial[WARP];
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = x;
  __syncthreads();
  x = threadIdx.x < blockDim.x / WARP ? partial[threadIdx.x % WARP] : 0.0;
  __syncthreads();
  return warp_sum(x);
}

// One block of 1024 threads.
KERNEL __launch_bounds__(1024) siglip_reduce(const __grid_constant__ ReduceParams params) {
  grid_dependency_wait();
  double loss = 0.0, q = 0.0, product = 0.0;
  for (u32 i = threadIdx.x; i < params.slots; i += blockDim.x) loss += params.sums[2 * i], q += params.sums[2 * i + 1];
  if (params.products)
    for (u32 i = threadIdx.x; i < params.product_slots; i += blockDim.x) product += params.products[i];
  loss = block_sum(loss), q = block_sum(q), product = block_sum(product);
  if (threadIdx.x != 0) return;
  *params.loss = (float)(loss * params.inverse_batch);
  if (!params.products) return;
  const double upstream = params.upstream.load() * params.inverse_batch;
  *params.d_bias = (float)(upstream * q);
  *params.d_log_temp = (float)(upstream * exp((double)params.log_temp.load()) * product * params.inverse_gain);
}

struct ScaleParams {
  const float* from;  // [rows, cols]; may be the output itself
  u64 from_stride, to_stride;
  ELEMENT::Storage* to;
  const ELEMENT::Storage* img;  // [rows, cols] for the products, or null
  u64 img_stride;
  double* products;  // [gridDim.x * 8]
  u64 rows;
  u32 cols, first;
  double factor;  // 1 / (batch * gain)
  ScalarArg log_temp, upstream;
};

// to = from * exp(log_temp) * upstream * factor, rounded once; on the way <from, img>, of which d_log_temp is made.
KERNEL __launch_bounds__(256) siglip_scale(const __grid_constant__ ScaleParams params) {
  grid_dependency_wait();
  const float factor = (float)(exp((double)params.log_temp.load()) * (double)params.upstream.load() * params.factor);
  const u32 lane = threadIdx.x % WARP, warp = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  double product = 0.0;
  for (u64 row = warp; row < params.rows; row += gridDim.x * (blockDim.x / WARP)) {
    const float* from = params.from + row * params.from_stride;
    const ELEMENT::Storage* img = params.img + row * params.img_stride;
    ELEMENT::Storage* to = params.to + row * params.to_stride;
    float row_product = 0.f;
    for (u32 column = lane; column < params.cols; column += WARP) {
      const float x = from[column];
      if (params.img) row_product = fmaf(x, ELEMENT::load(img + column), row_product);
      ELEMENT::store(to + column, x * factor);
    }
    product += row_product;
  }
  if (!params.img) return;
  product = warp_sum(product);
  if (lane == 0) params.products[warp] = (params.first ? 0.0 : params.products[warp]) + product;
}

struct PadParams {
  const ELEMENT::Storage* from;
  ELEMENT::Storage* to;
  u64 from_stride, to_stride, rows;
  u32 cols, padded_cols;
};

// Rows copied to a stride the loads can address, zeros behind each.
KERNEL __launch_bounds__(256) siglip_pad(const __grid_constant__ PadParams params) {
  grid_dependency_wait();
  const u32 lane = threadIdx.x % WARP;
  const u64 warps = (u64)gridDim.x * (blockDim.x / WARP);
  for (u64 row = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; row < params.rows; row += warps)
    for (u32 column = lane; column < params.padded_cols; column += WARP)
      params.to[row * params.to_stride + column] = column < params.cols ? params.from[row * params.from_stride + column] : (ELEMENT::Storage)0;
}
