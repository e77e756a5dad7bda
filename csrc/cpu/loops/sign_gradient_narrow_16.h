// The sign gradient of few filters and few channels (eq. 4): 16 pixels of a row side by side.
#pragma once

#include "vectors.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

constexpr int64_t kPixels = 16;

// Adds the terms of a row of the gradient to the sums; those in [begin, end) have a source pixel. Inlined, so that
// the sums are known to lie nowhere else.
template <typename T>
inline __attribute__((always_inline)) void add_row(T (&sum)[kPixels], const T* grad, int64_t width, const T* source,
                                                   int64_t begin, int64_t end, T filter) {
  const T padded = sign_of(-filter);
  for (int64_t i = 0; i < begin; ++i) sum[i % kPixels] += grad[i] * padded;
  for (int64_t i = end; i < width; ++i) sum[i % kPixels] += grad[i] * padded;
  int64_t i = begin;
  for (; i + kPixels <= end; i += kPixels) {
    for (int64_t j = 0; j < kPixels; ++j) sum[j] += grad[i + j] * sign_of(source[i + j] - filter);
  }
  for (int64_t j = 0; i < end; ++i, ++j) sum[j] += grad[i] * sign_of(source[i] - filter);
}

template <typename T>
void sign_gradient_narrow(const FilterSignGradient<T>& work, int64_t begin, int64_t end) {
  const Geometry& s = work.geometry;
  const int64_t taps = s.taps();
  for (int64_t item = begin; item < end; ++item) {  // an element of the filters, as they lie in memory
    const int64_t tap = item % taps, channel = item / taps % s.channels, filter = item / taps / s.channels;
    const int64_t offset_h = tap / s.kernel_w * s.dilation_h - s.padding_h;
    const int64_t offset_w = tap % s.kernel_w * s.dilation_w - s.padding_w;
    const int64_t left = offset_w < 0 ? smaller(s.out_width, -offset_w) : 0;
    int64_t right = smaller(s.out_width, s.width - offset_w);
    if (right < left) right = left;
    const int64_t source_channel = filter / s.filters * s.channels + channel;
    const T weight = work.weight[item];
    T sum[kPixels] = {}, total[kPixels] = {};
    int64_t pending = 0;
    for (int64_t image = 0; image < s.batch; ++image) {
      for (int64_t row = 0; row < s.out_height; ++row) {
        const T* grad = work.grad + ((image * s.groups * s.filters + filter) * s.out_height + row) * s.out_width;
        const int64_t y = row * s.stride_h + offset_h;
        const bool inside = y >= 0 && y < s.height;
        const int64_t line = (image * s.groups * s.channels + source_channel) * s.height + y;
        const T* source = inside ? work.input + line * s.width + offset_w : nullptr;
        add_row(sum, grad, s.out_width, source, inside ? left : s.out_width, inside ? right : s.out_width, weight);
        pending += s.out_width / kPixels + 3;
        if (pending >= kBlockSteps) {
          for (int64_t j = 0; j < kPixels; ++j) {
            total[j] += sum[j];
            sum[j] = T(0);
          }
          pending = 0;
        }
      }
    }
    T result = 0;
    for (int64_t j = 0; j < kPixels; ++j) result += total[j] + sum[j];
    work.grad_weight[item] = result;
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
