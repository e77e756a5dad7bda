// The gradient of the filters (eq. 4 and 5): of some filters and channels side by side, or of a depthwise layer.
#pragma once

#include "vectors.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// The sum with one more term. Where all numbers are finite, the sign is moved from difference to gradient, which is
// quicker than a product with it.
template <FilterSlope S, typename T>
inline __attribute__((always_inline)) Vector<T> add_slope(Vector<T> sum, Vector<T> grad, Vector<T> source,
                                                          Vector<T> filter) {
  const Vector<T> zero = {}, difference = source - filter;
  if constexpr (S == FilterSlope::kFull) {
    return Simd<T>::multiply_add(grad, difference, sum);
  } else if constexpr (S == FilterSlope::kFiniteSign) {
    const Vector<T> term = (Vector<T>)((Mask<T>)grad ^ ((Mask<T>)difference & (Mask<T>)-zero));
    return sum + (difference != zero ? term : zero);
  } else {
    const Vector<T> one = zero + T(1);
    return sum + grad * (difference > zero ? one : (difference < zero ? -one : difference));
  }
}

// Where the source pixels of one tap lie.
struct TapPlace {
  int64_t top, begin, end, first;  // the columns [begin, end) have a source pixel, the first of them that column

  TapPlace() = default;
  TapPlace(const Geometry& g, int64_t tap) {
    const int64_t left = tap % g.kernel_w * g.dilation_w - g.padding_w;
    top = tap / g.kernel_w * g.dilation_h - g.padding_h;
    begin = smaller(g.out_width, left < 0 ? divide_up<int64_t>(-left, g.stride_w) : 0);
    end = left < g.width ? smaller(g.out_width, (g.width - 1 - left) / g.stride_w + 1) : 0;
    if (end < begin) end = begin;
    first = begin * g.stride_w + left;
  }

  // The row of the source under a row of the gradient; -1 where that is padding.
  int64_t source_row(const Geometry& g, int64_t image, int64_t row) const {
    const int64_t y = row * g.stride_h + top;
    return y < 0 || y >= g.height ? -1 : image * g.height + y;
  }
};

// ---------------------------------------------------------------------------------------------------- side by side

// Pixels of a block, as packed side by side: kPanel channels of each.
template <typename T>
struct PackedPixels {
  T values[kBlockSteps * kPanel];

  // `place` is null for a pixel that is padding.
  void set(int64_t pixel, const T* place, int64_t channels) {
    T* to = values + pixel * kPanel;
    if (place == nullptr) {
      std::memset(to, 0, kPanel * sizeof(T));
    } else if (channels == kPanel) {
      std::memcpy(to, place, kPanel * sizeof(T));
    } else {
      for (int64_t i = 0; i < channels; ++i) to[i] = place[i];
    }
  }
};

