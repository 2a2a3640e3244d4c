// Warpgroup matrix multiplies (sm_90a) of 64 rows and N columns, N a template parameter: A from registers or from shared memory, both operands
// K-major, 16-bit elements, f32 accumulators. Complements wgmma.cuh.
#pragma once
#include "ptx/wgmma.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace wgmma {

// Names of registers 0 .. n - 1, by fours: REGS_k has 4 k of them.
#define REGS_1 "%0, %1, %2, %3"
#define REGS_2 REGS_1 ", %4, %5, %6, %7"
#define REGS_3 REGS_2 ", %8, %9, %10, %11"
#define REGS_4 REGS_3 ", %12, %13, %14, %15"
#define REGS_5 REGS_4 ", %16, %17, %18, %19"
#define REGS_6 REGS_5 ", %20, %21, %22, %23"
#define REGS_7 REGS_6 ", %24, %25, %26, %27"
#define REGS_8 REGS_7 ", %28, %29, %30, %31"
#define REGS_9 REGS_8 ", %32, %33, %34, %35"
#define REGS_10 REGS_9 ", %36, %37, %38, %39"
#define REGS_11 REGS_10 ", %40, %41, %42, %43"
#define REGS_12 REGS_11 ", %44, %45, %46, %47"
#define REGS_13 REGS_12 ", %48, %49, %50, %51"
#define REGS_14 REGS_13 ", %52, %53, %54, %55"
#define REGS_15 REGS_14 ", %56, %57, %58, %59"
#define REGS_16 REGS_15 ", %60, %61, %62, %63"
#define REGS_17 REGS_16 ", %64, %65, %66, %67"
#define REGS_18 REGS_17 ", %68, %69, %70, %71"
#define REGS_19 REGS_18 ", %72, %73, %74, %75"
#define ACC_1(d) "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define ACC_2(d) ACC_1(d), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define ACC_3(d) ACC_2(d), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define ACC_4(d) ACC_3(d), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define ACC_5(d) ACC_4(d), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define ACC_6(d) ACC_5(d), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define ACC_7(d) ACC_6(d), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define ACC_8(d) ACC_7(d), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define ACC_9(d) ACC_8(d), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define ACC_10(d) ACC_9(d), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define ACC_11(d) ACC_10(d), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define ACC_12(d) ACC_11(d), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define ACC_13(d) ACC_12(d), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define ACC_14(d) ACC_13(d), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define ACC_15(d) ACC_14(d), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define ACC_16(d) ACC_15(d), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define ACC_17(d) ACC_16(d), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define ACC_18(d) ACC_17(d), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define ACC_19(d) ACC_18(d), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])

// The operands behind 4 K accumulators are numbered from 4 K on: a0 .. a3, b, the flag; or a, b, the flag.
#define WGMMA_RS(TYPE, N, K, A0, A1, A2, A3, B, P)                                                                       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\n"                                                           \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" REGS_##K "}, {%" A0 ", %" A1 ", %" A2  \
               ", %" A3 "}, %" B ", p, 1, 1, 0;\n}"                                                                      \
               : ACC_##K(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((u32)accumulate))
#define WGMMA_SS(TYPE, N, K, A, B, P)                                                                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\n"                                                           \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" REGS_##K "}, %" A ", %" B               \
               ", p, 1, 1, 0, 0;\n}"                                                                                     \
               : ACC_##K(d) : "l"(a), "l"(b), "r"((u32)accumulate))
