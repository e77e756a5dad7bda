// The inner kernel of floats: some points times some vectors of channels.
#pragma once

#include "tile_shapes.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// What a tile works on. Arrays are those of its first point.
template <typename T>
struct Tile {
  const T* source;         // the region, at the tile's first channel if sources are not shared
  const int64_t* offsets;  // of the points in it
  const T* filters;        // of the tile's first panel
  int64_t panel_size;
  const T* inputs;  // (points, vectors)
  T* totals;        // (points, vectors)
  // What the next item reads comes into the second cache meanwhile, some bytes with every step.
  const char* ahead;
  int64_t ahead_step;
};

// Adds the sums of a block to the totals, which are registers too or lie in memory.
template <Function F, int kPoints, int kVecs, typename T>
inline __attribute__((always_inline)) void end_block(const Tile<T>& tile, int64_t block,
                                                     Vector<T> (&sum)[kPoints][kVecs],
                                                     Vector<T> (&total)[kPoints][kVecs]) {
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      if constexpr (takes_all_blocks(F, kVecs)) {
        total[p][v] += sum[p][v];
      } else {
        T* to = tile.totals + (p * kVecs + v) * kLanes<T>;
        store(to, block == 0 ? sum[p][v] : load(to) + sum[p][v]);
      }
      sum[p][v] = Vector<T>{};
    }
  }
}

// Adds the terms of the blocks [begin, end) to the totals, or begins with them.
template <Function F, bool kShared, int kPoints, int kVecs, typename T>
void add_blocks(const Accumulation<T>& work, const Tile<T>& tile, int64_t begin, int64_t end) {
  constexpr int64_t width = kVecs * kLanes<T>;
  const Vector<T> one = Simd<T>::opaque(Vector<T>{} + T(1));
  // As `pad` marks it; nothing in a region that is the source itself (only a NaN that no processor makes).
  const Mask<T> outside = work.region.staged ? (Mask<T>)-Vector<T>{} : ~Mask<T>{};
  const T* source[kPoints];
  Vector<T> sum[kPoints][kVecs] = {};
  Vector<T> total[kPoints][kVecs] = {};
  Vector<T> input[kPoints][kVecs] = {};
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
    source[p] = tile.source + tile.offsets[p];
    if constexpr (has_input(F)) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) input[p][v] = load(tile.inputs + p * width + v * kLanes<T>);
    }
  }

  const char* ahead = tile.ahead;
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t i = work.region.blocks[block]; i < work.region.blocks[block + 1]; ++i) {
      const Piece piece = work.region.pieces[i];
      const T* filter = tile.filters + piece.step * kPanel;
      const T* const last = filter + piece.length * kPanel;
      const int64_t panel_size = tile.panel_size;
      const int64_t source_step = kShared ? 1 : work.region.step;
      if constexpr (kVecs < 4) {
        const char* const until = ahead + piece.length * tile.ahead_step;
        for (; ahead < until; ahead += 64) __builtin_prefetch(ahead, 0, 2);
        ahead = until;
      }
      for (int64_t at = piece.source; filter != last; at += source_step, filter += kPanel) {
        if constexpr (kVecs >= 4) {
          __builtin_prefetch(ahead, 0, 2);
          ahead += tile.ahead_step;
        }
        Vector<T> w[kVecs];
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          w[v] = load(filter + v / kVectors<T> * panel_size + v % kVectors<T> * kLanes<T>);
        }
#pragma GCC unroll 8
        for (int p = 0; p < kPoints; ++p) {
          Vector<T> x = {};
          if constexpr (kShared) x = Simd<T>::broadcast(source[p][at]);
#pragma GCC unroll 8
          for (int v = 0; v < kVecs; ++v) {
            if constexpr (!kShared) x = load(source[p] + at + v * kLanes<T>);
            sum[p][v] = (p + v) % 2 == 0 ? add_term<F, false, T>(sum[p][v], x, w[v], input[p][v], one, outside)
                                         : add_term<F, true, T>(sum[p][v], x, w[v], input[p][v], one, outside);
          }
        }
      }
    }
    end_block<F>(tile, block, sum, total);
  }
  if constexpr (takes_all_blocks(F, kVecs)) {
#pragma GCC unroll 8
    for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) store(tile.totals + p * width + v * kLanes<T>, total[p][v]);
    }
  }
}

template <Function F, bool kShared, int kVecs, typename T>
void add_blocks(const Accumulation<T>& work, const Tile<T>& tile, int64_t begin, int64_t end, int points) {
  constexpr int kMost = points_of_tile(F, kVecs);
#define ADDERZOO_CASE(n) \
  case n:                \
    if constexpr (n <= kMost) return add_blocks<F, kShared, n, kVecs>(work, tile, begin, end);
  switch (points) { ADDERZOO_POINTS(ADDERZOO_CASE) }
#undef ADDERZOO_CASE
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
