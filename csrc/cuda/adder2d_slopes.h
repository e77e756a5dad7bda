// The input gradient by tiles.
#pragma once

#include "adder2d_tiles.h"

namespace adderzoo::cuda {

// Input gradient: clip(w - x, -1, 1) is 2 clip((w - x + 1) / 2, 0, 1) - 1, so with filters w / 2 and inputs
// (1 - x) / 2 an element is one addition that saturates, which costs nothing, and one multiply-add; the sum of g is
// taken off at the end. Where anything is not finite, which saturation would hide, the sums are taken directly.
template <typename T, typename S, bool VECTOR, typename In, typename Out>
__global__ void __launch_bounds__(T::kThreads)
    slopes(Walk w, const S* source, const float* filters, const In* input, Out* output) {
  __shared__ Shared<T> shared;
  const int group = blockIdx.z, filter0 = blockIdx.y * T::kFilters;
  const int64_t point0 = static_cast<int64_t>(blockIdx.x) * T::kPoints;
  Fetch<T, S, VECTOR> fetch(w, source, filters, point0, group, group * w.outputs + filter0);
  float inputs[T::kThreadPoints][T::kThreadFilters];
  float zero = 0.0f;  // as long as everything is finite
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
    const int64_t point = point0 + T::thread_point(i);
    const int64_t offset = offset_at(w, find_point(w, point < w.points ? point : 0), w.input);
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; ++j) {
      const int filter = filter0 + T::thread_filter(j), channel = group * w.outputs + filter;
      const bool there = point < w.points && filter < w.outputs;
      const float x = there ? to_number(input[offset + channel * w.input.channel]) : 0.0f;
      zero = multiply_add(x, 0.0f, zero);
      inputs[i][j] = 0.5f - 0.5f * x;
    }
  }
  float sums[T::kThreadPoints][T::kThreadFilters] = {}, totals[T::kThreadPoints][T::kThreadFilters] = {};
  float sum = 0.0f, total = 0.0f;  // of g, for the first threads' points

  const int64_t chunks = chunks_of<T>(w);
  fetch.load();
  zero = fetch.add_zeros(zero);
  fetch.store(shared, 0, 0.5f);
  __syncthreads();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    if (chunk + 1 < chunks) {
      fetch.load();
      zero = fetch.add_zeros(zero);
    }
    if (threadIdx.x < T::kPoints) {
#pragma unroll
      for (int k = 0; k < T::kSteps; ++k) sum += shared.points[stage][k][threadIdx.x];
    }
#pragma unroll
    for (int k = 0; k < T::kSteps; ++k) {
      take_step<T>(shared, stage, k, sums, [&](float sum, float g, float f, int i, int j) {
        return multiply_add(g, saturating_add(f, inputs[i][j]), sum);
      });
    }
    if ((chunk + 1) % (kBlock / T::kSteps) == 0) {
      add_up<T>(totals, sums);
      total += sum;
      sum = 0.0f;
    }
    if (chunk + 1 < chunks) fetch.store(shared, 1 - stage, 0.5f);
    __syncthreads();
  }
  add_up<T>(totals, sums);
  total += sum;
  if (threadIdx.x < T::kPoints) shared.sums[threadIdx.x] = total;
  const bool direct = __syncthreads_or(!(zero == 0.0f && total - total == 0.0f));
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
    const int64_t point = point0 + T::thread_point(i);
    if (point >= w.points) continue;
    const Point p = find_point(w, point);
    const int64_t in = offset_at(w, p, w.input), out = offset_at(w, p, w.output);
    const Reach reach = Reach::of(w, point, group);
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; ++j) {
      const int filter = filter0 + T::thread_filter(j), channel = group * w.outputs + filter;
      if (filter >= w.outputs) continue;
      float y = 2.0f * totals[i][j] - shared.sums[T::thread_point(i)];
      if (direct) {
        const float x = to_number(input[in + channel * w.input.channel]);
        y = direct_sum<ClippedSlope, float>(w, reach, source, filters, channel, x);
      }
      from_number(y, output[out + channel * w.output.channel]);
    }
  }
}

}  // namespace adderzoo::cuda
