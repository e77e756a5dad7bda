// What `Accumulation` and its parts say of themselves.
#include <algorithm>
#include <stdexcept>

#include "adder2d_plan.h"

namespace adderzoo::cpu {
namespace {

#define ADDERZOO_REQUIRE(condition) \
  if (!(condition)) throw std::logic_error("adder2d: a plan for the CPU must have " #condition)

void check_lattice(const Lattice& lattice) {
  ADDERZOO_REQUIRE(lattice.batch >= 0 && lattice.rows >= 0 && lattice.columns >= 0);
  ADDERZOO_REQUIRE(lattice.step_h >= 1 && lattice.step_w >= 1);
  ADDERZOO_REQUIRE((lattice.num_tap_rows == 0) == (lattice.num_tap_columns == 0));
  ADDERZOO_REQUIRE(std::is_sorted(lattice.tap_rows, lattice.tap_rows + lattice.num_tap_rows));
  ADDERZOO_REQUIRE(std::is_sorted(lattice.tap_columns, lattice.tap_columns + lattice.num_tap_columns));
}

template <typename T>
void check_region(const Accumulation<T>& work) {
  const Lattice& lattice = work.lattice;
  const Source<T>& source = work.source;
  const Region& region = work.region;
  ADDERZOO_REQUIRE(source.channels >= 1 && region.lane >= 1 && region.step >= 1);
  ADDERZOO_REQUIRE(region.shared == shares_source(work.output.groups, work.output.group_channels));
  const int64_t joined = region.joined ? lattice.num_tap_columns : 1;
  ADDERZOO_REQUIRE(region.tap_steps == divide_up(joined * source.channels, region.lane));
  ADDERZOO_REQUIRE(!region.joined || (sizeof(T) == 1 && region.shared && region.staged && lattice.reach_w() == joined));
  const int64_t tap = region.tap_steps * region.step;
  ADDERZOO_REQUIRE(region.row == (region.joined ? work.items.columns * tap : region.width * region.pixel));
  ADDERZOO_REQUIRE(region.point == (region.joined ? tap : lattice.step_w * region.pixel));
  ADDERZOO_REQUIRE(region.lane == (sizeof(T) == 1 && (region.shared || source.channels > 1) ? kByteStep : 1));
  if (region.staged) {
    ADDERZOO_REQUIRE(region.pixel == (region.joined ? source.channels : tap));
    ADDERZOO_REQUIRE(lattice.taps() == 0 || region.width == lattice.span_w(work.items.columns));
    return;
  }
  ADDERZOO_REQUIRE(source.strides.channel == 1);
  ADDERZOO_REQUIRE(region.shared || (sizeof(T) == 1 && source.channels == 1 && work.output.group_channels == 1 &&
                                     work.output.channels % kPanel == 0));
  ADDERZOO_REQUIRE(region.pixel == source.strides.column && region.width == source.width);
  if (lattice.taps() == 0) return;
  const int64_t top = lattice.tap_rows[0], left = lattice.tap_columns[0];
  ADDERZOO_REQUIRE(top >= 0 && top + lattice.reach_h() + (lattice.rows - 1) * lattice.step_h <= source.height);
  ADDERZOO_REQUIRE(left >= 0 && left + lattice.reach_w() + (lattice.columns - 1) * lattice.step_w <= source.width);
}

template <typename T>
void check_blocks(const Accumulation<T>& work, int64_t num_pieces) {
  const Lattice& lattice = work.lattice;
  const Region& region = work.region;
  ADDERZOO_REQUIRE(region.num_blocks >= 1 && region.blocks[0] == 0 && region.blocks[region.num_blocks] == num_pieces);
  // Behind the last tap of the point whose first tap is the region's first pixel.
  const int64_t tap_row = region.joined ? region.point : lattice.reach_w() * region.pixel;
  const int64_t end = lattice.taps() == 0 ? 0 : (lattice.reach_h() - 1) * region.row + tap_row;
  int64_t steps = 0;
  for (int64_t block = 0; block < region.num_blocks; ++block) {
    const int64_t before = steps;
    for (int64_t i = region.blocks[block]; i < region.blocks[block + 1]; ++i) {
      const Piece& piece = region.pieces[i];
      ADDERZOO_REQUIRE(piece.length >= 1 && piece.step >= 0 && piece.step + piece.length <= work.filters.steps);
      ADDERZOO_REQUIRE(piece.source >= 0 && piece.source + piece.length * region.step <= end);
      steps += piece.length;
    }
    const bool last = block == region.num_blocks - 1;
    ADDERZOO_REQUIRE(last ? steps - before <= kBlockSteps : steps - before == kBlockSteps);
  }
  ADDERZOO_REQUIRE(steps == work.steps());
}

template <typename T>
void check_epilogue(const Accumulation<T>& work) {
  const Epilogue<T>& epilogue = work.output.epilogue;
  ADDERZOO_REQUIRE((epilogue.scale == nullptr) == (epilogue.shift == nullptr));
  ADDERZOO_REQUIRE(epilogue.scale != nullptr || (epilogue.addend == nullptr && !epilogue.relu));
  ADDERZOO_REQUIRE(epilogue.scale == nullptr || !has_input(work.function));
}

template <>
void check_epilogue(const Accumulation<uint8_t>& work) {
  const Epilogue<uint8_t>& epilogue = work.output.epilogue;
  ADDERZOO_REQUIRE(work.function == Function::kDistance || work.function == Function::kDoubleDistance);
  ADDERZOO_REQUIRE(epilogue.scale != nullptr && epilogue.shift != nullptr);
  ADDERZOO_REQUIRE(epilogue.byte_addend == nullptr || epilogue.float_addend == nullptr);
  ADDERZOO_REQUIRE(epilogue.float_output != nullptr || epilogue.lowest <= epilogue.highest);
  ADDERZOO_REQUIRE(work.output.strides.channel == 1);
}

// Filters and output, of which there is none where there are no points.
template <typename T>
void check_operands(const Accumulation<T>& work) {
  const FilterPanels<T>& filters = work.filters;
  const Outputs<T>& output = work.output;
  ADDERZOO_REQUIRE(work.source.data != nullptr && filters.packed != nullptr);
  if (sums_maxima(work.function)) ADDERZOO_REQUIRE(filters.sums != nullptr && filters.limits != nullptr);
  ADDERZOO_REQUIRE(output.channels == output.groups * output.group_channels);
  ADDERZOO_REQUIRE((output.input != nullptr) == has_input(work.function));
  check_epilogue(work);
}

template <typename T>
void check_items(const Accumulation<T>& work) {
  const Items& items = work.items;
  const int64_t groups = work.region.shared ? work.output.groups : 1;
  ADDERZOO_REQUIRE(items.rows >= 1 && items.panels >= 1 && items.panel_chunks >= 1);
  ADDERZOO_REQUIRE(items.columns >= 1 && divide_up(work.lattice.columns, items.columns) == items.column_chunks);
  ADDERZOO_REQUIRE(items.count ==
                   divide_up(work.lattice.all_rows(), items.rows) * items.column_chunks * groups * items.panel_chunks);
  // Of each group, wherever in a panel it begins.
  const int64_t channels = work.output.channels / groups, begin = groups > 1 ? channels % kPanel : 0;
  ADDERZOO_REQUIRE(items.panels * items.panel_chunks * kPanel >= channels);
  ADDERZOO_REQUIRE(begin == 0 || items.panels * items.panel_chunks >= channels / kPanel + 2);
  ADDERZOO_REQUIRE(
      work.region.shared ||
      (items.panels * kPanel <= kMaxOwnChannels &&
       work.region.step == (work.region.staged ? items.panels * kPanel * work.region.lane : work.region.pixel)));
  ADDERZOO_REQUIRE(items.max_points >= items.rows * items.columns && items.max_points % kPanel == 0);
  ADDERZOO_REQUIRE(items.max_region_rows >= region_rows(work, items.rows));
  ADDERZOO_REQUIRE(items.steps >= 1 && items.scratch_size >= 1);
}

#undef ADDERZOO_REQUIRE

}  // namespace

template <typename T>
void check_plan(const Plan<T>& plan) {
  check_lattice(plan.work.lattice);
  if (plan.work.items.count == 0) return;
  check_operands(plan.work);
  check_region(plan.work);
  check_blocks(plan.work, static_cast<int64_t>(plan.pieces.size()));
  check_items(plan.work);
}

template void check_plan<float>(const Plan<float>&);
template void check_plan<double>(const Plan<double>&);
template void check_plan<uint8_t>(const Plan<uint8_t>&);

}  // namespace adderzoo::cpu