#define RS(N, K, ...)                                                   \
  if constexpr (COLUMNS == N) {                                         \
    if constexpr (E::KIND == Kind::BF16) WGMMA_RS("bf16", #N, K, __VA_ARGS__); \
    else WGMMA_RS("f16", #N, K, __VA_ARGS__);                           \
  }
#define SS(N, K, ...)                                                   \
  if constexpr (COLUMNS == N) {                                         \
    if constexpr (E::KIND == Kind::BF16) WGMMA_SS("bf16", #N, K, __VA_ARGS__); \
    else WGMMA_SS("f16", #N, K, __VA_ARGS__);                           \
  }

// d[0 .. COLUMNS / 2] = (accumulate ? itself : 0) + A (64 x 16, a thread's fragment in four registers) * B (16 x COLUMNS).
template <class E, u32 COLUMNS, u32 SIZE>
DEV void from_registers(float (&d)[SIZE], const u32 (&a)[4], u64 b, bool accumulate) {
  static_assert(E::KIND == Kind::BF16 || E::KIND == Kind::F16, "16-bit elements");
  static_assert(COLUMNS / 2 <= SIZE, "accumulators out of range");
  static_assert(COLUMNS == 16 || COLUMNS == 24 || COLUMNS == 32 || COLUMNS == 40 || COLUMNS == 48 || COLUMNS == 64 || COLUMNS == 72 ||
                    COLUMNS == 80 || COLUMNS == 96 || COLUMNS == 120 || COLUMNS == 128 || COLUMNS == 152,
                "no such width");
  RS(16, 2, "8", "9", "10", "11", "12", "13")
  RS(24, 3, "12", "13", "14", "15", "16", "17")
  RS(32, 4, "16", "17", "18", "19", "20", "21")
  RS(40, 5, "20", "21", "22", "23", "24", "25")
  RS(48, 6, "24", "25", "26", "27", "28", "29")
  RS(64, 8, "32", "33", "34", "35", "36", "37")
  RS(72, 9, "36", "37", "38", "39", "40", "41")
  RS(80, 10, "40", "41", "42", "43", "44", "45")
  RS(96, 12, "48", "49", "50", "51", "52", "53")
  RS(120, 15, "60", "61", "62", "63", "64", "65")
  RS(128, 16, "64", "65", "66", "67", "68", "69")
  RS(152, 19, "76", "77", "78", "79", "80", "81")
}
// The same with A from shared memory.
template <class E, u32 COLUMNS, u32 SIZE> DEV void from_shared(float (&d)[SIZE], u64 a, u64 b, bool accumulate) {
  static_assert(E::KIND == Kind::BF16 || E::KIND == Kind::F16, "16-bit elements");
  static_assert(COLUMNS / 2 <= SIZE, "accumulators out of range");
  static_assert(COLUMNS == 16 || COLUMNS == 24 || COLUMNS == 32 || COLUMNS == 40 || COLUMNS == 48 || COLUMNS == 64 || COLUMNS == 72 ||
                    COLUMNS == 80 || COLUMNS == 96 || COLUMNS == 120 || COLUMNS == 128 || COLUMNS == 152,
                "no such width");
  SS(16, 2, "8", "9", "10")
  SS(24, 3, "12", "13", "14")
  SS(32, 4, "16", "17", "18")
  SS(40, 5, "20", "21", "22")
  SS(48, 6, "24", "25", "26")
  SS(64, 8, "32", "33", "34")
  SS(72, 9, "36", "37", "38")
  SS(80, 10, "40", "41", "42")
  SS(96, 12, "48", "49", "50")
  SS(120, 15, "60", "61", "62")
  SS(128, 16, "64", "65", "66")
  SS(152, 19, "76", "77", "78")
}
#undef RS
#undef SS
#undef WGMMA_RS
#undef WGMMA_SS
#undef REGS_1
#undef ACC_1
#undef REGS_2
#undef ACC_2
#undef REGS_3
#undef ACC_3
#undef REGS_4
#undef ACC_4
#undef REGS_5
#undef ACC_5
#undef REGS_6
#undef ACC_6
#undef REGS_7
#undef ACC_7
#undef REGS_8
#undef ACC_8
#undef REGS_9
#undef ACC_9
#undef REGS_10
#undef ACC_10
#undef REGS_11
#undef ACC_11
#undef REGS_12
#undef ACC_12
#undef REGS_13
#undef ACC_13
#undef REGS_14
#undef ACC_14
#undef REGS_15
#undef ACC_15
#undef REGS_16
#undef ACC_16
#undef REGS_17
#undef ACC_17
#undef REGS_18
#undef ACC_18
#undef REGS_19
#undef ACC_19

}  // namespace wgmma
#endif
