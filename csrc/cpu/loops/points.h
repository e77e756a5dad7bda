// Finds the points of an item, and brings what they read into its region.
#pragma once

#include "region.h"
#include "source_sums.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// Rows of points of one image, and what they read of it.
struct Stretch {
  int64_t image, first_row, rows;  // of points
  int64_t top, left;               // the source pixel of the first point's first tap, which may lie outside
  int64_t region_rows;             // from `top` on
  int64_t region;                  // where they begin in the region, in elements
  int64_t first_point;             // number in the item
};

// Brings the rows of the source into the region, behind what is there; or finds them, where it is the source.
template <typename T>
void find_region(const Accumulation<T>& work, const Item<T>& item, Stretch& stretch, T*& staged) {
  if (!work.region.staged) {
    const Strides& strides = work.source.strides;
    stretch.region = stretch.image * strides.image + stretch.top * strides.row + stretch.left * strides.column +
                     (work.region.shared ? item.group * work.source.channels : item.first_panel * kPanel);
    return;
  }
  stretch.region = staged - item.region_copy;
  for (int64_t row = 0; row < stretch.region_rows; ++row, staged += work.region.row) {
    if constexpr (sizeof(T) == 1) {
      if (work.region.joined) {
        stage_row(work, item, stretch.image, stretch.top + row, stretch.left, item.separate_taps);
        join_taps(work, item.columns, item.separate_taps, staged);
        continue;
      }
    }
    stage_row(work, item, stretch.image, stretch.top + row, stretch.left, staged);
  }
}

// The sums over each point's taps, for the distance from the maximum: of the region's rows first, since points share
// them.
template <typename T>
void sum_sources(const Accumulation<T>& work, const Item<T>& item, const Stretch& stretch) {
  const Lattice& lattice = work.lattice;
  const int64_t columns = item.columns, first_tap = stretch.region_rows > 0 ? lattice.tap_rows[0] : 0;
  if constexpr (sums_maxima(Simd<T>::kDistance)) {
    const T* pixels = item.region + stretch.region;
    for (int64_t row = 0; row < stretch.region_rows; ++row, pixels += work.region.row) {
      bool needed = false;
      for (int64_t i = 0; i < lattice.num_tap_rows; ++i) {
        needed |= (row - (lattice.tap_rows[i] - first_tap)) % lattice.step_h == 0;
      }
      if (needed) sum_row(work, columns, pixels, item.pixel_sums, item.row_sums + 2 * row * columns);
    }
  }
  for (int64_t y = 0; y < stretch.rows; ++y) {
    T *const sums = item.sums + stretch.first_point + y * columns, *const limits =
                                                                       item.limits + stretch.first_point + y * columns;
    std::memset(sums, 0, columns * sizeof(T));
    std::memset(limits, 0, columns * sizeof(T));
    for (int64_t i = 0; i < lattice.num_tap_rows; ++i) {
      const T* from = item.row_sums + 2 * (y * lattice.step_h + lattice.tap_rows[i] - first_tap) * columns;
      add_tap(sums, limits, from, from + columns, 1, columns);
    }
    for (int64_t x = 0; x < columns; ++x) limits[x] = limit_of(limits[x]);
  }
}

inline void write_offsets(int64_t* to, int64_t first, int64_t step, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = first + i * step;
}

// Where the points lie: in the region, the output and the input.
template <typename T>
void find_points(const Accumulation<T>& work, const Item<T>& item, const Stretch& stretch) {
  const Lattice& lattice = work.lattice;
  const Strides &output = work.output.strides, &input = work.output.input_strides;
  const int64_t step = lattice.step_h * work.region.row;
  int64_t point = stretch.first_point;
  for (int64_t y = 0; y < stretch.rows; ++y, point += item.columns) {
    const int64_t row = stretch.first_row + y;
    write_offsets(item.offsets + point, stretch.region + y * step, work.region.point, item.columns);
    write_offsets(item.output_offsets + point,
                  stretch.image * output.image + row * output.row + item.first_column * output.column, output.column,
                  item.columns);
    if (work.output.input != nullptr) {
      write_offsets(item.input_offsets + point,
                    stretch.image * input.image + row * input.row + item.first_column * input.column, input.column,
                    item.columns);
    }
  }
}

// Where the next item's source begins behind this one's, and how long it is.
template <typename T>
void look_ahead(const Accumulation<T>& work, Item<T>& item, const Stretch& stretch) {
  item.ahead = reinterpret_cast<const char*>(work.source.data);
  item.ahead_bytes = 0;
  if (work.source.strides.channel != 1 || work.items.column_chunks > 1) return;
  const int64_t height = work.source.height;
  const int64_t next = stretch.image * height + smaller(height, stretch.top + stretch.region_rows);
  const int64_t last = smaller(work.lattice.batch * height, next + stretch.rows * work.lattice.step_h);
  item.ahead = reinterpret_cast<const char*>(work.source.data + next * work.source.strides.row);
  item.ahead_bytes = (last - next) * work.source.strides.row * sizeof(T);
}

// Finds the points of rows [begin, end) of all images, of which the item has some columns, and their region.
template <typename T>
void prepare_item(const Accumulation<T>& work, Item<T>& item, int64_t begin, int64_t end) {
  const Lattice& lattice = work.lattice;
  const bool taps = lattice.taps() > 0;
  T* staged = item.region_copy;
  item.points = 0;
  for (int64_t row = begin; row < end;) {
    const int64_t first_row = row % lattice.rows, rows = smaller(end - row, lattice.rows - first_row);
    Stretch stretch{.image = row / lattice.rows,
                    .first_row = first_row,
                    .rows = rows,
                    .top = first_row * lattice.step_h + (taps ? lattice.tap_rows[0] : 0),
                    .left = item.first_column * lattice.step_w + (taps ? lattice.tap_columns[0] : 0),
                    .region_rows = taps ? (rows - 1) * lattice.step_h + lattice.reach_h() : 0,
                    .region = 0,
                    .first_point = item.points};
    find_region(work, item, stretch, staged);
    if (sums_maxima(work.function) && work.region.shared) sum_sources(work, item, stretch);
    find_points(work, item, stretch);
    look_ahead(work, item, stretch);
    item.points += rows * item.columns;
    row += rows;
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
