//! The CUDA sources of these tests. They include no shared header, so that a fault there does not hide one here.

use kernel_core::compile::{CubinCache, compile_in};
use kernel_core::{Arch, Error, Program};

use crate::support::skip;

pub(crate) static BASIC: Program = Program {
    name: "kernel-core-tests-basic",
    source: r#"
struct Scale { const float* device; float host; };

extern "C" __global__ void affine(float* out, const float* in, long long len, Scale scale, int shift, unsigned factor) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  float s = scale.device ? *scale.device : scale.host;
  if (i < len) out[i] = in[i] * s * (float)factor + (float)shift + OFFSET;
}

// Each block sends its number through the far end of a large dynamic shared memory.
extern "C" __global__ void through_shared(unsigned* out, unsigned words) {
  extern __shared__ unsigned shared[];
  for (unsigned i = threadIdx.x; i < words; i += blockDim.x) shared[i] = blockIdx.x * words + i;
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = shared[words - 1];
}

extern "C" __global__ void cluster_rank(unsigned* out) {
#if __CUDA_ARCH__ >= 900
  unsigned rank, size;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  if (threadIdx.x == 0) out[blockIdx.x] = size * 100 + rank;
#endif
}

// Lets its successor start at once, then takes its time before it writes.
extern "C" __global__ void slow_producer(unsigned* data, unsigned value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  for (int i = 0; i < 200; ++i) __nanosleep(1000);
#endif
  data[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

extern "C" __global__ void consumer(unsigned* out, const unsigned* data) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = data[i] + 1;
}
"#,
    headers: &[],
};

pub(crate) static TMA: Program = Program {
    name: "kernel-core-tests-tma",
    source: r#"
struct alignas(64) Map { unsigned long long opaque[16]; };

// One tile a block: global -> shared -> global through the copy engine, and a plain copy of shared memory to `dense`.
extern "C" __global__ void round_trip(const __grid_constant__ Map source, const __grid_constant__ Map target,
                                      unsigned short* dense, unsigned tile_x, unsigned tile_y) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ unsigned char raw[];
  __shared__ alignas(8) unsigned long long barrier_storage;
  unsigned barrier = (unsigned)__cvta_generic_to_shared(&barrier_storage);
  // The 128-byte swizzle repeats every 1024 bytes.
  unsigned tile = ((unsigned)__cvta_generic_to_shared(raw) + 1023u) & ~1023u;
  unsigned bytes = tile_x * tile_y * 2;
  int x = blockIdx.x * tile_x, y = blockIdx.y * tile_y;
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(tile), "l"((unsigned long long)&source), "r"(barrier), "r"(x), "r"(y) : "memory");
  }
  asm volatile("{\n.reg .pred done;\nretry_%=:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n@!done bra retry_%=;\n}"
               ::"r"(barrier) : "memory");
  unsigned words = tile_x * tile_y;
  unsigned short* out = dense + (unsigned long long)(blockIdx.y * gridDim.x + blockIdx.x) * words;
  for (unsigned i = threadIdx.x; i < words; i += blockDim.x) {
    unsigned short value;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(tile + i * 2) : "memory");
    out[i] = value;
  }
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
                 ::"l"((unsigned long long)&target), "r"(tile), "r"(x), "r"(y) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
#endif
}
"#,
    headers: &[],
};

/// The macros [`BASIC`] is compiled with.
pub(crate) fn basic_defines() -> Vec<(&'static str, String)> {
    vec![("OFFSET", "0.5f".to_owned())]
}

#[test]
fn the_sources_compile_without_a_gpu() {
    for arch in ["sm_80", "sm_90a"].map(|name| Arch::parse(name).unwrap()) {
        for (program, defines) in [(&BASIC, basic_defines()), (&TMA, Vec::new())] {
            match compile_in(&CubinCache::disabled(), program, &arch, &defines) {
                Ok(cubin) => assert!(cubin.image.starts_with(b"\x7fELF")),
                Err(error @ Error::MissingLibrary { .. }) => return skip(&format!("no NVRTC ({error})")),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
