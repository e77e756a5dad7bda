// An item while it is done: its points, and its scratch memory.
#pragma once

#include "tile_shapes.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// Sums of bytes are integers.
template <typename T>
struct TotalOf {
  using Type = T;
};
template <>
struct TotalOf<uint8_t> {
  using Type = int32_t;
};
template <typename T>
using Total = typename TotalOf<T>::Type;

// The points of an item, and its scratch memory.
template <typename T>
struct Item {
  int64_t points;
  int64_t first_column, columns;  // of each row
  int64_t group, first_panel, last_panel;
  int64_t first_channel, last_channel;  // of the group
  const T* region;
  int64_t *offsets, *output_offsets, *input_offsets;
  T *region_copy, *row_sums, *pixel_sums;
  T* separate_taps;  // a row before its taps are joined
  T *sums, *limits;  // of the sources of each point
  Total<T>* totals;
  T* inputs;
  const char* ahead;  // where the source of the next item begins that this one does not read
  int64_t ahead_bytes;
  mutable bool begin_exactly = false;  // since the fast form held for nothing that was done last
};

// Gives an item its arrays, of as many points as the largest has, and returns where they end.
template <typename T>
T* divide_scratch(const Accumulation<T>& work, Item<T>& item, T* scratch) {
  constexpr int64_t kPanels = sizeof(T) > 1 || kMaxPanels<T> > kPanelsOfOwnBytes ? kMaxPanels<T> : kPanelsOfOwnBytes;
  static_assert(kPanels <= kMostPanelsOfTile);
  const Items& items = work.items;
  // Numbers of eight bytes first.
  item.offsets = reinterpret_cast<int64_t*>(scratch);
  item.output_offsets = item.offsets + items.max_points;
  item.input_offsets = item.output_offsets + items.max_points;
  item.totals = reinterpret_cast<Total<T>*>(item.input_offsets + items.max_points);
  item.inputs = reinterpret_cast<T*>(item.totals + items.max_points * kPanels * kPanel);
  item.sums = item.inputs + (work.output.input == nullptr ? 0 : items.max_points * kPanels * kPanel);
  item.limits = item.sums + items.max_points;
  item.region_copy = item.limits + items.max_points;
  item.region = work.region.staged ? item.region_copy : work.source.data;
  const int64_t region_row = work.region.staged ? work.region.row : 0;
  item.row_sums = item.region_copy + items.max_region_rows * region_row;
  item.pixel_sums = item.row_sums + 2 * items.max_region_rows * items.columns;
  item.separate_taps = item.pixel_sums + 2 * work.lattice.span_w(items.columns);
  return item.separate_taps + (work.region.joined ? work.region.width * work.region.pixel + kByteStep : 0);
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
