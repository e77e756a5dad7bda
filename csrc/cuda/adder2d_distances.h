// The forward pass by tiles.
#pragma once

#include "adder2d_tiles.h"

namespace adderzoo::cuda {

// Forward: two additions an element, |.| and - being free on operands.
template <typename T, typename S, bool VECTOR, typename Out>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    distances(Walk walk, const S* source, const float* filters, Epilogue<float> epilogue, Out* output) {
  auto& shared = shared_memory<Shared<T>>();
  const int group = blockIdx.z, filter0 = first_filter<T>(walk);
  const uint32_t point0 = blockIdx.x * T::kPoints;
  Fetch<T, S, VECTOR> fetch(walk, source, filters, point0, group, group * walk.outputs + filter0);
  float sums[T::kThreadPoints][T::kThreadFilters] = {};
  keep_totals(shared, sums);

  const int chunks = chunks_of<T>(walk);
  fetch.load(0);
  fetch.store(shared, 0, 1.0f);
  __syncthreads();
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    if (chunk + 1 < chunks) fetch.load((chunk + 1) * T::kSteps);
#pragma unroll
    for (int k = 0; k < T::kSteps; ++k) {
      take_step<T>(shared, stage, k, sums,
                   [](float sum, float x, float f, int, int) { return sum + magnitude(x - f); });
    }
    if ((chunk + 1) % (kBlockSteps / T::kSteps) == 0) {
      add_totals(shared, sums);
      keep_totals(shared, sums);
    }
    if (chunk + 1 < chunks) fetch.store(shared, 1 - stage, 1.0f);
    __syncthreads();
  }
  add_totals(shared, sums);
  write_tile<T>(
      walk, point0, filter0, [&](int i, int j) { return -sums[i][j]; },
      [&](int channel, auto at, auto there, float (&values)[4]) { finish(epilogue, channel, at, there, values); },
      [&](int64_t at, float value) { from_number(value, output[at]); },
      [&](int64_t at, float a, float b, float c, float d) { store_four(output + at, a, b, c, d); });
}

}  // namespace adderzoo::cuda
