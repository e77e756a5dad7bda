// The input gradient by tiles.
#pragma once

#include "adder2d_tiles.h"

namespace adderzoo::cuda {

// Input gradient: clip(walk - x, -1, 1) is 2 clip((walk - x + 1) / 2, 0, 1) - 1, so with filters walk / 2 and inputs
// (1 - x) / 2 an element is one addition that saturates, which costs nothing, and one multiply-add; the sum of g is
// taken off at the end. Where anything is not finite, which saturation would hide, the sums are taken directly.
template <typename T, typename S, bool VECTOR, typename In, typename Out>
__global__ void __launch_bounds__(T::kThreads, 1)  // else some of four blocks are put into memory
    slopes(Walk walk, const S* source, const float* filters, const In* input, Out* output) {
  auto& shared = shared_memory<Shared<T>>();
  const int group = blockIdx.z, filter0 = first_filter<T>(walk);
  const uint32_t point0 = blockIdx.x * T::kPoints;
  Fetch<T, S, VECTOR> fetch(walk, source, filters, point0, group, group * walk.outputs + filter0);
  float inputs[T::kThreadPoints][T::kThreadFilters];
  float zero = 0.0f;  // as long as everything is finite
  Point p;
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
    const uint32_t point = point0 + T::thread_point(i);
    if (i % 4 == 0) {
      p = find_point(walk, point);
    } else {
      advance(walk, p);
    }
    const int64_t offset = offset_at<int64_t>(walk, p, walk.input);
#pragma unroll
    for (int j = 0; j < T::kThreadFilters; ++j) {
      const int filter = filter0 + T::thread_filter(j), channel = group * walk.outputs + filter;
      const bool there = point < walk.points && filter >= 0 && filter < walk.outputs;
      const float x = there ? to_number(input[offset + channel * walk.input.channel]) : 0.0f;
      zero = multiply_add(x, 0.0f, zero);
      inputs[i][j] = 0.5f - 0.5f * x;
    }
  }
  float sums[T::kThreadPoints][T::kThreadFilters] = {};
  keep_totals(shared, sums);
  float sum = 0.0f, total = 0.0f;  // of g, for the first threads' points

  const int chunks = chunks_of<T>(walk);
  fetch.load(0);
  zero = fetch.add_zeros(zero);
  fetch.store(shared, 0, 0.5f);
  __syncthreads();
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    if (chunk + 1 < chunks) {
      fetch.load((chunk + 1) * T::kSteps);
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
    if ((chunk + 1) % (kBlockSteps / T::kSteps) == 0) {
      add_totals(shared, sums);
      keep_totals(shared, sums);
      total += sum;
      sum = 0.0f;
    }
    if (chunk + 1 < chunks) fetch.store(shared, 1 - stage, 0.5f);
    __syncthreads();
  }
  add_totals(shared, sums);
  total += sum;
  if (threadIdx.x < T::kPoints) shared.sums[threadIdx.x] = total;
  if (__syncthreads_or(!(zero == 0.0f && total - total == 0.0f))) {
    for (int n = threadIdx.x; n < T::kPoints * T::kFilters; n += T::kThreads) {
      const uint32_t point = point0 + n % T::kPoints;
      const int filter = filter0 + n / T::kPoints, channel = group * walk.outputs + filter;
      if (point >= walk.points || filter < 0 || filter >= walk.outputs) continue;
      const Point p = find_point(walk, point);
      const float x = to_number(input[offset_at<int64_t>(walk, p, walk.input) + channel * walk.input.channel]);
      const auto reach = Reach<S>::from(walk, source, p, group);
      from_number(direct_sum<ClippedSlope, uint32_t, float>(walk, reach, filters, channel, x),
                  output[offset_at<int64_t>(walk, p, walk.output) + channel * walk.output.channel]);
    }
    return;
  }
  write_tile<T>(
      walk, point0, filter0, [&](int i, int j) { return 2.0f * sums[i][j] - shared.sums[T::thread_point(i)]; },
      [](int, auto, auto, float (&)[4]) {}, [&](int64_t at, float value) { from_number(value, output[at]); },
      [&](int64_t at, float a, float b, float c, float d) { store_four(output + at, a, b, c, d); });
}

}  // namespace adderzoo::cuda
