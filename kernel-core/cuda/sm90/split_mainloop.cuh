// The Hopper product at f32 accuracy: f32 operands as two f16 planes each, three tensor-core products for one (Ootomo and Yokota, arXiv 2203.03341).
//
// An operand element x is held as high + low = x s, s a power of two: high = f16(x s), low = f16(x s - high), 22 bits of x and its sign. With
// low low left out, a product loses 2^-22 of itself at most, in either direction.
//
// Tensor cores truncate when they add, so long sums drift. Here they add only a stretch of 64 along K, the small products first; the stretch is then
// added to f32 registers with rounding to nearest, times a factor that the epilogue names: operands may have a scale of their own for every stretch.
//
// Tiles of 128 x TILE_N, two consumer warpgroups of 64 rows each over a shared B; while one adds its stretch up, the other's products run.
//
//   struct Epilogue {
//     DEV void begin();                                // once, when the results of earlier launches may be read
//     DEV void open(u32 m0, u32 n0);                   // before the products of a consumer's tile, 64 x TILE_N from m0, n0 on in the output
//     DEV float factor(u32 stretch);                   // of that tile
//     DEV void close(float (&sum)[TILE_N / 2], u32 staging, u32 scratch);  // its sums; SCRATCH_BYTES are for the warps to exchange what they like
//     DEV void finish();                               // once, after the consumer's last tile
//   };
//
// Sums of a thread: sum[4 * j + e] is row 16 * warp + lane / 4 + 8 * (e / 2), column 8 * j + 2 * (lane % 4) + e % 2.
#pragma once
#include "sm90/mainloop.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Both planes of an operand are one matrix in memory, the low one `a` or `b` rows below the high one.
struct SplitPlanes {
  int a, b;
};

