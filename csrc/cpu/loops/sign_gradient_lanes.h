// The sign gradient of filters (eq. 4), many filters or many channels side by side.
#pragma once

#include "vectors.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// Filters or channels that are taken side by side.
constexpr int64_t kGradientLanes = 128;

// Of one tap of one channel and all filters, or of one filter and all channels, which are the lanes.
template <typename T, bool kFiltersAreLanes>
void sign_gradient_lanes(const FilterSignGradient<T>& work, int64_t begin, int64_t end) {
  const Geometry& s = work.geometry;
  const int64_t taps = s.taps(), others = kFiltersAreLanes ? s.channels : s.filters;
  const int64_t input_pixel = s.groups * s.channels, grad_pixel = s.groups * s.filters;
  const int64_t lane_stride = kFiltersAreLanes ? s.channels * taps : taps;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tap = item % taps, other = item / taps % others, group = item / taps / others;
    const int64_t offset_h = tap / s.kernel_w * s.dilation_h - s.padding_h;
    const int64_t offset_w = tap % s.kernel_w * s.dilation_w - s.padding_w;
    for (int64_t first = 0; first < work.lanes(); first += kGradientLanes) {
      const int64_t lanes = smaller(kGradientLanes, work.lanes() - first);
      const int64_t filter0 = group * s.filters + (kFiltersAreLanes ? first : other);
      const int64_t channel0 = kFiltersAreLanes ? other : first;
      const int64_t at = (filter0 * s.channels + channel0) * taps + tap;
      const T zeros[kGradientLanes] = {};
      T filter[kGradientLanes], sum[kGradientLanes] = {}, total[kGradientLanes] = {};
      for (int64_t i = 0; i < lanes; ++i) filter[i] = work.weight[at + i * lane_stride];

      const T* grad = work.grad + filter0;
      int64_t pending = 0;
      for (int64_t image = 0; image < s.batch; ++image) {
        for (int64_t row = 0; row < s.out_height; ++row) {
          const int64_t y = row * s.stride_h + offset_h;
          for (int64_t column = 0; column < s.out_width; ++column, grad += grad_pixel) {
            const int64_t x = column * s.stride_w + offset_w;
            const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
            const int64_t pixel = (image * s.height + y) * s.width + x;
            const T* source = inside ? work.input + pixel * input_pixel + group * s.channels + channel0 : zeros;
            for (int64_t i = 0; i < lanes; ++i) {
              sum[i] += grad[kFiltersAreLanes ? i : 0] * sign_of(source[kFiltersAreLanes ? 0 : i] - filter[i]);
            }
            if (++pending == kBlockSteps) {
              for (int64_t i = 0; i < lanes; ++i) {
                total[i] += sum[i];
                sum[i] = T(0);
              }
              pending = 0;
            }
          }
        }
      }
      for (int64_t i = 0; i < lanes; ++i) work.grad_weight[at + i * lane_stride] = total[i] + sum[i];
    }
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
