// Types and small helpers every kernel uses. No toolkit header is included anywhere, so NVRTC needs no include path.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEV __device__ __forceinline__
#define KERNEL extern "C" __global__ void

// Layout of CUtensorMap: 128 opaque bytes, 64-byte aligned, passed by value as a __grid_constant__ parameter.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

constexpr u32 WARP = 32, WARPGROUP = 128;

template <class T> DEV T min_of(T a, T b) { return a < b ? a : b; }
template <class T> DEV T max_of(T a, T b) { return a > b ? a : b; }
DEV u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
// What all lanes of a warp hold, as the compiler can see that they do: in uniform registers, and so all that follows from it.
DEV u32 uniform(u32 x) { return __shfl_sync(~0u, x, 0); }
// A lane's own value, kept in its register: the compiler would rather read the thread's number again in the innermost loop, and wait for it there.
DEV u32 kept(u32 x) { return __shfl_sync(~0u, x, threadIdx.x % 32); }
DEV u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A scalar argument that lies in device memory (no host synchronisation to read it) or travels with the launch.
struct ScalarArg {
  const float* device;  // null: use `host`
  float host;
  DEV float load() const { return device ? *device : host; }
};
