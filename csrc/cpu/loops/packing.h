// Packs filters into panels, and sums them up for the distance from the maximum.
#pragma once

#include "source_sums.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

template <typename T>
void sum_filters(const T* packed, T* sums, T* limits, int64_t steps, int64_t begin, int64_t end) {
  // So many steps at a time that four additions do not wait for one another; and in blocks, as above.
  constexpr int kSteps = kVectors<T> < 4 ? 4 / kVectors<T> : 1, kVecs = kSteps * kVectors<T>;
  constexpr int64_t kFew = 32 * kSteps;
  for (int64_t panel = begin; panel < end; ++panel) {
    Vector<T> total[kVecs] = {}, total_magnitude[kVecs] = {};
    const T* from = packed + panel * steps * kPanel;
    for (int64_t first = 0; first < steps; first += kFew) {
      Vector<T> sum[kVecs] = {};
      const auto add = [&](int v) {
        const Vector<T> w = load(from + v * kLanes<T>);
        sum[v] += w;
        total_magnitude[v] += magnitude<T>(w);
      };
      const int64_t last = smaller(steps, first + kFew);
      int64_t step = first;
      for (; step + kSteps <= last; step += kSteps, from += kSteps * kPanel) {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) add(v);
      }
      for (; step < last; ++step, from += kPanel) {
        for (int v = 0; v < kVectors<T>; ++v) add(v);
      }
      for (int v = 0; v < kVecs; ++v) total[v] += sum[v];
    }
    for (int v = 0; v < kVectors<T>; ++v) {
      for (int other = v + kVectors<T>; other < kVecs; other += kVectors<T>) {
        total[v] += total[other];
        total_magnitude[v] += total_magnitude[other];
      }
      store(sums + panel * kPanel + v * kLanes<T>, total[v]);
      store(limits + panel * kPanel + v * kLanes<T>, limit_of(total_magnitude[v]));
    }
  }
}

template <typename T>
void pack(const T* weight, T* packed, T* sums, T* limits, const FilterShape& s, int64_t begin, int64_t end) {
  const int64_t steps = s.steps();
  for (int64_t panel = begin; panel < end; ++panel) {
    T* to = packed + panel * steps * kPanel;
    const int64_t first = panel * kPanel, lanes = smaller(kPanel, s.channels - first);
    if (lanes < kPanel) std::memset(to, 0, steps * kPanel * sizeof(T));
    // Lanes of one group are equally far apart.
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t channel = first + lane, in_group = channel % s.group_channels;
      const int64_t run = smaller(lanes - lane, s.group_channels - in_group);
      const T* from = weight + channel / s.group_channels * s.group_stride + in_group * s.channel_stride;
      for (int64_t source = 0; source < s.source_channels; ++source, from += s.source_stride) {
        const auto step = [&](int64_t tap) {
          return to + ((s.reverse_taps ? s.taps - 1 - tap : tap) * s.source_channels + source) * kPanel + lane;
        };
        if (s.taps == 1 && s.channel_stride == 1) {
          std::memcpy(step(0), from, run * sizeof(T));
        } else if (s.taps == 1) {
          // Sources are adjacent in the filter and in the panel.
          transpose(from, s.channel_stride, run, s.source_channels, [&](int64_t c) { return to + c * kPanel + lane; });
          break;
        } else {
          transpose(from, s.channel_stride, run, s.taps, step);
        }
      }
      lane += run;
    }
  }
  sum_filters(packed, sums, limits, steps, begin, end);
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
