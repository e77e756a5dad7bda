#include "adder2d_plan.h"

#include <algorithm>

namespace adderzoo::cpu {
namespace {

// Points of an item: enough to use a block of filters many times while it lies in the first cache, few enough for their
// sums to stay in the second.
constexpr int64_t kPoints = 192;
constexpr int64_t kFewPoints = 48;
constexpr int64_t kMostColumns = 2 * kPoints;
constexpr int64_t kRegionBytes = 1 << 18;
constexpr int64_t kManySteps = 1 << 24;

// The pieces: as long as the sources of successive taps join, but no block may have more than kBlockSteps.
template <typename T>
void plan_pieces(Plan<T>& plan, int64_t first_step, int64_t step_h, int64_t step_w) {
  Accumulation<T>& work = plan.work;
  int64_t in_block = 0;
  plan.blocks = {0};
  const auto add = [&](int64_t source, int64_t step, int64_t length) {
    while (length > 0) {
      if (in_block == kBlockSteps) {
        plan.blocks.push_back(static_cast<int64_t>(plan.pieces.size()));
        in_block = 0;
      }
      const int64_t part = std::min(length, kBlockSteps - in_block);
      const bool begins_block = plan.blocks.back() == static_cast<int64_t>(plan.pieces.size());
      if (!begins_block && plan.pieces.back().source + plan.pieces.back().length * work.region.step == source &&
          plan.pieces.back().step + plan.pieces.back().length == step) {
        plan.pieces.back().length += part;
      } else {
        plan.pieces.push_back({source, step, part});
      }
      in_block += part;
      source += part * work.region.step;
      step += part;
      length -= part;
    }
  };
  for (size_t i = 0; i < plan.tap_rows.size(); ++i) {
    for (size_t j = 0; j < (work.region.joined ? 1 : plan.tap_columns.size()); ++j) {
      const int64_t row = plan.tap_rows[i] - plan.tap_rows[0], column = plan.tap_columns[j] - plan.tap_columns[0];
      const int64_t tap_steps = first_step + static_cast<int64_t>(i) * step_h + static_cast<int64_t>(j) * step_w;
      add(row * work.region.row + column * work.region.pixel, tap_steps, work.region.tap_steps);
    }
  }
  plan.blocks.push_back(static_cast<int64_t>(plan.pieces.size()));
  work.region.pieces = plan.pieces.data();
  work.region.blocks = plan.blocks.data();
  work.region.num_blocks = static_cast<int64_t>(plan.blocks.size()) - 1;
}

// Rows of an item: its region and its points fit into a cache, and the items' number is a multiple of the threads,
// where there are enough of them.
template <typename T>
int64_t rows_of_item(const Accumulation<T>& work, int64_t columns_of_items, int64_t threads) {
  const int64_t all_rows = work.lattice.all_rows();
  int64_t rows = std::max<int64_t>(1, std::min(all_rows, kPoints / work.items.columns));
  int64_t few_rows = std::max<int64_t>(1, std::min(rows, kFewPoints / work.items.columns));
  const int64_t row_bytes = work.region.staged ? work.region.row * sizeof(T) : 0;
  while (rows > few_rows && region_rows(work, rows) * row_bytes > kRegionBytes) --rows;
  // Large strides: mostly rows that no tap reads.
  if (region_rows(work, rows) * row_bytes > 64 * kRegionBytes) rows = few_rows = 1;
  const int64_t wanted = divide_up(4 * threads, columns_of_items);
  if (divide_up(all_rows, rows) < wanted) rows = std::max(few_rows, all_rows / wanted);
  int64_t chunks = divide_up(all_rows, rows);
  if (columns_of_items % threads != 0 && chunks > threads) chunks = divide_up(chunks, threads) * threads;
  return divide_up(all_rows, chunks);
}

// What an item takes, in memory and time.
template <typename T>
void measure_items(Accumulation<T>& work) {
  work.items.max_points = round_up(work.items.rows * work.items.columns, kPanel);  // what lies behind is aligned
  work.items.max_region_rows = region_rows(work, work.items.rows);
  // For the choice of a grain, which large ones are beyond.
  work.items.steps =
      std::min(work.items.max_points, kManySteps) * std::min(work.items.panels * work.steps() + kPanel, kManySteps);
  // For what `divide_scratch` makes of it: three numbers of eight bytes, four panels of totals (of bytes, these have
  // four bytes) and of inputs (bytes have none), and two sums for each point; the region; two for each point of its
  // rows; two for each pixel of one; a row whose taps are not joined yet, and of which whole lanes are read.
  constexpr int64_t kNumbers = 3 * sizeof(int64_t) / sizeof(T), kEach = sizeof(T) == 1 ? sizeof(int32_t) : 2;
  work.items.scratch_size =
      work.items.max_points * (kNumbers + kEach * kMostPanelsOfTile * kPanel + 2) +
      (work.region.staged ? work.items.max_region_rows * work.region.row : 0) +
      2 * (work.items.max_region_rows * work.items.columns + work.lattice.span_w(work.items.columns)) +
      (work.region.joined ? work.region.width * work.region.pixel + kByteStep : 0);
}

// Cuts the work into items.
template <typename T>
void plan_items(Accumulation<T>& work, int64_t threads) {
  const int64_t all_rows = work.lattice.all_rows();
  const int64_t groups = work.region.shared ? work.output.groups : 1;
  // A group that begins within a panel may end within one.
  const int64_t panels = !work.region.shared ? divide_up(work.output.channels, kPanel)
                         : groups > 1 && work.output.group_channels % kPanel != 0
                             ? work.output.group_channels / kPanel + 2
                             : divide_up(work.output.group_channels, kPanel);
  // Where every channel has its own copies, few panels of many source channels, for a region to have several rows.
  const int64_t most_panels =
      std::max<int64_t>(1, kMaxOwnChannels / kPanel / (work.region.lane * sizeof(T) > 1 ? 2 : 1) /
                               divide_up(sizeof(T) > 1 ? work.source.channels : 1, 2));
  work.items.panels = work.region.shared ? panels : divide_up(panels, divide_up(panels, most_panels));
  if (!work.region.shared) {
    work.region.step = work.region.staged ? work.items.panels * kPanel * work.region.lane : work.region.pixel;
  }
  const int64_t tap = work.region.tap_steps * work.region.step;
  if (work.region.staged) work.region.pixel = work.region.joined ? work.source.channels : tap;
  work.region.point = work.region.joined ? tap : work.lattice.step_w * work.region.pixel;
  work.region.row = work.region.joined ? work.items.columns * tap : work.region.width * work.region.pixel;
  if (all_rows == 0 || work.lattice.columns == 0) {
    work.items.count = 0;
    return;
  }

  const int64_t columns_of_items = work.items.column_chunks * groups * divide_up(panels, work.items.panels);
  work.items.rows = rows_of_item(work, columns_of_items, threads);
  const int64_t chunks = divide_up(all_rows, work.items.rows) * work.items.column_chunks;

  // Panels, where there are too few rows for all threads.
  if (work.region.shared && chunks * groups < 2 * threads) {
    const int64_t parts = std::min(panels, divide_up(2 * threads, chunks * groups));
    work.items.panels = divide_up(panels, parts);
  }
  work.items.count = chunks * groups * divide_up(panels, work.items.panels);
  work.items.panel_chunks = divide_up(panels, work.items.panels);

  measure_items(work);
}

// Whether the lanes of the taps of a row would be so empty that joining them saves a quarter of the steps.
template <typename T>
bool joins_taps(const Accumulation<T>& work) {
  const Lattice& lattice = work.lattice;
  const int64_t columns = lattice.num_tap_columns, channels = work.source.channels, lane = work.region.lane;
  if (sizeof(T) != 1 || !work.region.shared || columns == 0) return false;
  // Their reach does not tell: taps that are outside at every point may have been brought to the same place.
  for (int64_t j = 0; j < columns; ++j) {
    if (lattice.tap_columns[j] != lattice.tap_columns[0] + j) return false;
  }
  return 4 * divide_up(columns * channels, lane) <= 3 * columns * divide_up(channels, lane);
}

template <typename T>
void plan_source(Plan<T>& plan, const Geometry& g, View<const T> source, int64_t height, int64_t width,
                 int64_t channels) {
  Accumulation<T>& work = plan.work;
  work.source.data = source.data;
  work.source.strides = source.strides;
  work.source.height = height;
  work.source.width = width;
  work.source.channels = channels;
  work.region.shared = shares_source(g.groups, work.output.group_channels);
  work.region.lane = sizeof(T) == 1 && (work.region.shared || channels > 1) ? kByteStep : 1;
  work.region.step = work.region.lane;
  work.region.tap_steps = divide_up(channels, work.region.lane);
  work.output.groups = g.groups;
  work.lattice.tap_rows = plan.tap_rows.data();
  work.lattice.tap_columns = plan.tap_columns.data();
  work.lattice.num_tap_rows = static_cast<int64_t>(plan.tap_rows.size());
  work.lattice.num_tap_columns = static_cast<int64_t>(plan.tap_columns.size());
  const bool taps = work.lattice.taps() > 0;
  if (!taps) {
    plan.tap_rows.clear();
    plan.tap_columns.clear();
    work.lattice.num_tap_rows = work.lattice.num_tap_columns = 0;
  }
  const bool inside = !taps || (plan.tap_rows.front() >= 0 && plan.tap_columns.front() >= 0 &&
                                plan.tap_rows.back() + (work.lattice.rows - 1) * work.lattice.step_h < height &&
                                plan.tap_columns.back() + (work.lattice.columns - 1) * work.lattice.step_w < width);
  // A tap that is outside at every point is so wherever it is outside: near, that a dilation does not make a region of
  // it.
  const auto bring_near = [](std::vector<int64_t>& places, int64_t last_point, int64_t size) {
    for (int64_t& place : places) place = std::clamp(place, -last_point - 1, size);
  };
  bring_near(plan.tap_rows, (work.lattice.rows - 1) * work.lattice.step_h, height);
  bring_near(plan.tap_columns, (work.lattice.columns - 1) * work.lattice.step_w, width);
  work.region.joined = joins_taps(work);
  if (work.region.joined) work.region.tap_steps = divide_up(work.lattice.num_tap_columns * channels, work.region.lane);
  const bool dense = source.strides.channel == 1 && source.strides.column == g.groups * channels &&
                     source.strides.row == width * source.strides.column &&
                     source.strides.image == height * source.strides.row;
  const bool whole = work.region.shared ? channels % work.region.lane == 0
                                        : sizeof(T) == 1 && channels == 1 && work.output.group_channels == 1 &&
                                              work.output.channels % kPanel == 0;
  work.region.staged = !(whole && inside && dense);
  work.region.pixel = source.strides.column;
  // Long rows are cut into parts of equal length, or nearly so.
  work.items.columns =
      divide_up(work.lattice.columns, std::max<int64_t>(1, divide_up(work.lattice.columns, kMostColumns)));
  work.items.column_chunks = work.items.columns == 0 ? 1 : divide_up(work.lattice.columns, work.items.columns);
  work.region.width = work.region.staged ? work.lattice.span_w(work.items.columns) : width;
}

// Filters of bytes as the items read them: with other lanes than those they are packed in, or with taps that are
// joined.
template <int64_t kLane, int64_t kPackedLane>
void arrange_filters(Plan<uint8_t>& plan) {
  const Accumulation<uint8_t>& work = plan.work;
  const int64_t panels = divide_up<int64_t>(work.output.channels, kPanel), channels = work.source.channels;
  const int64_t joined = work.region.joined ? work.lattice.num_tap_columns : 1;
  // Lanes of single bytes lie beside those of the item's other panels.
  const int64_t side_by_side = kLane == 1 ? work.items.panels : 1, step_size = side_by_side * kPanel * kLane;
  plan.filters.assign(divide_up(panels, side_by_side) * work.filters.steps * step_size, 0);
  const uint8_t* packed = work.filters.packed;
  for (int64_t panel = 0; panel < panels; ++panel) {
    uint8_t* tap = plan.filters.data() + panel / side_by_side * work.filters.steps * step_size +
                   panel % side_by_side * kPanel * kLane;
    for (int64_t i = 0; i < work.taps(); ++i, tap += work.region.tap_steps * step_size) {
      for (int64_t j = 0; j < joined; ++j, packed += round_up(channels, kPackedLane) * kPanel) {
        for (int64_t c = 0; c < channels; ++c) {
          const uint8_t* const from = packed + c / kPackedLane * kPanel * kPackedLane + c % kPackedLane;
          const int64_t place = j * channels + c;
          uint8_t* const to = tap + place / kLane * step_size + place % kLane;
          for (int64_t lane = 0; lane < kPanel; ++lane) to[lane * kLane] = from[lane * kPackedLane];
        }
      }
    }
  }
  plan.work.filters.packed = plan.filters.data();
}

// Of a layer whose channels share their source, lanes have kByteStep source channels, else one.
void arrange_filters(Plan<uint8_t>& plan) {
  const Region& region = plan.work.region;
  if (plan.work.items.count == 0) return;
  if (!region.shared) {
    region.lane == 1 ? arrange_filters<1, 1>(plan) : arrange_filters<kByteStep, 1>(plan);
  } else if (region.joined) {
    arrange_filters<kByteStep, kByteStep>(plan);
  }
}

// The places in the gradient of the taps that reach a phase, from that of the point, ascending: from the last tap to
// the first, as the filters are packed.
std::vector<int64_t> places_of(const ReachingTaps& taps) {
  std::vector<int64_t> places;
  for (int64_t tap = taps.count - 1; tap >= 0; --tap) places.push_back(taps.output0 - tap * taps.output_step);
  return places;
}

// The number of the first of them among the packed taps of the axis.
int64_t first_packed(const ReachingTaps& taps, int64_t kernel) {
  return taps.count == 0 ? 0 : kernel - 1 - (taps.first + (taps.count - 1) * taps.period);
}

}  // namespace

FilterShape forward_filters(const Geometry& g) {
  const int64_t filter = g.channels * g.taps();
  return {.channels = g.groups * g.filters,
          .group_channels = g.filters,
          .source_channels = g.channels,
          .taps = g.taps(),
          .group_stride = g.filters * filter,
          .channel_stride = filter,
          .source_stride = g.taps(),
          .reverse_taps = false};
}

// A point's taps lie in the gradient in the reverse order of the filter's.
FilterShape backward_filters(const Geometry& g) {
  const int64_t filter = g.channels * g.taps();
  return {.channels = g.groups * g.channels,
          .group_channels = g.channels,
          .source_channels = g.filters,
          .taps = g.taps(),
          .group_stride = g.filters * filter,
          .channel_stride = g.taps(),
          .source_stride = filter,
          .reverse_taps = true};
}

template <typename T>
void plan_forward(Plan<T>& plan, const Geometry& g, View<const T> input, View<T> output, int64_t threads) {
  Accumulation<T>& work = plan.work;
  work.lattice.batch = g.batch;
  work.lattice.rows = g.out_height;
  work.lattice.columns = g.out_width;
  work.lattice.step_h = g.stride_h;
  work.lattice.step_w = g.stride_w;
  work.output.channels = g.groups * g.filters;
  work.output.group_channels = g.filters;
  for (int64_t i = 0; i < g.kernel_h; ++i) plan.tap_rows.push_back(i * g.dilation_h - g.padding_h);
  for (int64_t j = 0; j < g.kernel_w; ++j) plan.tap_columns.push_back(j * g.dilation_w - g.padding_w);
  plan_source(plan, g, input, g.height, g.width, g.channels);
  work.filters.steps = work.steps();
  work.output.data = output.data;
  work.output.strides = output.strides;
  plan_items(work, threads);
  plan_pieces(plan, 0, work.steps() / g.kernel_h, work.region.tap_steps);
  if constexpr (sizeof(T) == 1) arrange_filters(plan);
  check_plan(plan);
}

template <typename T>
void plan_backward(Plan<T>& plan, const Geometry& g, int64_t y, int64_t x, View<const T> grad, View<const T> input,
                   View<T> grad_input, int64_t threads) {
  Accumulation<T>& work = plan.work;
  work.lattice.batch = g.batch;
  work.lattice.rows = divide_up(g.height - y, g.stride_h);
  work.lattice.columns = divide_up(g.width - x, g.stride_w);
  work.lattice.step_h = work.lattice.step_w = 1;
  work.output.channels = g.groups * g.channels;
  work.output.group_channels = g.channels;
  const ReachingTaps rows = taps_reaching(y, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h);
  const ReachingTaps columns = taps_reaching(x, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w);
  plan.tap_rows = places_of(rows);
  plan.tap_columns = places_of(columns);
  plan_source(plan, g, grad, g.out_height, g.out_width, g.filters);
  work.filters.steps = g.taps() * g.filters;
  const Strides& to = grad_input.strides;
  work.output.data = grad_input.data + y * to.row + x * to.column;
  work.output.strides = {to.image, to.row * g.stride_h, to.column * g.stride_w, to.channel};
  const Strides& from = input.strides;
  work.output.input = input.data + y * from.row + x * from.column;
  work.output.input_strides = {from.image, from.row * g.stride_h, from.column * g.stride_w, from.channel};
  plan_items(work, threads);
  const int64_t first_tap = first_packed(rows, g.kernel_h) * g.kernel_w + first_packed(columns, g.kernel_w);
  plan_pieces(plan, first_tap * g.filters, rows.period * g.kernel_w * g.filters, columns.period * g.filters);
  check_plan(plan);
}

#define ADDERZOO_INSTANTIATE_FORWARD(T) \
  template void plan_forward<T>(Plan<T>&, const Geometry&, View<const T>, View<T>, int64_t);
#define ADDERZOO_INSTANTIATE_BACKWARD(T)                                                                             \
  template void plan_backward<T>(Plan<T>&, const Geometry&, int64_t, int64_t, View<const T>, View<const T>, View<T>, \
                                 int64_t);
ADDERZOO_INSTANTIATE_FORWARD(float)
ADDERZOO_INSTANTIATE_FORWARD(double)
ADDERZOO_INSTANTIATE_FORWARD(uint8_t)
ADDERZOO_INSTANTIATE_BACKWARD(float)
ADDERZOO_INSTANTIATE_BACKWARD(double)

}  // namespace adderzoo::cpu
