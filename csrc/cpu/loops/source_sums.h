// Sums of sources and of their magnitudes, which the distance from the maximum takes off.
#pragma once

#include "item.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

template <typename T>
Vector<T> magnitude(Vector<T> x) {
  return Simd<T>::distance(x, Vector<T>{});
}

// A distance below a 64th of the magnitudes that the fast form subtracts for it has lost more bits than six: for x and
// w near 1000 that differ by 1 its error would be 5e-4 of it. NaN, which no distance exceeds, where their sum might be
// infinite, which the distance need not be.
template <typename T>
T limit_of(T magnitudes) {
  return magnitudes / 64 + (4 * magnitudes - 4 * magnitudes);
}

// The sums of the channels of `count` pixels, which are `stride` apart, and those of their magnitudes. Four pixels at a
// time, lest one addition waits for the other; in blocks, since constants round in one direction.
template <typename T>
void sum_pixels(const T* from, int64_t stride, int64_t channels, int64_t count, T* sums, T* magnitudes) {
  constexpr int64_t kFew = 32 * kLanes<T>;
  for (int64_t first = 0; first < count; first += 4) {
    const T* pixels[4];
    for (int64_t p = 0; p < 4; ++p) pixels[p] = from + smaller(first + p, count - 1) * stride;
    Vector<T> total[4] = {}, total_magnitude[4] = {};
    int64_t i = 0;
    while (i + kLanes<T> <= channels) {
      Vector<T> part[4] = {};
      for (const int64_t end = smaller(channels, i + kFew); i + kLanes<T> <= end; i += kLanes<T>) {
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) {
          const Vector<T> x = load(pixels[p] + i);
          part[p] += x;
          total_magnitude[p] += magnitude<T>(x);
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) total[p] += part[p];
    }
    T four[4], four_magnitudes[4];
    Simd<T>::sums(total, four);
    Simd<T>::sums(total_magnitude, four_magnitudes);
    for (; i < channels; ++i) {
      for (int p = 0; p < 4; ++p) {
        four[p] += pixels[p][i];
        four_magnitudes[p] += pixels[p][i] < T(0) ? -pixels[p][i] : pixels[p][i];
      }
    }
    for (int64_t p = 0; p < smaller(4, count - first); ++p) {
      sums[first + p] = four[p];
      magnitudes[first + p] = four_magnitudes[p];
    }
  }
}

// Adds those of one tap, of points that are `step` apart, to sums and sums of magnitudes.
template <typename T>
void add_tap(T* __restrict sums, T* __restrict magnitudes, const T* from, const T* from_magnitudes, int64_t step,
             int64_t count) {
  if (step == 1) {
    for (int64_t i = 0; i < count; ++i) {
      sums[i] += from[i];
      magnitudes[i] += from_magnitudes[i];
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      sums[i] += from[i * step];
      magnitudes[i] += from_magnitudes[i * step];
    }
  }
}

// Writes to `row_sums` the sums over each point's taps of one region row, where `pixels` begins, and behind them those
// of the magnitudes.
template <typename T>
void sum_row(const Accumulation<T>& work, int64_t columns, const T* pixels, T* pixel_sums, T* row_sums) {
  T* const row_magnitudes = row_sums + columns;
  if (work.lattice.num_tap_columns == 1) {
    sum_pixels(pixels, work.lattice.step_w * work.region.pixel, work.source.channels, columns, row_sums,
               row_magnitudes);
    return;
  }
  const int64_t width = work.lattice.span_w(columns);
  T* const pixel_magnitudes = pixel_sums + width;
  sum_pixels(pixels, work.region.pixel, work.source.channels, width, pixel_sums, pixel_magnitudes);
  std::memset(row_sums, 0, 2 * columns * sizeof(T));
  for (int64_t j = 0; j < work.lattice.num_tap_columns; ++j) {
    const int64_t first = work.lattice.tap_columns[j] - work.lattice.tap_columns[0];
    add_tap(row_sums, row_magnitudes, pixel_sums + first, pixel_magnitudes + first, work.lattice.step_w, columns);
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
