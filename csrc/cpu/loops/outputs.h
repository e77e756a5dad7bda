// From the totals of a tile to outputs: the fast form's correction, scale, shift, addend and ReLU, and the layouts.
#pragma once

#include "item.h"
#include "terms.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// Length of the run of points from `point` on whose places, in steps of `column`, follow one another.
template <typename T>
int64_t run_of_points(const Item<T>& item, const int64_t* offsets, int64_t point) {
  int64_t end = point + 1;
  while (end < item.points && offsets[end] == offsets[end - 1] + 1) ++end;
  return end - point;
}

// Copies x at the points, `width` channels from `first` on, zeros for those beyond the last.
template <typename T>
void load_inputs(const Accumulation<T>& work, const Item<T>& item, int64_t first, int64_t width) {
  const int64_t channels = smaller(width, work.output.channels - first), stride = work.output.input_strides.channel;
  if (channels < width) std::memset(item.inputs, 0, item.points * width * sizeof(T));
  if (stride == 1) {
    for (int64_t p = 0; p < item.points; ++p) {
      std::memcpy(item.inputs + p * width, work.output.input + item.input_offsets[p] + first, channels * sizeof(T));
    }
    return;
  }
  for (int64_t p = 0; p < item.points;) {
    const int64_t run = run_of_points(item, item.input_offsets, p);
    T* to = item.inputs + p * width;
    transpose(work.output.input + item.input_offsets[p] + first * stride, stride, channels, run,
              [&](int64_t x) { return to + x * width; });
    p += run;
  }
}

template <typename T>
void add(T* to, const T* addend, int64_t length, bool relu) {
  if (relu) {
    for (int64_t i = 0; i < length; ++i) {
      const T sum = to[i] + addend[i];
      to[i] = sum < T(0) ? T(0) : sum;
    }
  } else {
    for (int64_t i = 0; i < length; ++i) to[i] += addend[i];
  }
}

// Writes the totals where a point's channels do not lie together.
template <typename T>
void store_planes(const Accumulation<T>& work, const Item<T>& item, int64_t first, int64_t from, int64_t to,
                  int64_t width) {
  const int64_t plane = work.output.strides.channel;
  for (int64_t p = 0; p < item.points;) {
    const int64_t run = run_of_points(item, item.output_offsets, p);
    T* output = work.output.data + item.output_offsets[p] + (first + from) * plane;
    transpose(item.totals + p * width + from, width, run, to - from, [&](int64_t c) { return output + c * plane; });
    if (work.output.epilogue.addend != nullptr) {
      const T* addend = work.output.epilogue.addend + (output - work.output.data);
      for (int64_t c = 0; c < to - from; ++c)
        add(output + c * plane, addend + c * plane, run, work.output.epilogue.relu);
    }
    p += run;
  }
}

// Whether finish() writes to the output: where the channels are all the item's own, and lie together. Else its results
// take the totals' place.
template <typename T>
bool writes_output(const Accumulation<T>& work, const Item<T>& item, int64_t first_channel, int64_t width) {
  return work.output.strides.channel == 1 && first_channel >= item.first_channel &&
         first_channel + width <= item.last_channel;
}

// Where the fast form does not hold: `y` is the sum in one form or the other. It is the exact form's that decides, and
// the fast form's is asked whether there can be any doubt: it is right within 6e-5 of the limit.
template <Function F, typename T>
inline __attribute__((always_inline)) Mask<T> odd_lanes(Vector<T> y, Vector<T> limit, Vector<T> input) {
  if constexpr (has_input(F)) return input != input;
  return ~(y <= -(sums_maxima(F) ? limit : limit * T(63) / T(64)));  // true of a NaN as well
}

// Turns a tile's totals into outputs. Returns false if the fast form does not hold for one of them, or may not; an
// exact form marks those, if asked for.
template <Function F, bool kAffine, int kVecs, typename T>
bool finish(const Accumulation<T>& work, const Item<T>& item, int64_t point, int points, int64_t first_channel,
            Mask<T>* marks = nullptr) {
  constexpr int64_t width = kVecs * kLanes<T>;
  const Vector<T> zero = {};
  const Epilogue<T>& epilogue = work.output.epilogue;
  const bool checked = exact(F) != F || marks != nullptr, limited = !has_input(F) && checked;
  Vector<T> filter_sums[kVecs], limits[kVecs] = {}, scale[kVecs], shift[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    if constexpr (sums_maxima(F)) filter_sums[v] = load(work.filters.sums + first_channel + v * kLanes<T>);
    if (limited) limits[v] = load(work.filters.limits + first_channel + v * kLanes<T>);
    if constexpr (kAffine) {
      scale[v] = load_channels(epilogue.scale, first_channel + v * kLanes<T>, work.output.channels);
      shift[v] = load_channels(epilogue.shift, first_channel + v * kLanes<T>, work.output.channels);
    }
  }

  const bool direct = writes_output(work, item, first_channel, width);
  Mask<T> odd = {};
  for (int p = 0; p < points; ++p) {
    T* totals = item.totals + (point + p) * width;
    T* output = direct ? work.output.data + item.output_offsets[point + p] + first_channel : totals;
    Vector<T> sum = {}, limit = {};
    if constexpr (sums_maxima(F)) sum = Simd<T>::broadcast(item.sums[point + p]);
    if (limited) limit = Simd<T>::broadcast(item.limits[point + p]);
    for (int v = 0; v < kVecs; ++v) {
      Vector<T> y = load(totals + v * kLanes<T>);
      if constexpr (sums_maxima(F)) {
        y = (sum + filter_sums[v]) - (y + y);
      } else if constexpr (F == Function::kDistance) {
        y = -y;
      }
      if (checked) {
        Vector<T> input = {};
        if constexpr (has_input(F)) input = load(item.inputs + (point + p) * width + v * kLanes<T>);
        const Mask<T> odd_here = odd_lanes<F, T>(y, limit + limits[v], input);
        odd |= odd_here;
        if (marks != nullptr) marks[p * kVecs + v] = odd_here;
      }
      if constexpr (kAffine) {
        y = Simd<T>::multiply_add(y, scale[v], shift[v]);
        if (epilogue.addend == nullptr && epilogue.relu) y = y < zero ? zero : y;
      }
      store(output + v * kLanes<T>, y);
    }
    if (kAffine && epilogue.addend != nullptr && work.output.strides.channel == 1) {
      const T* addend = epilogue.addend + item.output_offsets[point + p] + first_channel;
      add(output, addend, smaller(width, work.output.channels - first_channel), epilogue.relu);
    }
  }
  return !Simd<T>::any(odd);
}

// Writes the results of `finish` that are not in the output yet: only the lanes of the item's own group are its to
// write.
template <typename T>
void store_totals(const Accumulation<T>& work, const Item<T>& item, int64_t first_channel, int64_t width) {
  const int64_t from = first_channel < item.first_channel ? item.first_channel - first_channel : 0;
  const int64_t to = smaller(width, item.last_channel - first_channel);
  if (work.output.strides.channel != 1) {
    store_planes(work, item, first_channel, from, to, width);
  } else if (to - from < width) {
    for (int64_t p = 0; p < item.points; ++p) {
      std::memcpy(work.output.data + item.output_offsets[p] + first_channel + from, item.totals + p * width + from,
                  (to - from) * sizeof(T));
    }
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
