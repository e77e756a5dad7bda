// The inner kernel of bytes: some points times some vectors of filters.
//
// A lane of eight bytes holds successive channels of one filter, and so one broadcast of eight source bytes serves all
// filters of a vector that share their source; the others' region has the lanes of such vectors. The sum of eight
// absolute differences is one instruction on x86. All sums are exact.
#pragma once

#include "tile_shapes.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// Adds the distances of a block to the totals, or begins with them.
template <Function F, bool kShared, int kPoints, int kVecs>
void add_bytes(const Accumulation<uint8_t>& work, const uint8_t* region, const int64_t* offsets, const uint8_t* filters,
               int64_t block, int32_t* totals) {
  using Vector = Bytes::Vector;
  constexpr int64_t kStep = kPanel * kByteStep;
  const uint8_t* source[kPoints];
  Bytes::Sum sum[kPoints][kVecs] = {};
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) source[p] = region + offsets[p];
  const int64_t panel_size = work.filters.steps * kStep, source_step = kShared ? kByteStep : work.region.step;
  for (int64_t i = work.region.blocks[block]; i < work.region.blocks[block + 1]; ++i) {
    const Piece piece = work.region.pieces[i];
    const uint8_t* filter = filters + piece.step * kStep;
    const uint8_t* const last = filter + piece.length * kStep;
    for (int64_t at = piece.source; filter != last; at += source_step, filter += kStep) {
      Vector w[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        w[v] = load_as<Vector>(filter + v / kVectors<uint8_t> * panel_size +
                               v % kVectors<uint8_t> * ADDERZOO_VECTOR_BYTES);
        // Opaque, or else GCC would load it once for each of two points, and loads would be what the loop waits for.
        if constexpr (kPoints > 1) w[v] = (Vector)Simd<float>::opaque((cpu::ADDERZOO_CAPABILITY::Vector<float>)w[v]);
      }
#pragma GCC unroll 8
      for (int p = 0; p < kPoints; ++p) {
        Vector x = {};
        if constexpr (kShared) x = Bytes::broadcast(source[p] + at);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          if constexpr (!kShared) x = load_as<Vector>(source[p] + at + v * ADDERZOO_VECTOR_BYTES);
          sum[p][v] = Bytes::add<F>(sum[p][v], x, w[v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; v += 2) {
      Bytes::Totals total = Bytes::totals(sum[p] + v);
      if (block > 0) total += load_as<Bytes::Totals>(totals);
      std::memcpy(totals, &total, sizeof(total));
      totals += sizeof(total) / sizeof(int32_t);
    }
  }
}

template <Function F, bool kShared, int kVecs>
void add_bytes(const Accumulation<uint8_t>& work, const uint8_t* region, const int64_t* offsets, const uint8_t* filters,
               int64_t block, int32_t* totals, int points) {
  constexpr int kMost = points_of_byte_tile(kVecs);
#define ADDERZOO_CASE(n) \
  case n:                \
    if constexpr (n <= kMost) return add_bytes<F, kShared, n, kVecs>(work, region, offsets, filters, block, totals);
  switch (points) { ADDERZOO_POINTS(ADDERZOO_CASE) }
#undef ADDERZOO_CASE
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
