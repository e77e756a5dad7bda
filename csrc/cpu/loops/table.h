// The loops, written once and compiled once for each instruction set.
//
// The including file defines ADDERZOO_CAPABILITY (a namespace), ADDERZOO_VECTOR_BYTES and ADDERZOO_REGISTERS. It
// includes everything else before it switches the instruction set on, so that no inline function that other files share
// is compiled with instructions that another processor lacks.
#pragma once

#include "byte_panels.h"
#include "filter_gradient.h"
#include "packing.h"
#include "panels.h"
#include "points.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// Items are numbered by rows, then columns, group and panels, so that successive ones share a region.
template <typename T>
void run(const Accumulation<T>& work, int64_t begin, int64_t end, T* scratch) {
  Item<T> item;
  if (divide_scratch(work, item, scratch) > scratch + work.items.scratch_size) __builtin_trap();
  const Items& items = work.items;
  const Outputs<T>& output = work.output;
  const int64_t groups = work.region.shared ? output.groups : 1;
  const int64_t group_channels = work.region.shared ? output.group_channels : output.channels;
  int64_t prepared = -1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t place = i / (groups * items.panel_chunks), rows = place / items.column_chunks;
    item.first_column = place % items.column_chunks * items.columns;
    item.columns = smaller(items.columns, work.lattice.columns - item.first_column);
    item.group = i / items.panel_chunks % groups;
    item.first_channel = item.group * group_channels;
    item.last_channel = item.first_channel + group_channels;
    item.first_panel = item.first_channel / kPanel + i % items.panel_chunks * items.panels;
    item.last_panel = smaller(divide_up<int64_t>(item.last_channel, kPanel), item.first_panel + items.panels);
    if (item.first_panel >= item.last_panel) continue;
    const int64_t region = work.region.shared ? i / items.panel_chunks : i;
    if (region != prepared) {
      prepare_item(work, item, rows * items.rows, smaller(work.lattice.all_rows(), (rows + 1) * items.rows));
      prepared = region;
    }
    run_function(work, item);
  }
}

// Constant initializers: nothing of this instruction set runs while the library is loaded.
template <typename T>
constexpr Loops<T> kLoops = {
    .capability = ADDERZOO_CAPABILITY_NAME,
    .distance = Simd<T>::kDistance,
    .slope = Simd<T>::kSlope,
    .run = run<T>,
    .pack = pack<T>,
    .sum_filters = sum_filters<T>,
    .filter_gradient = filter_gradient<T>,
    .all_finite = all_finite<T>,
};

}  // namespace

extern const Loops<float> kFloat;
extern const Loops<double> kDouble;
extern const Loops<uint8_t> kBytes;
constexpr Loops<float> kFloat = kLoops<float>;
constexpr Loops<double> kDouble = kLoops<double>;
constexpr Loops<uint8_t> kBytes = {.distance = Bytes::kDistance, .run = run<uint8_t>};

}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
