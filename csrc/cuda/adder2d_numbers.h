// Numbers in memory and in registers, and the few instructions that C++ has no words for. On a CPU (without __CUDACC__)
// each has its exact meaning.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "cuda_on_cpu.h"
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

namespace adderzoo::cuda {

// Half-precision numbers as they lie in memory.
struct alignas(2) Half {
  uint16_t bits;
};
struct alignas(2) BFloat16 {
  uint16_t bits;
};

template <typename To, typename From>
__device__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

__device__ inline float to_number(float x) { return x; }
__device__ inline double to_number(double x) { return x; }
__device__ inline float to_number(BFloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float to_number(Half x) {
#ifdef __CUDACC__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return static_cast<float>(bits_as<_Float16>(x.bits));
#endif
}

__device__ inline void from_number(float x, float& y) { y = x; }
__device__ inline void from_number(double x, double& y) { y = x; }
__device__ inline void from_number(float x, BFloat16& y) {  // to the nearest, to even between two
  const uint32_t bits = bits_as<uint32_t>(x);
  y.bits = static_cast<uint16_t>(x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
__device__ inline void from_number(float x, Half& y) {
#ifdef __CUDACC__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  y.bits = bits_as<uint16_t>(static_cast<_Float16>(x));
#endif
}

__device__ inline float magnitude(float x) { return fabsf(x); }
__device__ inline double magnitude(double x) { return fabs(x); }

// Four numbers at once, from an address that is a multiple of theirs together.
__device__ inline void load_four(const float* from, float* to) {
#ifdef __CUDACC__
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
#else
  memcpy(to, cuda_on_cpu::aligned(from, 16), 16);
#endif
}
__device__ inline void load_four(const uint32_t* from, uint32_t* to) {
#ifdef __CUDACC__
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
#else
  memcpy(to, cuda_on_cpu::aligned(from, 16), 16);
#endif
}
template <typename T>
__device__ void load_four_halves(const T* from, float* to) {
  uint64_t v;
#ifdef __CUDACC__
  v = *reinterpret_cast<const unsigned long long*>(from);
#else
  memcpy(&v, cuda_on_cpu::aligned(from, 8), 8);
#endif
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = to_number(T{static_cast<uint16_t>(v >> (16 * i))});
}
__device__ inline void load_four(const Half* from, float* to) { load_four_halves(from, to); }
__device__ inline void load_four(const BFloat16* from, float* to) { load_four_halves(from, to); }

__device__ inline void store_four(float* to, float a, float b, float c, float d) {
#ifdef __CUDACC__
  *reinterpret_cast<float4*>(to) = make_float4(a, b, c, d);
#else
  cuda_on_cpu::aligned(to, 16);
  to[0] = a, to[1] = b, to[2] = c, to[3] = d;
#endif
}

template <typename T>
__device__ void store_four_halves(T* to, float a, float b, float c, float d) {
  T halves[4];
  from_number(a, halves[0]), from_number(b, halves[1]), from_number(c, halves[2]), from_number(d, halves[3]);
  uint64_t v = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) v |= static_cast<uint64_t>(halves[i].bits) << (16 * i);
#ifdef __CUDACC__
  *reinterpret_cast<unsigned long long*>(to) = v;
#else
  cuda_on_cpu::aligned(to, 8);
  memcpy(to, &v, 8);
#endif
}
__device__ inline void store_four(Half* to, float a, float b, float c, float d) { store_four_halves(to, a, b, c, d); }
__device__ inline void store_four(BFloat16* to, float a, float b, float c, float d) {
  store_four_halves(to, a, b, c, d);
}

__device__ inline uint32_t load_word(const uint8_t* from) {
#ifdef __CUDACC__
  return *reinterpret_cast<const uint32_t*>(from);
#else
  uint32_t v;
  memcpy(&v, cuda_on_cpu::aligned(from, 4), 4);
  return v;
#endif
}

__device__ inline void store_word(uint8_t* to, uint32_t v) {
#ifdef __CUDACC__
  *reinterpret_cast<uint32_t*>(to) = v;
#else
  cuda_on_cpu::aligned(to, 4);
  memcpy(to, &v, 4);
#endif
}

// The shared memory that a block is launched with.
template <typename T>
__device__ T& shared_memory() {
#ifdef __CUDACC__
  extern __shared__ uint4 memory[];
  return *reinterpret_cast<T*>(memory);
#else
  return *static_cast<T*>(cuda_on_cpu::shared_memory(sizeof(T)));
#endif
}

// a + b, then within [0, 1]; zero for NaN.
__device__ inline float saturating_add(float a, float b) {
#ifdef __CUDACC__
  return __saturatef(a + b);
#else
  const float y = a + b;
  return y > 1.0f ? 1.0f : y > 0.0f ? y : 0.0f;
#endif
}

__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }

// Rounded each by itself, never as one multiply-add.
__device__ inline float multiply(float a, float b) {
#ifdef __CUDACC__
  return __fmul_rn(a, b);
#else
  volatile float y = a * b;
  return y;
#endif
}
__device__ inline float add(float a, float b) {
#ifdef __CUDACC__
  return __fadd_rn(a, b);
#else
  volatile float y = a + b;
  return y;
#endif
}
__device__ inline float round_to_even(float x) { return rintf(x); }

// c and the four differences of bytes.
__device__ inline uint32_t add_byte_distances(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
  uint32_t y;
  asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  return y;
#else
  for (int i = 0; i < 32; i += 8) {
    const int x = a >> i & 255, f = b >> i & 255;
    c += x > f ? x - f : f - x;
  }
  return c;
#endif
}

}  // namespace adderzoo::cuda
