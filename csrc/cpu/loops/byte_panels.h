// All tiles of an item of bytes.
#pragma once

#include "byte_outputs.h"
#include "byte_tile_points_x_lanes.h"
#include "byte_tile_points_x_vectors.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// So many points before they are written, addend and output are fetched into the second cache.
constexpr int64_t kFetchAhead = 96;

// Fetches what the item reads or writes of some points at `place`: all their channels, of which a tile has few.
template <typename T>
void fetch(const Item<uint8_t>& item, int64_t point, int64_t points, const T* place) {
  const int64_t first = item.first_panel * kPanel, last = smaller(item.last_panel * kPanel, item.last_channel);
  for (const int64_t end = smaller(point + points, item.points); point < end; ++point) {
    const T* const channels = place + item.output_offsets[point];
    for (int64_t c = first; c < last; c += 64 / sizeof(T)) __builtin_prefetch(channels + c, 0, 2);
  }
}

// Of a region of bytes: whether it is shared, and if not, whether its lanes have kByteStep bytes or one.
enum class Copies { kShared, kOwnLanes, kOwnBytes };

// All points of an item, for kPanels panels from `panel` on.
template <Function F, Copies kCopies, int kPanels, typename Addend, typename Output>
void run_byte_panels(const Accumulation<uint8_t>& work, const Item<uint8_t>& item, int64_t panel, const Addend* addend,
                     Output* output) {
  constexpr bool kShared = kCopies == Copies::kShared, kBytes = kCopies == Copies::kOwnBytes;
  constexpr int kVecs = kPanels * kVectors<uint8_t>;
  constexpr int64_t kWidth = kPanels * kPanel, kPanelBytes = kPanel * (kBytes ? 1 : kByteStep);
  constexpr int kMost = kBytes ? kPointsOfOwnBytes : points_of_byte_tile(kVecs);
  const int64_t in_item = panel - item.first_panel;
  const uint8_t* source = item.region + (kShared ? 0 : in_item * kPanelBytes);
  const uint8_t* filters = work.filters.packed +
                           (kBytes ? item.first_panel : panel) * work.filters.steps * kPanelBytes +
                           (kBytes ? in_item * kPanelBytes : 0);
  const int64_t tiles = divide_up<int64_t>(item.points, kMost);
  // Tiles of equal size, or nearly so: a small one at the end would not fill the pipelines.
  const int64_t least = item.points / tiles, larger = item.points % tiles;
  for (int64_t block = 0; block < work.region.num_blocks; ++block) {
    const unsigned before = Bytes::keep_denormals<F>();
    int64_t point = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int points = static_cast<int>(least + (t < larger));
      int32_t* totals = item.totals + point * kWidth;
      if (block == 0 && panel == item.first_panel) {
        if constexpr (kHasAddend<Addend>) fetch(item, point + kFetchAhead, points, addend);
        fetch(item, point + kFetchAhead, points, output);
      }
      if constexpr (kBytes) {
        add_own_bytes<kPanels>(work, source, item.offsets + point, filters, block, totals, points);
      } else {
        add_bytes<F, kShared, kVecs>(work, source, item.offsets + point, filters, block, totals, points);
      }
      point += points;
    }
    Bytes::restore<F>(before);
  }
  finish_bytes<kWidth>(work, item, panel * kPanel, addend, output);
}

template <Function F, Copies kCopies, typename Addend, typename Output>
void run_bytes(const Accumulation<uint8_t>& work, const Item<uint8_t>& item, const Addend* addend, Output* output) {
  constexpr int kMost = kCopies == Copies::kOwnBytes ? kPanelsOfOwnBytes : kMaxPanels<uint8_t>;
  int64_t panel = item.first_panel;
  for (; panel + kMost <= item.last_panel; panel += kMost) {
    run_byte_panels<F, kCopies, kMost>(work, item, panel, addend, output);
  }
  for (; panel < item.last_panel; ++panel) run_byte_panels<F, kCopies, 1>(work, item, panel, addend, output);
}

template <Function F, typename Addend, typename Output>
void run_bytes(const Accumulation<uint8_t>& work, const Item<uint8_t>& item, const Addend* addend, Output* output) {
  if (work.region.shared) {
    run_bytes<F, Copies::kShared>(work, item, addend, output);
  } else if (work.region.lane > 1) {
    run_bytes<F, Copies::kOwnLanes>(work, item, addend, output);
  } else {
    run_bytes<Function::kDistance, Copies::kOwnBytes>(work, item, addend, output);
  }
}

template <Function F, typename Output>
void run_bytes(const Accumulation<uint8_t>& work, const Item<uint8_t>& item, Output* output) {
  if (work.output.epilogue.byte_addend != nullptr) {
    run_bytes<F>(work, item, work.output.epilogue.byte_addend, output);
  } else if (work.output.epilogue.float_addend != nullptr) {
    run_bytes<F>(work, item, work.output.epilogue.float_addend, output);
  } else {
    run_bytes<F, NoAddend>(work, item, nullptr, output);
  }
}

template <Function F>
void run_bytes(const Accumulation<uint8_t>& work, const Item<uint8_t>& item) {
  work.output.epilogue.float_output == nullptr ? run_bytes<F>(work, item, work.output.data)
                                               : run_bytes<F>(work, item, work.output.epilogue.float_output);
}

inline void run_function(const Accumulation<uint8_t>& work, const Item<uint8_t>& item) {
  work.function == Bytes::kDistance ? run_bytes<Bytes::kDistance>(work, item)
                                    : run_bytes<Function::kDistance>(work, item);
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