template <Major A_MAJOR, Major B_MAJOR, u32 TILE_N_, u32 STAGING_BYTES_> struct SplitMainloop {
  static constexpr bool A_MN = A_MAJOR == Major::MN, B_MN = B_MAJOR == Major::MN;
  static constexpr u32 TILE_M = 128, TILE_N = TILE_N_, STRETCH = 64, STAGING_BYTES = STAGING_BYTES_;
  static constexpr u32 CONSUMERS = 2, THREADS = (1 + CONSUMERS) * WARPGROUP;
  static_assert(TILE_N == 128 || TILE_N == 192, "no such instruction here");
  // Tiles come in boxes of 64 x 64, whichever way an operand lies.
  static constexpr u32 BOX_BYTES = 64 * 128, A_BYTES = TILE_M / 64 * BOX_BYTES, B_BYTES = TILE_N / 64 * BOX_BYTES;
  // A stage holds one plane of A and the other plane of B over a stretch: first low and high, then high and low.
  static constexpr u32 SCRATCH_BYTES = 64, SHARED_LIMIT = 232448, FIXED_BYTES = 1024 + CONSUMERS * (STAGING_BYTES + SCRATCH_BYTES);
  static constexpr u32 STAGES = (SHARED_LIMIT - FIXED_BYTES) / (A_BYTES + B_BYTES + 16);

  u32 a, b, staging, full, empty, scratch;
  DEV explicit SplitMainloop(void* dynamic_shared) {
    a = (shared_address(dynamic_shared) + 1023u) & ~1023u;  // 128-byte swizzle repeats every 1024 bytes
    b = a + STAGES * A_BYTES;
    staging = b + STAGES * B_BYTES;
    full = staging + CONSUMERS * STAGING_BYTES;
    empty = full + 8 * STAGES;
    scratch = empty + 8 * STAGES;
  }

  template <class Epilogue>
  DEV void run(const TensorMap& map_a, const TensorMap& map_b, const GemmShape& shape, const SplitPlanes& planes, Epilogue& epilogue) {
    const u32 warpgroup = uniform(threadIdx.x / WARPGROUP);
    if (threadIdx.x == 0) {
      tma::prefetch_map(&map_a);
      tma::prefetch_map(&map_b);
      for (u32 i = 0; i < STAGES; ++i) {
        mbarrier::init(full + 8 * i, 1);
        mbarrier::init(empty + 8 * i, CONSUMERS);
      }
      mbarrier::fence_init();
    }
    __syncthreads();
    grid_dependency_wait();
    grid_dependency_launch();

    const TileOrder order = {ceil_div(shape.m, TILE_M), ceil_div(shape.n, TILE_N), shape.band};
    const u32 stretches = ceil_div(shape.k, STRETCH);
    if (warpgroup == 0) {
      registers_shrink<40>();
      if (threadIdx.x == 0) produce(map_a, map_b, shape, planes, order, stretches);
    } else {
      registers_grow<232>();
      epilogue.begin();
      consume(order, stretches, warpgroup - 1, epilogue);
    }
  }

 private:
  // One plane of one stretch, 64 rows (or columns) at a time.
  template <bool MN, u32 BOXES> static DEV void load(u32 to, const TensorMap& map, u32 barrier, int mn, int k, int plane) {
#pragma unroll
    for (u32 i = 0; i < BOXES; ++i) {
      const int at = mn + (int)i * 64;
      tma::load_2d(to + i * BOX_BYTES, &map, barrier, MN ? at : k, (MN ? k : at) + plane);
    }
  }

  DEV void produce(const TensorMap& map_a, const TensorMap& map_b, const GemmShape& shape, const SplitPlanes& planes, const TileOrder& order,
                   u32 stretches) {
    RingPlace ring;
    for (u32 t = blockIdx.x; t < order.count(); t += gridDim.x) {
      const TileOrder::Tile tile = order.at(t);
      const int m0 = shape.a_mn + (int)(tile.row * TILE_M), n0 = shape.b_mn + (int)(tile.col * TILE_N);
      for (u32 part = 0; part < 2 * stretches; ++part) {
        const int k = (int)(part / 2 * STRETCH);
        const RingPlace at = ring.next(STAGES);
        const u32 barrier = full + 8 * at.stage;
        mbarrier::wait(empty + 8 * at.stage, at.parity ^ 1);
        mbarrier::expect_bytes(barrier, A_BYTES + B_BYTES);
        load<A_MN, TILE_M / 64>(a + at.stage * A_BYTES, map_a, barrier, m0, shape.a_k + k, part % 2 ? 0 : planes.a);
        load<B_MN, TILE_N / 64>(b + at.stage * B_BYTES, map_b, barrier, n0, shape.b_k + k, part % 2 ? planes.b : 0);
      }
    }
  }

  template <bool MN> static DEV u64 descriptor(u32 shared) {
    return MN ? wgmma::descriptor_mn_major(shared, BOX_BYTES) : wgmma::descriptor_k_major(shared);
  }

  // Queues 64 x TILE_N += one plane of A times one of B over a stretch.
  template <u32 N> static DEV void multiply(float (&acc)[N], u32 from_a, u32 from_b, bool accumulate) {
    constexpr u64 STEP_A = A_MN ? 2048 >> 4 : 32 >> 4, STEP_B = B_MN ? 2048 >> 4 : 32 >> 4;
    const u64 da = descriptor<A_MN>(from_a), db = descriptor<B_MN>(from_b);
#pragma unroll
    for (u32 i = 0; i < STRETCH / 16; ++i) {
      wgmma::m64<TILE_N, F16, 0, A_MN, B_MN>(acc, da + i * STEP_A, db + i * STEP_B, accumulate || i != 0);
    }
  }

  template <class Epilogue> DEV void consume(const TileOrder& order, u32 stretches, u32 consumer, Epilogue& epilogue) {
    const u32 thread = threadIdx.x % WARPGROUP;
    RingPlace ring;
    bool first = true;
#pragma unroll 1
    for (u32 t = blockIdx.x; t < order.count(); t += gridDim.x) {
      const TileOrder::Tile tile = order.at(t);
      const u32 m0 = tile.row * TILE_M + consumer * 64, n0 = tile.col * TILE_N;
      float sum[TILE_N / 2];
#pragma unroll
      for (u32 i = 0; i < TILE_N / 2; ++i) sum[i] = 0.f;
      epilogue.open(m0, n0);
      float factor = epilogue.factor(0);
      ring = ring.broadcast();
#pragma unroll 1
      for (u32 s = 0; s < stretches; ++s) {
        const RingPlace low_high = ring.next(STAGES), high_low = ring.next(STAGES);
        mbarrier::wait(full + 8 * low_high.stage, low_high.parity);
        mbarrier::wait(full + 8 * high_low.stage, high_low.parity);
        const u32 a_low = a + low_high.stage * A_BYTES + consumer * BOX_BYTES, a_high = a + high_low.stage * A_BYTES + consumer * BOX_BYTES;
        const u32 b_high = b + low_high.stage * B_BYTES, b_low = b + high_low.stage * B_BYTES;
        // The consumers queue their stretches in turn: one's sums are taken while the other's products run.
        if (consumer == 1 || !first) named_barrier(1 + consumer, CONSUMERS * WARPGROUP);
        first = false;
        float acc[TILE_N / 2];
        wgmma::fence();
        multiply(acc, a_low, b_high, false);
        multiply(acc, a_high, b_low, true);
        multiply(acc, a_high, b_high, true);
        wgmma::commit();
        const bool last = s + 1 == stretches && t + gridDim.x >= order.count();
        if (consumer == 0 || !last) named_barrier_arrive(2 - consumer, CONSUMERS * WARPGROUP);
        const float next_factor = s + 1 < stretches ? epilogue.factor(s + 1) : 0.f;  // on its way meanwhile
        wgmma::wait<0>();
        wgmma::tie(acc);
        if (thread == 0) {
          mbarrier::arrive(empty + 8 * low_high.stage);
          mbarrier::arrive(empty + 8 * high_low.stage);
        }
#pragma unroll
        for (u32 i = 0; i < TILE_N / 2; ++i) sum[i] = fmaf(acc[i], factor, sum[i]);
        factor = next_factor;
      }
      epilogue.close(sum, staging + consumer * STAGING_BYTES, scratch + consumer * SCRATCH_BYTES);
    }
    epilogue.finish();
  }
};
#endif
