// The forward pass by tiles.
#pragma once

#include "adder2d_tiles.h"

namespace adderzoo::cuda {

// Forward: two additions an element, |.| and - being free on operands.
template <typename T, typename S, bool VECTOR, typename Out>
__global__ void __launch_bounds__(T::kThreads)
    distances(Walk walk, const S* source, const float* filters, Epilogue<float> epilogue, Out* output) {
  __shared__ Shared<T> shared;
  const int group = blockIdx.z, filter0 = blockIdx.y * T::kFilters;
  const uint32_t point0 = blockIdx.x * T::kPoints;
  Fetch<T, S, VECTOR> fetch(walk, source, filters, point0, group, group * walk.outputs + filter0);
  float sums[T::kThreadPoints][T::kThreadFilters] = {}, totals[T::kThreadPoints][T::kThreadFilters] = {};

  const int64_t chunks = chunks_of<T>(walk);
  fetch.load();
  fetch.store(shared, 0, 1.0f);
  __syncthreads();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    if (chunk + 1 < chunks) fetch.load();
#pragma unroll
    for (int k = 0; k < T::kSteps; ++k) {
      take_step<T>(shared, stage, k, sums,
                   [](float sum, float x, float f, int, int) { return sum + magnitude(x - f); });
    }
    if ((chunk + 1) % (kBlockSteps / T::kSteps) == 0) add_up<T>(totals, sums);
    if (chunk + 1 < chunks) fetch.store(shared, 1 - stage, 1.0f);
    __syncthreads();
  }
  add_up<T>(totals, sums);
  Point p;
#pragma unroll
  for (int i = 0; i < T::kThreadPoints; ++i) {
    const uint32_t point = point0 + T::thread_point(i);
    next_point<T>(walk, point, i, p);
    if (point >= walk.points) continue;
    const int64_t offset = offset_at(walk, p, walk.output);
    write_by_fours<T>(
        walk, group, filter0, offset,
        [&](int j, int channel, int64_t at) { return finish(epilogue, -totals[i][j], channel, at); },
        [&](int64_t at, float value) { from_number(value, output[at]); },
        [&](int64_t at, float a, float b, float c, float d) { store_four(output + at, a, b, c, d); });
  }
}

}  // namespace adderzoo::cuda
