// All tiles of an item: for some panels of channels at a time, all blocks of steps, all points.
#pragma once

#include "outputs.h"
#include "tile_points_x_vectors.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// The lanes of a tile that are the item's own.
template <int kVecs, typename T>
struct OwnLanes {
  Mask<T> lanes[kVecs];

  OwnLanes(const Item<T>& item, int64_t first_channel) {
    for (int v = 0; v < kVecs; ++v) {
      for (int i = 0; i < kLanes<T>; ++i) {
        const int64_t channel = first_channel + v * kLanes<T> + i;
        lanes[v][i] = channel >= item.first_channel && channel < item.last_channel ? -1 : 0;
      }
    }
  }
  bool all_of(const Mask<T>* marks, int points) const {
    Mask<T> unmarked = {};
    for (int p = 0; p < points; ++p) {
      for (int v = 0; v < kVecs; ++v) unmarked |= lanes[v] & ~marks[p * kVecs + v];
    }
    return !Simd<T>::any(unmarked);
  }
};

// Takes the exact form's results where the fast form does not hold, and marks them. The others stay as they are: else
// they would depend on the tile that they happen to lie in, and so on the number of threads.
template <Function F, bool kShared, bool kAffine, int kVecs, typename T>
__attribute__((noinline)) void redo(const Accumulation<T>& work, const Item<T>& item, const Tile<T>& tile,
                                    int64_t point, int points, int64_t first_channel, Mask<T>* marks) {
  constexpr int64_t width = kVecs * kLanes<T>;
  const bool direct = writes_output(work, item, first_channel, width);
  const auto results = [&](int p) {
    return direct ? work.output.data + item.output_offsets[point + p] + first_channel
                  : item.totals + (point + p) * width;
  };
  T fast[points_of_tile(F, kVecs) * width];
  for (int p = 0; p < points; ++p) std::memcpy(fast + p * width, results(p), width * sizeof(T));
  add_blocks<exact(F), kShared, kVecs>(work, tile, 0, work.region.num_blocks, points);
  finish<exact(F), kAffine, kVecs>(work, item, point, points, first_channel, marks);
  for (int p = 0; p < points; ++p) {
    for (int v = 0; v < kVecs; ++v) {
      const int64_t lane = v * kLanes<T>;
      store(results(p) + lane, marks[p * kVecs + v] ? load(results(p) + lane) : load(fast + p * width + lane));
    }
  }
}

// All points of an item, for kPanels panels from `panel` on. Calls finish_tile(tile, point, points) for each tile.
template <Function F, bool kShared, int kPanels, typename T, typename FinishTile>
void run_tiles(const Accumulation<T>& work, const Item<T>& item, int64_t panel, const FinishTile& finish_tile) {
  constexpr int kVecs = kPanels * kVectors<T>;
  constexpr int64_t width = kPanels * kPanel;
  constexpr int kMost = points_of_tile(F, kVecs);
  const int64_t panel_size = work.filters.steps * kPanel;
  const int64_t tiles = divide_up<int64_t>(item.points, kMost);
  // Tiles of equal size, or nearly so: a small one at the end would not fill the pipelines.
  const int64_t least = item.points / tiles, larger = item.points % tiles;
  const int64_t steps = work.lattice.taps() * work.source.channels;
  const int64_t ahead_step = panel == item.first_panel ? item.ahead_bytes / (tiles * steps + 1) : 0;
  const int64_t blocks = takes_all_blocks(F, kVecs) ? work.region.num_blocks : 1;
  for (int64_t block = 0; block < work.region.num_blocks; block += blocks) {
    int64_t point = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int points = static_cast<int>(least + (t < larger));
      const int64_t tile_steps = smaller(kBlockSteps * blocks, steps - block * kBlockSteps);
      const Tile<T> tile{
          .source = item.region + (kShared ? 0 : (panel - item.first_panel) * kPanel),
          .offsets = item.offsets + point,
          .filters = work.filters.packed + panel * panel_size,
          .panel_size = panel_size,
          .inputs = item.inputs + point * width,
          .totals = item.totals + point * width,
          .ahead = item.ahead + (block * kBlockSteps * tiles + t * tile_steps) * ahead_step,
          .ahead_step = ahead_step,
      };
      add_blocks<F, kShared, kVecs>(work, tile, block, block + blocks, points);
      if (block + blocks == work.region.num_blocks) finish_tile(tile, point, points);
      point += points;
    }
  }
}

