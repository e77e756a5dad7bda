#include "adder2d_plan.h"

#include <algorithm>

namespace adderzoo::cpu {
namespace {

// Points of an item: enough to use a block of filters many times while it lies in the first cache, few enough for their
// sums to stay in the second.
constexpr int64_t kPoints = 192;
constexpr int64_t kFewPoints = 48;
constexpr int64_t kRegionBytes = 1 << 18;
constexpr int64_t kManySteps = 1 << 24;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
int64_t region_rows(const Accumulation<T>& a, int64_t rows) {
  if (a.num_tap_rows == 0) return 0;
  // Every image that the rows touch has rows of its own.
  const int64_t reach = a.tap_rows[a.num_tap_rows - 1] - a.tap_rows[0] + 1;
  const int64_t images = std::min(a.batch, (rows + a.rows - 2) / a.rows + 1);
  return (rows - 1) * a.step_h + reach + (images - 1) * std::max<int64_t>(0, reach - a.step_h);
}

// The pieces: as long as the sources of successive taps join, but no block may have more than kBlock steps.
template <typename T>
void plan_pieces(Plan<T>& plan, int64_t first_step, int64_t step_h, int64_t step_w) {
  Accumulation<T>& a = plan.work;
  int64_t in_block = 0;
  plan.blocks = {0};
  const auto add = [&](int64_t source, int64_t step, int64_t length) {
    while (length > 0) {
      if (in_block == kBlock) {
        plan.blocks.push_back(static_cast<int64_t>(plan.pieces.size()));
        in_block = 0;
      }
      const int64_t part = std::min(length, kBlock - in_block);
      const bool begins_block = plan.blocks.back() == static_cast<int64_t>(plan.pieces.size());
      if (!begins_block && plan.pieces.back().source + plan.pieces.back().length * a.source_step == source &&
          plan.pieces.back().step + plan.pieces.back().length == step) {
        plan.pieces.back().length += part;
      } else {
        plan.pieces.push_back({source, step, part});
      }
      in_block += part;
      source += part * a.source_step;
      step += part;
      length -= part;
    }
  };
  for (size_t i = 0; i < plan.tap_rows.size(); ++i) {
    for (size_t j = 0; j < plan.tap_columns.size(); ++j) {
      const int64_t row = plan.tap_rows[i] - plan.tap_rows[0], column = plan.tap_columns[j] - plan.tap_columns[0];
      const int64_t tap_steps = first_step + static_cast<int64_t>(i) * step_h + static_cast<int64_t>(j) * step_w;
      add((row * a.region_width + column) * a.region_pixel, tap_steps, a.tap_steps);
    }
  }
  plan.blocks.push_back(static_cast<int64_t>(plan.pieces.size()));
  a.pieces = plan.pieces.data();
  a.blocks = plan.blocks.data();
  a.num_blocks = static_cast<int64_t>(plan.blocks.size()) - 1;
}

// Cuts the work into items.
template <typename T>
void plan_items(Accumulation<T>& a, int64_t threads) {
  const int64_t all_rows = a.batch * a.rows;
  const int64_t groups = a.shared ? a.groups : 1;
  // A group that begins within a panel may end within one.
  const int64_t panels = !a.shared                                      ? divide_up(a.channels, kPanel)
                         : groups > 1 && a.group_channels % kPanel != 0 ? a.group_channels / kPanel + 2
                                                                        : divide_up(a.group_channels, kPanel);
  a.panels_of_item = a.shared ? panels : std::min(panels, kMaxOwnChannels / kPanel);
  if (!a.shared) a.source_step = a.panels_of_item * kPanel;
  if (a.staged) a.region_pixel = a.tap_steps * a.source_step;
  if (all_rows == 0 || a.columns == 0) {
    a.num_items = 0;
    return;
  }

  // Rows: a multiple of the threads, where there are enough of them.
  int64_t rows = std::max<int64_t>(1, std::min(all_rows, kPoints / a.columns));
  int64_t few_rows = std::max<int64_t>(1, std::min(rows, kFewPoints / a.columns));
  const int64_t row_bytes = a.staged ? a.region_width * a.region_pixel * sizeof(T) : 0;
  while (rows > few_rows && region_rows(a, rows) * row_bytes > kRegionBytes) --rows;
  // Large strides: mostly rows that no tap reads.
  if (region_rows(a, rows) * row_bytes > 64 * kRegionBytes) rows = few_rows = 1;
  const int64_t panel_chunks = divide_up(panels, a.panels_of_item);
  const int64_t columns_of_items = groups * panel_chunks;
  const int64_t wanted = divide_up(4 * threads, columns_of_items);
  if (divide_up(all_rows, rows) < wanted) rows = std::max(few_rows, all_rows / wanted);
  int64_t chunks = divide_up(all_rows, rows);
  if (columns_of_items % threads != 0 && chunks > threads) chunks = divide_up(chunks, threads) * threads;
  a.rows_of_item = divide_up(all_rows, chunks);
  chunks = divide_up(all_rows, a.rows_of_item);

  // Panels, where there are too few rows for all threads.
  if (a.shared && chunks * groups < 2 * threads) {
    const int64_t parts = std::min(panels, divide_up(2 * threads, chunks * groups));
    a.panels_of_item = divide_up(panels, parts);
  }
  a.num_items = chunks * groups * divide_up(panels, a.panels_of_item);
  a.panel_chunks = divide_up(panels, a.panels_of_item);

  a.max_points = divide_up(a.rows_of_item * a.columns, kPanel) * kPanel;  // for the alignment of what lies behind
  a.max_region_rows = region_rows(a, a.rows_of_item);
  const int64_t num_steps = a.num_tap_rows * a.num_tap_columns * a.tap_steps;
  // For the choice of a grain, which large ones are beyond.
  a.item_steps = std::min(a.max_points, kManySteps) * std::min(a.panels_of_item * num_steps + kPanel, kManySteps);
  // As `run` divides it: three numbers of eight bytes, four panels of totals and of inputs (of bytes, two of totals of
  // four bytes), and two sums for each point; the region; two for each point of its rows; two for each pixel of one.
  constexpr int64_t kNumbers = 3 * sizeof(int64_t) / sizeof(T);
  a.scratch_size = a.max_points * (kNumbers + 2 * 4 * kPanel + 2) +
                   (a.staged ? a.max_region_rows * a.region_width * a.region_pixel : 0) +
                   2 * (a.max_region_rows * a.columns + a.region_width);
}

template <typename T>
void plan_source(Plan<T>& plan, const Geometry& g, View<const T> source, int64_t height, int64_t width,
                 int64_t channels) {
  Accumulation<T>& a = plan.work;
  a.source = source.data;
  a.source_strides = source.strides;
  a.source_height = height;
  a.source_width = width;
  a.source_channels = channels;
  a.shared = g.groups == 1 || a.group_channels >= kPanel;
  a.source_step = sizeof(T) == 1 && a.shared ? kByteStep : 1;
  a.tap_steps = divide_up(channels, a.source_step);
  a.groups = g.groups;
  a.tap_rows = plan.tap_rows.data();
  a.tap_columns = plan.tap_columns.data();
  a.num_tap_rows = static_cast<int64_t>(plan.tap_rows.size());
  a.num_tap_columns = static_cast<int64_t>(plan.tap_columns.size());
  const bool taps = a.num_tap_rows > 0 && a.num_tap_columns > 0;
  if (!taps) {
    plan.tap_rows.clear();
    plan.tap_columns.clear();
    a.num_tap_rows = a.num_tap_columns = 0;
  }
  const bool inside = !taps || (plan.tap_rows.front() >= 0 && plan.tap_columns.front() >= 0 &&
                                plan.tap_rows.back() + (a.rows - 1) * a.step_h < height &&
                                plan.tap_columns.back() + (a.columns - 1) * a.step_w < width);
  // A tap that is outside at every point is so wherever it is outside: near, that a dilation does not make a region of
  // it.
  const auto bring_near = [](std::vector<int64_t>& places, int64_t last_point, int64_t size) {
    for (int64_t& place : places) place = std::clamp(place, -last_point - 1, size);
  };
  bring_near(plan.tap_rows, (a.rows - 1) * a.step_h, height);
  bring_near(plan.tap_columns, (a.columns - 1) * a.step_w, width);
  const bool dense = source.strides.channel == 1 && source.strides.column == g.groups * channels &&
                     source.strides.row == width * source.strides.column &&
                     source.strides.image == height * source.strides.row;
  a.staged = !(a.shared && inside && dense && channels % a.source_step == 0);
  a.region_pixel = source.strides.column;
  a.region_width = !a.staged ? width
                   : taps    ? (a.columns - 1) * a.step_w + plan.tap_columns.back() - plan.tap_columns.front() + 1
                             : 0;
}

// The taps of one axis, from the last to the first, so that the gradient's places ascend. Those that serve a remainder
// are equally far apart: one step over the filter is the same for all.
struct Axis {
  std::vector<int64_t> places;  // in the gradient, from that of the point
  int64_t first = 0, step = 0;  // of the reversed taps
};

Axis taps_reaching(int64_t remainder, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  Axis axis;
  for (int64_t reversed = 0; reversed < kernel; ++reversed) {
    const int64_t place = remainder + padding - (kernel - 1 - reversed) * dilation;
    if (place % stride != 0) continue;
    if (axis.places.empty()) axis.first = reversed;
    if (axis.places.size() == 1) axis.step = reversed - axis.first;
    axis.places.push_back(place / stride);
  }
  return axis;
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
  Accumulation<T>& a = plan.work;
  a.batch = g.batch;
  a.rows = g.out_height;
  a.columns = g.out_width;
  a.step_h = g.stride_h;
  a.step_w = g.stride_w;
  a.channels = g.groups * g.filters;
  a.group_channels = g.filters;
  for (int64_t i = 0; i < g.kernel_h; ++i) plan.tap_rows.push_back(i * g.dilation_h - g.padding_h);
  for (int64_t j = 0; j < g.kernel_w; ++j) plan.tap_columns.push_back(j * g.dilation_w - g.padding_w);
  plan_source(plan, g, input, g.height, g.width, g.channels);
  a.filter_steps = g.taps() * a.tap_steps;
  a.output = output.data;
  a.output_strides = output.strides;
  plan_items(a, threads);
  plan_pieces(plan, 0, g.kernel_w * a.tap_steps, a.tap_steps);
}

template <typename T>
void plan_backward(Plan<T>& plan, const Geometry& g, int64_t y, int64_t x, View<const T> grad, View<const T> input,
                   View<T> grad_input, int64_t threads) {
  Accumulation<T>& a = plan.work;
  a.batch = g.batch;
  a.rows = (g.height - y + g.stride_h - 1) / g.stride_h;
  a.columns = (g.width - x + g.stride_w - 1) / g.stride_w;
  a.step_h = a.step_w = 1;
  a.channels = g.groups * g.channels;
  a.group_channels = g.channels;
  const Axis rows = taps_reaching(y, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h);
  const Axis columns = taps_reaching(x, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w);
  plan.tap_rows = rows.places;
  plan.tap_columns = columns.places;
  plan_source(plan, g, grad, g.out_height, g.out_width, g.filters);
  a.filter_steps = g.taps() * g.filters;
  const Strides& to = grad_input.strides;
  a.output = grad_input.data + y * to.row + x * to.column;
  a.output_strides = {to.image, to.row * g.stride_h, to.column * g.stride_w, to.channel};
  const Strides& from = input.strides;
  a.input = input.data + y * from.row + x * from.column;
  a.input_strides = {from.image, from.row * g.stride_h, from.column * g.stride_w, from.channel};
  plan_items(a, threads);
  plan_pieces(plan, (rows.first * g.kernel_w + columns.first) * g.filters, rows.step * g.kernel_w * g.filters,
              columns.step * g.filters);
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
