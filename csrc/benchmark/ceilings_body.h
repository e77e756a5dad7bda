// The ceilings, compiled once for each instruction set as the loops are (cpu/loops/table.h).
#pragma once

#include "../cpu/loops/tile_shapes.h"
#include "ceilings.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// The best tile of each function, with operands that the first cache holds.
template <Function F, bool kMultiply, typename T>
int64_t ceiling_of(int64_t steps) {
  constexpr int kVecs = kMaxPanels<T> * kVectors<T>;
  constexpr int kPoints = points_of_tile(F, kVecs);
  constexpr int64_t kSteps = 64;
  alignas(64) T source[kPoints + kSteps], filters[kSteps * kVecs * kLanes<T>];
  for (T& x : source) x = T(0.5);
  for (T& w : filters) w = T(0.25);
  const Vector<T> one = Simd<T>::opaque(Vector<T>{} + T(1));
  Vector<T> sum[kPoints][kVecs] = {}, input[kPoints][kVecs];
  for (auto& vectors : input) {
    for (Vector<T>& x : vectors) x = Simd<T>::opaque(one);
  }
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t at = step % kSteps;
    Vector<T> w[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) w[v] = load(filters + (at * kVecs + v) * kLanes<T>);
#pragma GCC unroll 8
    for (int p = 0; p < kPoints; ++p) {
      const Vector<T> x = Simd<T>::broadcast(source[p + at]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        if constexpr (kMultiply) {
          sum[p][v] = Simd<T>::multiply_add(x, w[v], sum[p][v]);
        } else {
          sum[p][v] = (p + v) % 2 == 0 ? add_term<F, false, T>(sum[p][v], x, w[v], input[p][v], one, Mask<T>{})
                                       : add_term<F, true, T>(sum[p][v], x, w[v], input[p][v], one, Mask<T>{});
        }
      }
    }
  }
  Vector<T> all = {};
  // Unrolled as well: else GCC writes the sums to memory in every step, for this loop to find them there (aarch64).
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) all += sum[p][v];
  }
  Simd<T>::opaque(all);
  return steps * kPoints * kVecs * kLanes<T>;
}

// The best tile, with operands that the first cache holds.
template <Function F>
int64_t ceiling_of_bytes(int64_t steps) {
  constexpr int kVecs = kMaxPanels<uint8_t> * kVectors<uint8_t>;
  // Of more, GCC keeps some in memory in this loop.
  constexpr int kPoints = smaller(4, points_of_byte_tile(kVecs));
  constexpr int64_t kSteps = 64;
  // Aligned: wherever the stack happens to lie, the same speed.
  alignas(64) uint8_t source[(kPoints + kSteps) * kByteStep], filters[kSteps * kVecs * ADDERZOO_VECTOR_BYTES];
  for (uint8_t& x : source) x = 1;
  for (uint8_t& w : filters) w = 2;
  Bytes::Sum sum[kPoints][kVecs] = {};
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t at = step % kSteps;
    Bytes::Vector w[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) w[v] = load_as<Bytes::Vector>(filters + (at * kVecs + v) * ADDERZOO_VECTOR_BYTES);
#pragma GCC unroll 8
    for (int p = 0; p < kPoints; ++p) {
      const Bytes::Vector x = Bytes::broadcast(source + (p + at) * kByteStep);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[p][v] = Bytes::add<F>(sum[p][v], x, w[v]);
    }
  }
  // One by one, as values: an address would have GCC keep them in memory.
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) Simd<float>::opaque((Vector<float>)sum[p][v]);
  }
  return steps * kPoints * kVecs * ADDERZOO_VECTOR_BYTES;
}

int64_t ceiling(Ceiling form, int64_t steps) {
  constexpr Function distance = Simd<float>::kDistance, slope = Simd<float>::kSlope;
  switch (form) {
    case Ceiling::kMultiplyAdd:
      return ceiling_of<distance, true, float>(steps);
    case Ceiling::kDistance:
      return form_for_processor(distance) == Function::kMaxDistance
                 ? ceiling_of<Function::kMaxDistance, false, float>(steps)
                 : ceiling_of<distance, false, float>(steps);
    case Ceiling::kSlope:
      return form_for_processor(slope) == Function::kClippedSlope
                 ? ceiling_of<Function::kClippedSlope, false, float>(steps)
                 : ceiling_of<slope, false, float>(steps);
    default: {
      if (form_for_processor(Bytes::kDistance) == Function::kDistance)
        return ceiling_of_bytes<Function::kDistance>(steps);
      const unsigned before = Bytes::keep_denormals<Bytes::kDistance>();
      const int64_t elements = ceiling_of_bytes<Bytes::kDistance>(steps);
      Bytes::restore<Bytes::kDistance>(before);
      return elements;
    }
  }
}

}  // namespace

extern const CeilingLoop kCeiling;
constexpr CeilingLoop kCeiling = ceiling;

}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