// The same in the fast form, and in the exact one where that does not hold; or in the exact one at once, which only
// costs time where it turns out that the fast one would have held.
template <Function F, bool kShared, bool kAffine, int kPanels, typename T>
void run_guarded(const Accumulation<T>& work, const Item<T>& item, int64_t panel) {
  constexpr int kVecs = kPanels * kVectors<T>;
  const int64_t first_channel = panel * kPanel;
  const OwnLanes<kVecs, T> own(item, first_channel);
  Mask<T> marks[points_of_tile(F, kVecs) * kVecs];
  bool all_exact = item.begin_exactly;
  if (all_exact) {
    run_tiles<exact(F), kShared, kPanels>(work, item, panel, [&](const Tile<T>&, int64_t point, int points) {
      finish<exact(F), kAffine, kVecs>(work, item, point, points, first_channel, marks);
      all_exact = all_exact && own.all_of(marks, points);
    });
    if (all_exact) return;
  }
  all_exact = true;
  run_tiles<F, kShared, kPanels>(work, item, panel, [&](const Tile<T>& tile, int64_t point, int points) {
    const bool holds = finish<F, kAffine, kVecs>(work, item, point, points, first_channel);
    if (!holds) redo<F, kShared, kAffine, kVecs>(work, item, tile, point, points, first_channel, marks);
    all_exact = all_exact && !holds && own.all_of(marks, points);
  });
  item.begin_exactly = all_exact;
}

template <Function F, bool kShared, bool kAffine, int kPanels, typename T>
void run_panels(const Accumulation<T>& work, const Item<T>& item, int64_t panel) {
  constexpr int kVecs = kPanels * kVectors<T>;
  const int64_t first_channel = panel * kPanel, width = kPanels * kPanel;
  if constexpr (has_input(F)) load_inputs(work, item, first_channel, width);
  if constexpr (exact(F) != F) {
    run_guarded<F, kShared, kAffine, kPanels>(work, item, panel);
  } else {
    run_tiles<F, kShared, kPanels>(work, item, panel, [&](const Tile<T>&, int64_t point, int points) {
      finish<F, kAffine, kVecs>(work, item, point, points, first_channel);
    });
  }
  store_totals(work, item, first_channel, width);
}

template <Function F, bool kShared, bool kAffine, typename T>
void run_item(const Accumulation<T>& work, const Item<T>& item) {
  for (int64_t panel = item.first_panel; panel < item.last_panel;) {
    const int64_t left = item.last_panel - panel;
    if (kMaxPanels<T> >= 4 && left >= 4) {
      run_panels<F, kShared, kAffine, kMaxPanels<T> >= 4 ? 4 : 1>(work, item, panel);
      panel += 4;
    } else if (kMaxPanels<T> >= 2 && left >= 2) {
      run_panels<F, kShared, kAffine, kMaxPanels<T> >= 2 ? 2 : 1>(work, item, panel);
      panel += 2;
    } else {
      run_panels<F, kShared, kAffine, 1>(work, item, panel);
      panel += 1;
    }
  }
}

// The sources of unshared layers are loaded as vectors: there the sum of a point's sources, which the maximum needs, is
// one of each channel, and would cost as much as it saves.
template <Function F, bool kAffine, typename T>
void run_shared(const Accumulation<T>& work, const Item<T>& item) {
  constexpr Function kUnshared = sums_maxima(F) ? Function::kDistance : F;
  work.region.shared ? run_item<F, true, kAffine>(work, item) : run_item<kUnshared, false, kAffine>(work, item);
}

template <typename T>
void run_function(const Accumulation<T>& work, const Item<T>& item) {
  const bool affine = work.output.epilogue.scale != nullptr;
  switch (work.function) {
    case Function::kDoubleDistance:  // of bytes alone
    case Function::kDistance:
      affine ? run_shared<Function::kDistance, true>(work, item) : run_shared<Function::kDistance, false>(work, item);
      break;
    case Function::kMaxDistance:
      affine ? run_shared<Function::kMaxDistance, true>(work, item)
             : run_shared<Function::kMaxDistance, false>(work, item);
      break;
    case Function::kMaxFmaDistance: {
      // No loops are made for what their instruction set is not asked for.
      constexpr Function f =
          Simd<T>::kDistance == Function::kMaxFmaDistance ? Function::kMaxFmaDistance : Function::kMaxDistance;
      affine ? run_shared<f, true>(work, item) : run_shared<f, false>(work, item);
      break;
    }
    case Function::kClippedSlope:
      run_shared<Function::kClippedSlope, false>(work, item);
      break;
    case Function::kFmaClippedSlope:
      run_shared<Simd<T>::kSlope, false>(work, item);
      break;
    case Function::kExactClippedSlope:
      run_shared<Function::kExactClippedSlope, false>(work, item);
      break;
    case Function::kSignSlope:
      run_shared<Function::kSignSlope, false>(work, item);
      break;
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
