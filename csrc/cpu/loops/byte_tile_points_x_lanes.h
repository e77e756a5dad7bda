// The inner kernel of bytes where every channel has its own copy of the source: some points times one vector, a lane of
// which is a channel.
#pragma once

#include "tile_shapes.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// So many bytes, and sums of pairs of them.
template <int kBytes>
struct Lanes {
  typedef uint8_t Vector __attribute__((vector_size(kBytes)));
  typedef uint16_t Sum __attribute__((vector_size(kBytes)));
};

// Adds the distances of a block to the totals, or begins with them.
template <int kPoints, int kPanels>
void add_own_bytes(const Accumulation<uint8_t>& work, const uint8_t* region, const int64_t* offsets,
                   const uint8_t* filters, int64_t block, int32_t* totals) {
  constexpr int kLanes = kPanels * kPanel;
  using Vector = typename Lanes<kLanes>::Vector;
  using Sum = typename Lanes<kLanes>::Sum;
  // Of pairs of lanes as numbers of 16 bits, which overflow, and of the odd lanes alone, which do not: the even ones'
  // are what is left.
  Sum pairs[kPoints] = {}, odd[kPoints] = {};
  const uint8_t* source[kPoints];
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) source[p] = region + offsets[p];
  const int64_t step = work.items.panels * kPanel, source_step = work.region.step;
  for (int64_t i = work.region.blocks[block]; i < work.region.blocks[block + 1]; ++i) {
    const Piece piece = work.region.pieces[i];
    const uint8_t* filter = filters + piece.step * step;
    const uint8_t* const last = filter + piece.length * step;
    for (int64_t at = piece.source; filter != last; at += source_step, filter += step) {
      const Vector w = load_as<Vector>(filter);
#pragma GCC unroll 8
      for (int p = 0; p < kPoints; ++p) {
        const Vector x = load_as<Vector>(source[p] + at);
        const Sum distance = (Sum)((x > w ? x : w) - (x > w ? w : x));
        pairs[p] += distance;
        odd[p] += distance >> 8;
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p, totals += kLanes) {
    uint16_t sums[kLanes];
    const Sum even = pairs[p] - (odd[p] << 8);
    for (int i = 0; i < kLanes / 2; ++i) {
      sums[2 * i] = even[i];
      sums[2 * i + 1] = odd[p][i];
    }
    for (int i = 0; i < kLanes; ++i) totals[i] = sums[i] + (block > 0 ? totals[i] : 0);
  }
}

template <int kPanels>
void add_own_bytes(const Accumulation<uint8_t>& work, const uint8_t* region, const int64_t* offsets,
                   const uint8_t* filters, int64_t block, int32_t* totals, int points) {
#define ADDERZOO_CASE(n)                  \
  case n:                                 \
    if constexpr (n <= kPointsOfOwnBytes) \
      return add_own_bytes<n, kPanels>(work, region, offsets, filters, block, totals);
  switch (points) { ADDERZOO_POINTS(ADDERZOO_CASE) }
#undef ADDERZOO_CASE
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
