// Warpgroup matrix multiplies (sm_90a) of 64 rows and 192 or 256 columns: A from shared memory, K-major, B of either major, 16-bit elements, f32 sums.
#pragma once
#include "ptx/wgmma.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace wgmma {

#define ACC_8(d, i)                                                                                            \
  "+f"(d[(i) + 0]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]), "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), \
      "+f"(d[(i) + 6]), "+f"(d[(i) + 7])
#define ACC_32(d, i) ACC_8(d, (i)), ACC_8(d, (i) + 8), ACC_8(d, (i) + 16), ACC_8(d, (i) + 24)
#define ACC_96(d) ACC_32(d, 0), ACC_32(d, 32), ACC_32(d, 64)
#define ACC_128(d) ACC_96(d), ACC_32(d, 96)
#define REG_96                                                                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "  \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, "  \
  "%68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, "  \
  "%90, %91, %92, %93, %94, %95"
#define REG_128                                                                                                        \
  REG_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, "    \
         "%114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// Operands behind the accumulators: the descriptors of A and B, the flag, and whether B is MN-major.
#define WGMMA_WIDE(TYPE, N, SUMS, A, B, ADD, MN)                                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ADD ", 0;\n"                                                               \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" REG_##SUMS "}, %" A ", %" B                   \
               ", p, 1, 1, 0, %" MN ";\n}"                                                                                     \
               : ACC_##SUMS(d) : "l"(a), "l"(b), "r"((u32)accumulate), "n"(B_MN))

// d = (accumulate ? itself : 0) + A (64 x 16) * B (16 x 2 SIZE).
template <class E, bool B_MN, u32 SIZE> DEV void wide(float (&d)[SIZE], u64 a, u64 b, bool accumulate) {
  static_assert(E::KIND == Kind::BF16 || E::KIND == Kind::F16, "16-bit elements");
  static_assert(SIZE == 96 || SIZE == 128, "no such width");
  if constexpr (SIZE == 96) {
    if constexpr (E::KIND == Kind::BF16) WGMMA_WIDE("bf16", "192", 96, "96", "97", "98", "99");
    else WGMMA_WIDE("f16", "192", 96, "96", "97", "98", "99");
  } else {
    if constexpr (E::KIND == Kind::BF16) WGMMA_WIDE("bf16", "256", 128, "128", "129", "130", "131");
    else WGMMA_WIDE("f16", "256", 128, "128", "129", "130", "131");
  }
}
#undef WGMMA_WIDE
#undef REG_128
#undef REG_96
#undef ACC_128
#undef ACC_96
#undef ACC_32
#undef ACC_8

}  // namespace wgmma
#endif
