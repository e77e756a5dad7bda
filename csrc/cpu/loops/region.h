// Staging: copies the rows of the source that an item reads, with their padding, into its region.
#pragma once

#include "item.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// Writes padded pixels into the region. Bytes beyond the last channel are zero, as in the filters. Where the source is
// a gradient, padding is not zero but nothing: zeros with a minus sign, which the gradient's own have not
// (`stage_row`).
template <typename T>
void pad(const Accumulation<T>& work, T* to, int64_t pixels) {
  if (work.output.input != nullptr) {
    for (int64_t i = 0; i < pixels * work.region.pixel; ++i) to[i] = -T(0);
    return;
  }
  std::memset(to, work.region.padding, pixels * work.region.pixel * sizeof(T));
  if (work.region.padding == 0 || !work.region.shared || work.region.pixel == work.source.channels) return;
  for (int64_t x = 0; x < pixels; ++x, to += work.region.pixel) {
    std::memset(to + work.source.channels, 0, (work.region.pixel - work.source.channels) * sizeof(T));
  }
}

// Copies neighboring pixels of the source into the region.
template <typename T>
void stage_pixels(const Accumulation<T>& work, const Item<T>& item, const T* from, int64_t pixels, T* to) {
  const Strides& s = work.source.strides;
  if (work.region.shared) {
    from += item.group * work.source.channels * s.channel;
    if (s.channel == 1) {
      // Not where pixels of a group, filled up with zeros, are as long as those of all groups.
      if (s.column == work.region.pixel && work.source.channels == work.region.pixel) {
        std::memcpy(to, from, pixels * work.region.pixel * sizeof(T));
      } else {
        const int64_t beyond = work.region.pixel - work.source.channels;
        for (int64_t x = 0; x < pixels; ++x, to += work.region.pixel) {
          std::memcpy(to, from + x * s.column, work.source.channels * sizeof(T));
          if (beyond > 0) std::memset(to + work.source.channels, 0, beyond * sizeof(T));
        }
      }
      return;
    }
    transpose(from, s.channel, work.source.channels, pixels, [&](int64_t x) { return to + x * work.region.pixel; });
    return;
  }
  // Each channel's own copy: (source channel, channel), zeros beyond the last channel.
  const int64_t first = item.first_panel * kPanel, channels = smaller(work.region.step, work.output.channels - first);
  if (work.source.channels == 1 && work.output.group_channels == 1 && s.channel == 1) {
    for (int64_t x = 0; x < pixels; ++x, to += work.region.pixel, from += s.column) {
      int64_t l = 0;
      for (; l + kLanes<T> <= channels; l += kLanes<T>) store(to + l, load(from + first + l));
      for (; l < channels; ++l) to[l] = from[first + l];
      for (; l < work.region.step; ++l) to[l] = T(0);
    }
    return;
  }
  // The channels of a group, one run of them after the other, all take the same one of the source.
  int64_t places[kMaxOwnChannels], ends[kMaxOwnChannels], runs = 0;
  for (int64_t l = 0; l < channels; l = ends[runs++]) {
    const int64_t group = (first + l) / work.output.group_channels;
    places[runs] = group * work.source.channels * s.channel;
    ends[runs] = smaller(channels, (group + 1) * work.output.group_channels - first);
  }
  for (int64_t x = 0; x < pixels; ++x, from += s.column) {
    for (int64_t c = 0; c < work.source.channels; ++c, to += work.region.step) {
      const T* const channel = from + c * s.channel;
      if (runs == channels) {
        for (int64_t l = 0; l < channels; ++l) to[l] = channel[places[l]];
      } else {
        for (int64_t i = 0, l = 0; i < runs; l = ends[i++]) {
          const Vector<T> values = Vector<T>{} + channel[places[i]];
          // The last vector may reach into the next run, which is written after it.
          for (; l < ends[i] && l + kLanes<T> <= work.region.step; l += kLanes<T>) store(to + l, values);
          for (; l < ends[i]; ++l) to[l] = values[0];
        }
      }
      for (int64_t l = channels; l < work.region.step; ++l) to[l] = T(0);
    }
  }
}

// Copies a row of the source, with its padding, into the region. `row` and `column` may lie outside.
template <typename T>
void stage_row(const Accumulation<T>& work, const Item<T>& item, int64_t image, int64_t row, int64_t column, T* to) {
  if (row < 0 || row >= work.source.height) {
    pad(work, to, work.region.width);
    return;
  }
  const Strides& s = work.source.strides;
  const int64_t left = column < 0 ? smaller(-column, work.region.width) : 0;
  int64_t right = smaller(work.region.width, work.source.width - column);
  right = right < left ? left : right;
  pad(work, to, left);
  pad(work, to + right * work.region.pixel, work.region.width - right);
  if (left == right) return;
  to += left * work.region.pixel;
  const int64_t pixels = right - left;
  stage_pixels(work, item, work.source.data + image * s.image + row * s.row + (column + left) * s.column, pixels, to);
  if (work.output.input == nullptr) return;
  for (int64_t i = 0; i < pixels * work.region.pixel; ++i) to[i] += T(0);  // which takes the sign off a zero
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
