// The inner kernel of bytes where every channel has its own copy of the source: one point times one panel.
#pragma once

#include "tile_shapes.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// The same where every channel has its own copy of the source, for one point and one panel.
inline void add_own_bytes(const Accumulation<uint8_t>& work, const uint8_t* source, const uint8_t* filters,
                          int64_t block, int32_t* totals) {
  typedef uint8_t Vector __attribute__((vector_size(kPanel)));
  typedef uint16_t Sum __attribute__((vector_size(kPanel * sizeof(uint16_t))));
  Sum sum = {};
  for (int64_t i = work.region.blocks[block]; i < work.region.blocks[block + 1]; ++i) {
    const Piece piece = work.region.pieces[i];
    for (int64_t step = 0; step < piece.length; ++step) {
      const Vector x = load_as<Vector>(source + piece.source + step * work.region.step);
      const Vector w = load_as<Vector>(filters + (piece.step + step) * kPanel);
      sum += __builtin_convertvector(x > w ? x - w : w - x, Sum);
    }
  }
  for (int64_t i = 0; i < kPanel; ++i) totals[i] = sum[i] + (block > 0 ? totals[i] : 0);
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
