// Warpgroup matrix multiply (sm_90a). Operands in shared memory are described by 64-bit descriptors over tiles in 128-byte swizzle,
// or 64-byte where said.
#pragma once
#include "base.cuh"
#include "element.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace wgmma {

// Bits: start address >> 4; leading byte offset >> 4 at 16; stride byte offset >> 4 at 32 (1024 B: eight rows of 128 B); swizzle 128 B at 62.
// K-major: rows of 128 bytes along K; a step of one instruction along K is +32 bytes.
DEV u64 descriptor_k_major(u32 shared) {
  return (u64)((shared & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}
// MN-major: chunks of CHUNK 16-bit elements along M or N, `chunk_bytes` apart; a step of 16 along K is +32 CHUNK bytes. Chunks of 32 lie in 64-byte
// swizzle (2 at bit 62), eight rows of which are 512 bytes.
template <u32 CHUNK = 64> DEV u64 descriptor_mn_major(u32 shared, u32 chunk_bytes) {
  static_assert(CHUNK == 64 || CHUNK == 32, "no such swizzle here");
  return (u64)((shared & 0x3FFFF) >> 4) | ((u64)(chunk_bytes >> 4) << 16) | ((u64)CHUNK << 32) | ((CHUNK == 64 ? 1ull : 2ull) << 62);
}

DEV void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <u32 PENDING> DEV void wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// Keeps readers of the accumulators behind the wait before them.
template <u32 N> DEV void tie(float (&d)[N]) {
#pragma unroll
  for (u32 i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <u32 N> DEV void tie(int (&d)[N]) {
#pragma unroll
  for (u32 i = 0; i < N; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

#define ACC_8(C, d, i) \
  C(d[(i) + 0]), C(d[(i) + 1]), C(d[(i) + 2]), C(d[(i) + 3]), C(d[(i) + 4]), C(d[(i) + 5]), C(d[(i) + 6]), C(d[(i) + 7])
#define ACC_64(C, d, i)                                                                                                         \
  ACC_8(C, d, (i)), ACC_8(C, d, (i) + 8), ACC_8(C, d, (i) + 16), ACC_8(C, d, (i) + 24), ACC_8(C, d, (i) + 32), ACC_8(C, d, (i) + 40), \
      ACC_8(C, d, (i) + 48), ACC_8(C, d, (i) + 56)
#define ACC_96(C, d, i) \
  ACC_64(C, d, i), ACC_8(C, d, (i) + 64), ACC_8(C, d, (i) + 72), ACC_8(C, d, (i) + 80), ACC_8(C, d, (i) + 88)
#define ACC_128(C, d, i) ACC_64(C, d, i), ACC_64(C, d, (i) + 64)
#define REG_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REG_96 \
  REG_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define REG_128 \
  REG_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// One instruction; behind the accumulators: the descriptors of A and B, the flag, and of 16-bit types (LAYOUTS) whether each is MN-major.
#define WGMMA(SHAPE, TYPES, SUMS, A, B, ADD, LAYOUTS, ...)                                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ADD ", 0;\n"                                                                  \
               "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPES " {" REG_##SUMS "}, %" A ", %" B ", p, 1, 1" LAYOUTS ";\n}"  \
               : ACC_##SUMS("+f", d, OFFSET) : "l"(a), "l"(b), "r"((u32)accumulate) __VA_ARGS__)
// The same of 8-bit integers.
#define WGMMA_INTEGERS(SHAPE, TYPES, SUMS, A, B, ADD)                                                                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ADD ", 0;\n"                                                        \
               "wgmma.mma_async.sync.aligned." SHAPE ".s32." TYPES " {" REG_##SUMS "}, %" A ", %" B ", p;\n}"            \
               : ACC_##SUMS("+r", d, OFFSET) : "l"(a), "l"(b), "r"((u32)accumulate))
#define WGMMA_16(TYPE, COLUMNS, SUMS, A, B, ADD, MN_OF_A, MN_OF_B) \
  WGMMA("m64n" COLUMNS "k16", TYPE "." TYPE, SUMS, A, B, ADD, ", %" MN_OF_A ", %" MN_OF_B, , "n"(A_MN), "n"(B_MN))
#define WGMMA_OF(COLUMNS, SUMS, A, B, ADD, MN_OF_A, MN_OF_B)                                          \
  if constexpr (E::KIND == Kind::BF16) WGMMA_16("bf16", COLUMNS, SUMS, A, B, ADD, MN_OF_A, MN_OF_B);   \
  else if constexpr (E::KIND == Kind::F16) WGMMA_16("f16", COLUMNS, SUMS, A, B, ADD, MN_OF_A, MN_OF_B); \
  else if constexpr (E::KIND == Kind::E4M3) WGMMA("m64n" COLUMNS "k32", "e4m3.e4m3", SUMS, A, B, ADD, ""); \
  else if constexpr (E::KIND == Kind::S8) WGMMA_INTEGERS("m64n" COLUMNS "k32", "s8.s8", SUMS, A, B, ADD);  \
  else WGMMA_INTEGERS("m64n" COLUMNS "k32", "u8.s8", SUMS, A, B, ADD)

// d[OFFSET .. OFFSET + WIDTH / 2] = (accumulate ? itself : 0) + A (64 x 32 bytes of K) * B (32 bytes of K x WIDTH), WIDTH 128, 192 or 256.
// A_MN / B_MN: the operand is stored MN-major (16-bit types only).
template <u32 WIDTH, class E, u32 OFFSET, bool A_MN, bool B_MN, u32 N>
DEV void m64(Accumulator<E> (&d)[N], u64 a, u64 b, bool accumulate) {
  static_assert(WIDTH == 128 || WIDTH == 192 || WIDTH == 256, "no such instruction here");
  static_assert(OFFSET + WIDTH / 2 <= N, "accumulators out of range");
  static_assert(sizeof(typename E::Storage) == 2 || (!A_MN && !B_MN), "8-bit operands are K-major");
  if constexpr (WIDTH == 128) {
    WGMMA_OF("128", 64, "64", "65", "66", "67", "68");
  } else if constexpr (WIDTH == 192) {
    WGMMA_OF("192", 96, "96", "97", "98", "99", "100");
  } else {
    WGMMA_OF("256", 128, "128", "129", "130", "131", "132");
  }
}
#undef WGMMA_OF
#undef WGMMA_16
#undef WGMMA_INTEGERS
#undef WGMMA
#undef REG_128
#undef REG_96
#undef REG_64
#undef ACC_128
#undef ACC_96
#undef ACC_64
#undef ACC_8

}  // namespace wgmma
#endif