// Adds a block of pixels to the totals of a vector of lanes and kOthers others.
template <FilterSlope S, bool kFiltersAreLanes, int kOthers, typename T>
void add_pixels(const T* lanes, const T* others, int64_t pixels, const T* filters, T* totals) {
  Vector<T> sum[kOthers] = {}, filter[kOthers];
#pragma GCC unroll 4
  for (int o = 0; o < kOthers; ++o) filter[o] = load(filters + o * kPanel);
  for (int64_t p = 0; p < pixels; ++p, lanes += kPanel, others += kPanel) {
    const Vector<T> lane = load(lanes);
#pragma GCC unroll 4
    for (int o = 0; o < kOthers; ++o) {
      const Vector<T> other = Simd<T>::broadcast(others[o]);
      sum[o] = kFiltersAreLanes ? add_slope<S, T>(sum[o], lane, other, filter[o])
                                : add_slope<S, T>(sum[o], other, lane, filter[o]);
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < kOthers; ++o) store(totals + o * kPanel, load(totals + o * kPanel) + sum[o]);
}

template <FilterSlope S, bool kFiltersAreLanes, typename T>
void add_block(const PackedPixels<T>& lanes, int64_t num_lanes, const PackedPixels<T>& others, int64_t num_others,
               int64_t pixels, const T* filters, T* totals) {
  for (int64_t lane = 0; lane < num_lanes; lane += kLanes<T>) {
    for (int64_t other = 0; other < num_others; other += 4) {
      const T *x = lanes.values + lane, *y = others.values + other, *w = filters + other * kPanel + lane;
      T* to = totals + other * kPanel + lane;
      switch (smaller(4, num_others - other)) {
        case 1:
          add_pixels<S, kFiltersAreLanes, 1>(x, y, pixels, w, to);
          break;
        case 2:
          add_pixels<S, kFiltersAreLanes, 2>(x, y, pixels, w, to);
          break;
        case 3:
          add_pixels<S, kFiltersAreLanes, 3>(x, y, pixels, w, to);
          break;
        default:
          add_pixels<S, kFiltersAreLanes, 4>(x, y, pixels, w, to);
      }
    }
  }
}

template <FilterSlope S, bool kFiltersAreLanes, typename T>
void filter_gradient_item(const FilterGradient<T>& work, int64_t item) {
  const Geometry& g = work.geometry;
  const int64_t taps = g.taps(), channel_chunks = divide_up<int64_t>(g.channels, kPanel);
  const int64_t filter_chunks = divide_up<int64_t>(g.filters, kPanel);
  const int64_t tap = item % taps, group = item / taps / channel_chunks / filter_chunks;
  const int64_t first_channel = item / taps % channel_chunks * kPanel;
  const int64_t first_filter = item / taps / channel_chunks % filter_chunks * kPanel;
  const int64_t channels = smaller(kPanel, g.channels - first_channel);
  const int64_t filters = smaller(kPanel, g.filters - first_filter);
  const int64_t at = ((group * g.filters + first_filter) * g.channels + first_channel) * taps + tap;
  const int64_t num_lanes = kFiltersAreLanes ? filters : channels, num_others = kFiltersAreLanes ? channels : filters;
  const auto place = [&](int64_t other, int64_t lane) {
    return at + ((kFiltersAreLanes ? lane : other) * g.channels + (kFiltersAreLanes ? other : lane)) * taps;
  };

  T weights[kPanel * kPanel] = {}, totals[kPanel * kPanel] = {};
  for (int64_t other = 0; other < num_others; ++other) {
    for (int64_t lane = 0; lane < num_lanes; ++lane) weights[other * kPanel + lane] = work.weight[place(other, lane)];
  }
  PackedPixels<T> grads = {}, sources = {};
  int64_t pixels = 0;
  const auto add_pending = [&] {
    add_block<S, kFiltersAreLanes>(kFiltersAreLanes ? grads : sources, num_lanes, kFiltersAreLanes ? sources : grads,
                                   num_others, pixels, weights, totals);
    pixels = 0;
  };
  const TapPlace place_of_tap(g, tap);
  const int64_t source_pixel = g.groups * g.channels, grad_pixel = g.groups * g.filters;
  const T* grad = work.grad + group * g.filters + first_filter;
  for (int64_t image = 0; image < g.batch; ++image) {
    for (int64_t row = 0; row < g.out_height; ++row) {
      const int64_t source_row = place_of_tap.source_row(g, image, row);
      const T* source =
          work.input + group * g.channels + first_channel + (source_row * g.width + place_of_tap.first) * source_pixel;
      for (int64_t column = 0; column < g.out_width; ++column, grad += grad_pixel) {
        const bool padded = source_row < 0 || column < place_of_tap.begin || column >= place_of_tap.end;
        grads.set(pixels, grad, filters);
        sources.set(pixels, padded ? nullptr : source, channels);
        if (!padded) source += g.stride_w * source_pixel;
        if (++pixels == kBlockSteps) add_pending();
      }
    }
  }
  add_pending();
  for (int64_t other = 0; other < num_others; ++other) {
    for (int64_t lane = 0; lane < num_lanes; ++lane)
      work.grad_weight[place(other, lane)] = totals[other * kPanel + lane];
  }
}

// ------------------------------------------------------------------------------------------------------- depthwise

// Adds pixels to the sums of a panel of channels, of which there are kPanel, or `channels`.
template <FilterSlope S, bool kWhole, typename T>
inline __attribute__((always_inline)) void add_run(Vector<T> (&sum)[kVectors<T>],
                                                   const Vector<T> (&filter)[kVectors<T>], const T* grad,
                                                   int64_t grad_step, const T* source, int64_t source_step,
                                                   int64_t pixels, int64_t channels) {
  const auto load_lanes = [&](const T* from, int v) {
    return kWhole ? load(from + v * kLanes<T>) : load_channels(from, v * kLanes<T>, channels);
  };
  for (int64_t p = 0; p < pixels; ++p, grad += grad_step, source += source_step) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors<T>; ++v) {
      sum[v] = add_slope<S, T>(sum[v], load_lanes(grad, v), load_lanes(source, v), filter[v]);
    }
  }
}

