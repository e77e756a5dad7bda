// Turns a call of an operator into items for the loops. Knows neither PyTorch nor instruction sets.
#pragma once

#include <algorithm>
#include <vector>

#include "adder2d_loops.h"

namespace adderzoo::cpu {

// Where a tensor (N, C, H, W) lies.
template <typename T>
struct View {
  T* data;
  Strides strides;
};

// An accumulation and what it points to. It stays where it is made.
template <typename T>
struct Plan {
  Accumulation<T> work{};
  std::vector<int64_t> tap_rows, tap_columns, blocks;
  std::vector<Piece> pieces;
  std::vector<uint8_t> filters;  // of bytes, where they are not read as they are packed

  Plan() = default;
  Plan(const Plan&) = delete;
};

FilterShape forward_filters(const Geometry&);
FilterShape backward_filters(const Geometry&);

// Plans -sum |x - w| with filters that are packed by `forward_filters`. `work.function` has to be set, and so have
// filters, filter_sums and epilogue; for bytes, whose sums have no minus sign, filters, padding and epilogue. Bytes are
// channels last.
template <typename T>
void plan_forward(Plan<T>& plan, const Geometry& geometry, View<const T> input, View<T> output, int64_t threads);

// Plans the input gradient at the input pixels whose coordinates leave the remainders (y, x) modulo the stride: they
// are reached by the same taps. Filters are packed by `backward_filters`.
template <typename T>
void plan_backward(Plan<T>& plan, const Geometry& geometry, int64_t y, int64_t x, View<const T> grad,
                   View<const T> input, View<T> grad_input, int64_t threads);

// Rows of the region of so many successive rows of points, at most.
template <typename T>
int64_t region_rows(const Accumulation<T>& work, int64_t rows) {
  if (work.lattice.num_tap_rows == 0) return 0;
  // Every image that the rows touch has rows of its own.
  const int64_t reach = work.lattice.reach_h();
  const int64_t images = std::min(work.lattice.batch, (rows + work.lattice.rows - 2) / work.lattice.rows + 1);
  return (rows - 1) * work.lattice.step_h + reach + (images - 1) * std::max<int64_t>(0, reach - work.lattice.step_h);
}

// What `Accumulation` says of itself, which both of them check of what they have planned: a mistake in a plan ends in
// an error, not in memory of others.
//
// Throws std::logic_error, which names the condition that does not hold.
template <typename T>
void check_plan(const Plan<T>& plan);

}  // namespace adderzoo::cpu
