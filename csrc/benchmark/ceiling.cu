// What bounds the operators, for `adderzoo benchmark`: the instructions of their inner loops, on registers alone, in as
// many threads as a GPU runs at a time.
#include <type_traits>

#include "../cuda/adder2d_launch.h"
#include "checks.h"

namespace adderzoo::cuda {
namespace {

// Of a thread, and of the unrolled body of the loop, beside which counting costs nothing.
constexpr int kPoints = 4, kFilters = 4, kSteps = 16;

// More threads than it takes to keep a multiprocessor's arithmetic busy, in any of its generations.
constexpr int kBlocksOfMultiprocessor = 4;

// The operands of a form. Each hands a result of every step on to the next one as an operand, which costs nothing, and
// without which a compiler would compute the same terms once.
struct MultiplyAdds {
  using Number = float;
  static constexpr int kElements = 1;  // of a term
  float points[kPoints], filters[kFilters], sums[kPoints][kFilters] = {};

  __device__ void add_term(int i, int j) { sums[i][j] = multiply_add(sums[i][j], points[i], filters[j]); }
};

struct Distances : MultiplyAdds {
  __device__ void add_term(int i, int j) {
    const float difference = filters[j] - points[i];
    sums[i][j] += magnitude(difference);
    if (j == kFilters - 1) points[i] = difference;  // there and back, step by step
  }
};

struct Slopes : MultiplyAdds {
  float inputs[kPoints][kFilters];

  __device__ void add_term(int i, int j) {
    const float slope = saturating_add(filters[j], inputs[i][j]);
    sums[i][j] = multiply_add(points[i], slope, sums[i][j]);
    if (i == kPoints - 1) filters[j] = slope;
  }
};

struct ByteDistances {
  using Number = uint32_t;
  static constexpr int kElements = 4;
  uint32_t points[kPoints], filters[kFilters], sums[kPoints][kFilters] = {};

  __device__ void add_term(int i, int j) {
    sums[i][j] = add_byte_distances(points[i], filters[j], sums[i][j]);
    if (j == kFilters - 1) points[i] = sums[i][j];
  }
};

// Operands that a compiler does not know: between -1/2 and 1/2, or any bytes.
__device__ inline void set_operand(float& number, uint32_t bits) {
  number = static_cast<float>(bits >> 8) * 0x1p-24f - 0.5f;
}
__device__ inline void set_operand(uint32_t& number, uint32_t bits) { number = bits; }

template <typename F>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    ceiling(int64_t turns, typename F::Number* results) {
  F form;
  uint32_t bits = blockIdx.x * kThreads + threadIdx.x;
  const auto set = [&](typename F::Number& number) {
    bits = bits * 1664525 + 1013904223;
    set_operand(number, bits);
  };
#pragma unroll
  for (int i = 0; i < kPoints; ++i) set(form.points[i]);
#pragma unroll
  for (int j = 0; j < kFilters; ++j) set(form.filters[j]);
  if constexpr (requires { form.inputs; }) {
#pragma unroll
    for (int k = 0; k < kPoints * kFilters; ++k) set(form.inputs[k / kFilters][k % kFilters]);
  }
#pragma unroll 1
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int k = 0; k < kPoints * kFilters; ++k) form.add_term(k / kFilters, k % kFilters);
    }
  }
  typename F::Number sum = 0;
#pragma unroll
  for (int k = 0; k < kPoints * kFilters; ++k) sum += form.sums[k / kFilters][k % kFilters];
  results[blockIdx.x * kThreads + threadIdx.x] = sum;
}

int multiprocessors([[maybe_unused]] const Tensor& like) {
#ifdef __CUDACC__
  int count = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, like.get_device_index());
  if (error != cudaSuccess) fail("cuda_ceiling", "the GPU does not say what it has: ", cudaGetErrorString(error));
  return count;
#else
  return 1;
#endif
}

template <typename F>
int64_t run(const Tensor& like, int64_t steps) {
  const Queue queue(like);
  const int blocks = multiprocessors(like) * kBlocksOfMultiprocessor;
  const int64_t turns = divide_up(steps, kSteps), threads = int64_t{blocks} * kThreads;
  const ScalarType type = std::is_same_v<typename F::Number, float> ? ScalarType::Float : ScalarType::Int;
  Tensor results = torch::stable::empty({threads}, type, std::nullopt, like.device());
  queue.run(ceiling<F>, dim3(static_cast<unsigned>(blocks)), kThreads, 0, turns,
            static_cast<typename F::Number*>(results.mutable_data_ptr()));
  return threads * turns * kSteps * kPoints * kFilters * F::kElements;
}

// Puts the loop of `form` into the queue of `like`'s device, `steps` times or a few times more. Returns the number of
// elements, before they are computed.
int64_t cuda_ceiling(const Tensor& like, std::string form, int64_t steps) {
  check_steps("cuda_ceiling", steps);
  if (form == "multiply_add") return run<MultiplyAdds>(like, steps);
  if (form == "distance") return run<Distances>(like, steps);
  if (form == "slope") return run<Slopes>(like, steps);
  if (form == "byte_distance") return run<ByteDistances>(like, steps);
  fail_form("cuda_ceiling", form);
}

}  // namespace
}  // namespace adderzoo::cuda

STABLE_TORCH_LIBRARY_IMPL(adderzoo_benchmark, ADDERZOO_DEVICE, m) {
  m.impl("cuda_ceiling", TORCH_BOX(&adderzoo::cuda::cuda_ceiling));
}
