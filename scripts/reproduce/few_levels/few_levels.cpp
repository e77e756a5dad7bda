// Activations of adder layers whose filters take few levels.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace {

template <int kBytes>
struct Lanes;
template <>
struct Lanes<16> {
  typedef uint8_t Vector __attribute__((vector_size(16)));
  static Vector subtract(Vector x, Vector v) { return (Vector)_mm_subs_epu8((__m128i)x, (__m128i)v); }
};
template <>
struct Lanes<32> {
  typedef uint8_t Vector __attribute__((vector_size(32)));
  static Vector subtract(Vector x, Vector v) { return (Vector)_mm256_subs_epu8((__m256i)x, (__m256i)v); }
};
template <>
struct Lanes<64> {
  typedef uint8_t Vector __attribute__((vector_size(64)));
  static Vector subtract(Vector x, Vector v) { return (Vector)_mm512_subs_epu8((__m512i)x, (__m512i)v); }
};

template <int kBytes>
void make(const uint8_t* x, int64_t pixels, int64_t channels, const uint8_t* levels, int64_t count, uint8_t* made) {
  using Vector = typename Lanes<kBytes>::Vector;
  for (int64_t p = 0; p < pixels; ++p, x += channels, made += (count + 1) * channels) {
    for (int64_t c = 0; c < channels; c += kBytes) {
      Vector value;
      std::memcpy(&value, x + c, kBytes);
      std::memcpy(made + c, &value, kBytes);
      for (int64_t j = 0; j < count; ++j) {
        const Vector activation = Lanes<kBytes>::subtract(value, Vector{} + levels[j]);
        std::memcpy(made + (j + 1) * channels + c, &activation, kBytes);
      }
    }
  }
}

}  // namespace

// Of each pixel's `channels` bytes: x, and relu(x - levels[j]), one after the other.
extern "C" void make_activations(const uint8_t* x, int64_t pixels, int64_t channels, const uint8_t* levels,
                                 int64_t count, uint8_t* made) {
  if (channels % 64 == 0) {
    make<64>(x, pixels, channels, levels, count, made);
  } else if (channels % 32 == 0) {
    make<32>(x, pixels, channels, levels, count, made);
  } else {
    make<16>(x, pixels, channels, levels, count, made);
  }
}

// ---------------------------------------------------------------------------------------------------------- ceilings
//
// Loops with operands that the first cache holds, as the innermost ones of a kernel would be that makes activations
// where it needs them. They return the number of elements, |x - w|, that were added up.

namespace {

constexpr int kPoints = 6, kVectors = 4, kSteps = 32;

// Points times 64 filters: for each four channels of a point, x and kInner activations relu(x - v) in a register, each
// multiplied by its filters' signs.
template <int kInner>
int64_t add_up(int64_t rounds) {
  alignas(64) static uint8_t source[(kPoints + kSteps) * 4];
  alignas(64) static int8_t filters[kSteps][kInner + 1][kVectors][64];
  alignas(64) static uint8_t levels[kInner + 1];
  __asm__ volatile("" ::"r"(source), "r"(filters), "r"(levels) : "memory");  // they may hold anything
  __m512i sum[kPoints][kVectors] = {};
  for (int64_t round = 0; round < rounds; ++round) {
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 8
      for (int j = 0; j <= kInner; ++j) {
        __m512i w[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(filters[step][j][v]);
        const __m512i level = _mm512_set1_epi8(levels[j]);
#pragma GCC unroll 8
        for (int p = 0; p < kPoints; ++p) {
          __m512i activation;
          __asm__ volatile("vpbroadcastd %1, %0" : "=v"(activation) : "m"(source[(p + step) * 4]));
          if (j > 0) activation = _mm512_subs_epu8(activation, level);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            // Not the intrinsic: GCC 12 then keeps the sums in memory.
            __asm__("vpdpbusd %2, %1, %0" : "+v"(sum[p][v]) : "v"(activation), "v"(w[v]));
          }
        }
      }
    }
  }
  __m512i all = {};
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) all += sum[p][v];
  }
  __asm__ volatile("" ::"v"(all));
  return rounds * kSteps * kPoints * kVectors * 64;
}

// The same with vpsadbw, as the byte kernel has it: one instruction and an addition for 64 elements.
int64_t add_distances(int64_t rounds) {
  alignas(64) static uint8_t source[(kPoints + kSteps) * 8], filters[kSteps][kVectors][64];
  __asm__ volatile("" ::"r"(source), "r"(filters) : "memory");
  __m512i sum[kPoints][kVectors] = {};
  for (int64_t round = 0; round < rounds; ++round) {
    for (int step = 0; step < kSteps; ++step) {
      __m512i w[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(filters[step][v]);
#pragma GCC unroll 8
      for (int p = 0; p < kPoints; ++p) {
        __m512i x;
        __asm__ volatile("vpbroadcastq %1, %0" : "=v"(x) : "m"(source[(p + step) * 8]));
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[p][v] += _mm512_sad_epu8(x, w[v]);
      }
    }
  }
  __m512i all = {};
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) all += sum[p][v];
  }
  __asm__ volatile("" ::"v"(all));
  return rounds * kSteps * kPoints * kVectors * 64;
}

}  // namespace

// 32 points times 32 filters on AMX: the tiles of activations, which a kernel makes once for all filters and taps, are
// read from the first cache.
extern "C" int64_t tile_ceiling(int64_t rounds) {
  alignas(64) static uint8_t source[kSteps][2][1024];
  alignas(64) static int8_t filters[kSteps][2][1024];
  struct alignas(64) Configuration {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } configuration;
  syscall(SYS_arch_prctl, 0x1023, 18);  // ARCH_REQ_XCOMP_PERM for tiles
  _tile_loadconfig(&configuration);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int step = 0; step < kSteps; ++step) {
      _tile_loadd(4, source[step][0], 64);
      _tile_loadd(6, filters[step][0], 64);
      _tile_loadd(5, source[step][1], 64);
      _tile_loadd(7, filters[step][1], 64);
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_release();
  return rounds * kSteps * 4 * 16 * 16 * 64;
}

// m levels on vpdpbusd; the byte kernel's form for m = 0.
extern "C" int64_t vector_ceiling(int64_t m, int64_t rounds) {
  switch (m) {
    case 0:
      return add_distances(rounds);
    case 2:
      return add_up<0>(rounds);
    case 3:
      return add_up<1>(rounds);
    case 4:
      return add_up<2>(rounds);
    case 8:
      return add_up<6>(rounds);
    default:
      return 0;
  }
}
