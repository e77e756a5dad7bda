// How many points and panels a tile has: as many as its sums, and what it needs beside them, have registers.
#pragma once

#include "terms.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// Panels of a tile at most: four vectors of AVX-512.
template <typename T>
constexpr int kMaxPanels = ADDERZOO_REGISTERS >= 32 && kVectors<T> < 4 ? 4 / kVectors<T> : 1;

// Whether a tile keeps its totals in registers beside its sums and takes all blocks at once. A wide one has no room for
// them; it takes the same block as all other tiles of the item, while its filters lie in the first cache.
constexpr bool takes_all_blocks(Function f, int vectors) {
  return ADDERZOO_REGISTERS >= 32 && vectors <= (has_input(f) ? 1 : 2);
}

// Points of a tile. Each pair of point and vector needs a register for the sum, one for the total where all blocks are
// taken at once, and one for the input of a slope; one vector of filters, one of the source and the constant one have
// to fit beside them. The pointers of more than eight points would not fit into the general registers.
constexpr int points_of_tile(Function f, int vectors) {
  const int pair = 1 + takes_all_blocks(f, vectors) + has_input(f);
  const int spare = takes_all_blocks(f, vectors) ? 8 : 3;
  const int points = (ADDERZOO_REGISTERS - spare - vectors) / (pair * vectors);
  return points < 1 ? 1 : points > 8 ? 8 : points;
}

// Points of a tile: each pair of point and vector has a sum in a register.
constexpr int points_of_byte_tile(int vectors) {
  const int points = (ADDERZOO_REGISTERS - 4 - vectors) / vectors;
  return points < 1 ? 1 : points > 8 ? 8 : points;
}

// A tile of bytes whose channels have their own copies is one vector; each point has two sums.
constexpr int kPanelsOfOwnBytes = ADDERZOO_VECTOR_BYTES / kPanel;
constexpr int kPointsOfOwnBytes = ADDERZOO_REGISTERS >= 32 ? 8 : (ADDERZOO_REGISTERS - 4) / 2;

// The tiles of the example in adder2d_accumulation.h.
constexpr int kPointsOfExample = points_of_tile(Simd<float>::kDistance, kVectors<float>);
#if ADDERZOO_VECTOR_BYTES == 64
static_assert(kVectors<float> == 1 && kPointsOfExample == 8);
#elif ADDERZOO_VECTOR_BYTES == 32
static_assert(kVectors<float> == 2 && kPointsOfExample == 5);
#elif defined(__x86_64__)
static_assert(kVectors<float> == 4 && kPointsOfExample == 2);
#elif defined(__aarch64__)
static_assert(kVectors<float> == 4 && kPointsOfExample == 6);
#endif

// What the compiler makes for every number of points that a tile may have.
#define ADDERZOO_POINTS(make) make(1) make(2) make(3) make(4) make(5) make(6) make(7) make(8)

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
