// Staging: copies the rows of the source that an item reads, with their padding, into its region.
#pragma once

#include "item.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// The channels [first, first + number) of a lane, zeros beyond the last.
inline __attribute__((always_inline)) uint64_t load_lane(const uint8_t* from, int64_t first, int64_t channels) {
  uint64_t lane = 0;
  const int64_t number = smaller(kByteStep, channels - first);
  if (number == kByteStep) {
    std::memcpy(&lane, from + first, kByteStep);
  } else {
    for (int64_t i = 0; i < number; ++i) lane |= uint64_t{from[first + i]} << (8 * i);
  }
  return lane;
}

// Writes the same lane several times.
inline __attribute__((always_inline)) void store_lanes(uint8_t* to, uint64_t lane, int64_t count) {
  constexpr int64_t kLanes = ADDERZOO_VECTOR_BYTES / kByteStep;
  const Bytes::Vector all = Bytes::broadcast(reinterpret_cast<const uint8_t*>(&lane));
  for (; count >= kLanes; count -= kLanes, to += ADDERZOO_VECTOR_BYTES) std::memcpy(to, &all, sizeof(all));
  for (; count > 0; --count, to += kByteStep) std::memcpy(to, &lane, kByteStep);
}

// Each channel's own copy of neighboring pixels, in lanes.
inline void stage_lanes(const Accumulation<uint8_t>& work, const Item<uint8_t>& item, const uint8_t* from,
                        int64_t pixels, uint8_t* to) {
  const int64_t group_channels = work.output.group_channels, channels = work.source.channels;
  const int64_t first = item.first_panel * kPanel, last = smaller(work.output.channels, item.last_panel * kPanel);
  for (int64_t x = 0; x < pixels; ++x, from += work.source.strides.column) {
    for (int64_t c = 0; c < channels; c += kByteStep, to += work.region.step) {
      const uint8_t* source = from + first / group_channels * channels;
      int64_t lane = first;
      for (int64_t end = (first / group_channels + 1) * group_channels; lane < last; end += group_channels) {
        const int64_t until = smaller(end, last);
        store_lanes(to + (lane - first) * kByteStep, load_lane(source, c, channels), until - lane);
        source += channels;
        lane = until;
      }
    }
  }
}

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
  if constexpr (sizeof(T) == 1) {
    if (!work.region.shared && work.region.lane > 1 && work.source.channels % kByteStep != 0) {
      const uint64_t all = work.region.padding * (~uint64_t{0} / 255);
      const uint64_t last = load_lane(reinterpret_cast<const uint8_t*>(&all), 0, work.source.channels % kByteStep);
      for (int64_t x = 0; x < pixels; ++x, to += work.region.pixel) {
        store_lanes(to + work.region.pixel - work.region.step, last, work.region.step / kByteStep);
      }
      return;
    }
  }
  if (work.region.padding == 0 || !work.region.shared || work.region.pixel == work.source.channels) return;
  for (int64_t x = 0; x < pixels; ++x, to += work.region.pixel) {
    std::memset(to + work.source.channels, 0, (work.region.pixel - work.source.channels) * sizeof(T));
  }
}

// Elements that are written together, where a run of channels sees the same one of the source.
constexpr int64_t kRun = 8;

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
  if constexpr (sizeof(T) == 1) {
    if (work.region.lane > 1) return stage_lanes(work, item, from, pixels, to);
  }
  // Each channel's own copy: (source channel, channel), zeros beyond the last channel.
  const int64_t first = item.first_panel * kPanel, channels = smaller(work.region.step, work.output.channels - first);
  if (work.source.channels == 1 && work.output.group_channels == 1 && s.channel == 1) {
    if (channels == work.region.pixel && channels == s.column) {
      std::memcpy(to, from, pixels * channels * sizeof(T));
      return;
    }
    const int64_t whole = channels / kPanel * kPanel, rest = channels - whole;
    for (int64_t x = 0; x < pixels; ++x, to += work.region.pixel, from += s.column) {
      for (int64_t c = 0; c < whole; c += kPanel) std::memcpy(to + c, from + first + c, kPanel * sizeof(T));
      if (rest > 0) std::memcpy(to + whole, from + first + whole, rest * sizeof(T));
      if (channels < work.region.step) std::memset(to + channels, 0, (work.region.step - channels) * sizeof(T));
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
          const T value = channel[places[i]];
          // What is written beyond a run's end, the next one or the zeros overwrite.
          for (; l + kRun <= work.region.step && l < ends[i]; l += kRun) {
            for (int64_t j = 0; j < kRun; ++j) to[l + j] = value;
          }
          for (; l < ends[i]; ++l) to[l] = value;
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

// Lays the channels of each point's taps in a row side by side, with zeros beyond the last.
inline void join_taps(const Accumulation<uint8_t>& work, int64_t columns, const uint8_t* row, uint8_t* to) {
  const int64_t point = work.lattice.step_w * work.source.channels, lanes = work.region.tap_steps;
  const int64_t beyond = lanes * kByteStep - work.lattice.num_tap_columns * work.source.channels;
  const uint64_t mask = ~uint64_t{0} >> (8 * beyond);
  for (int64_t x = 0; x < columns; ++x, row += point) {
    for (int64_t i = 0; i < lanes; ++i, to += kByteStep) {
      uint64_t lane = load_as<uint64_t>(row + i * kByteStep);
      if (i == lanes - 1) lane &= mask;
      std::memcpy(to, &lane, kByteStep);
    }
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