template <FilterSlope S, bool kWhole, typename T>
void depthwise_filter_gradient_item(const FilterGradient<T>& work, int64_t item) {
  const Geometry& g = work.geometry;
  const int64_t taps = g.taps(), tap = item % taps, first = item / taps * kPanel;
  const int64_t channels = smaller(kPanel, g.groups - first);
  const T zeros[kPanel] = {};
  T results[kPanel] = {};
  for (int64_t i = 0; i < channels; ++i) results[i] = work.weight[(first + i) * taps + tap];
  Vector<T> filter[kVectors<T>], sum[kVectors<T>] = {}, total[kVectors<T>] = {};
  for (int v = 0; v < kVectors<T>; ++v) filter[v] = load(results + v * kLanes<T>);

  int64_t pending = 0;
  const auto add = [&](const T* grad, const T* source, int64_t source_step, int64_t pixels) {
    for (int64_t part; pixels > 0; pixels -= part, grad += part * g.groups, source += part * source_step) {
      part = smaller(pixels, kBlockSteps - pending);
      add_run<S, kWhole, T>(sum, filter, grad, g.groups, source, source_step, part, channels);
      if ((pending += part) < kBlockSteps) continue;
      for (int v = 0; v < kVectors<T>; ++v) {
        total[v] += sum[v];
        sum[v] = Vector<T>{};
      }
      pending = 0;
    }
  };
  const TapPlace place(g, tap);
  const T* grad = work.grad + first;
  for (int64_t image = 0; image < g.batch; ++image) {
    for (int64_t row = 0; row < g.out_height; ++row, grad += g.out_width * g.groups) {
      const int64_t source_row = place.source_row(g, image, row);
      if (source_row < 0) {
        add(grad, zeros, 0, g.out_width);
        continue;
      }
      add(grad, zeros, 0, place.begin);
      add(grad + place.begin * g.groups, work.input + (source_row * g.width + place.first) * g.groups + first,
          g.stride_w * g.groups, place.end - place.begin);
      add(grad + place.end * g.groups, zeros, 0, g.out_width - place.end);
    }
  }
  for (int v = 0; v < kVectors<T>; ++v) store(results + v * kLanes<T>, total[v] + sum[v]);
  for (int64_t i = 0; i < channels; ++i) work.grad_weight[(first + i) * taps + tap] = results[i];
}

template <FilterSlope S, typename T>
void filter_gradient(const FilterGradient<T>& work, int64_t begin, int64_t end) {
  const Geometry& g = work.geometry;
  for (int64_t item = begin; item < end; ++item) {
    if (work.depthwise()) {
      const bool whole = (item / g.taps() + 1) * kPanel <= g.groups;
      whole ? depthwise_filter_gradient_item<S, true>(work, item)
            : depthwise_filter_gradient_item<S, false>(work, item);
    } else if (g.filters > g.channels) {
      filter_gradient_item<S, true>(work, item);
    } else {
      filter_gradient_item<S, false>(work, item);
    }
  }
}

template <typename T>
void filter_gradient(const FilterGradient<T>& work, int64_t begin, int64_t end) {
  switch (work.slope) {
    case FilterSlope::kFull:
      return filter_gradient<FilterSlope::kFull>(work, begin, end);
    case FilterSlope::kSign:
      return filter_gradient<FilterSlope::kSign>(work, begin, end);
    case FilterSlope::kFiniteSign:
      return filter_gradient<FilterSlope::kFiniteSign>(work, begin, end);
  }
}

template <typename T>
bool all_finite(const T* numbers, int64_t count) {
  Mask<T> odd = {};
  const Vector<T> zero = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    const Vector<T> x = load(numbers + i);
    odd |= x - x != zero;
  }
  bool finite = !Simd<T>::any(odd);
  for (; i < count; ++i) finite &= numbers[i] - numbers[i] == T(0);
  return finite;
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
