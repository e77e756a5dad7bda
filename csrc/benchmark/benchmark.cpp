// Of `adderzoo benchmark` alone: operators of a namespace of their own, which no network calls.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <string>

#include "ceilings.h"
#include "checks.h"

namespace adderzoo::cpu {
namespace {

Ceiling form_of(const std::string& name) {
  if (name == "multiply_add") return Ceiling::kMultiplyAdd;
  if (name == "distance") return Ceiling::kDistance;
  if (name == "slope") return Ceiling::kSlope;
  if (name == "byte_distance") return Ceiling::kByteDistance;
  fail_form("cpu_ceiling", name);
}

// Runs the loop of `form` on all threads, and returns the number of elements.
int64_t cpu_ceiling(std::string form, int64_t steps) {
  check_steps("cpu_ceiling", steps);
  const Ceiling ceiling = form_of(form);
  std::atomic<int64_t> elements = 0;
  torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) elements += ceiling_loop(ceiling)(ceiling, steps);
  });
  return elements;
}

}  // namespace
}  // namespace adderzoo::cpu

STABLE_TORCH_LIBRARY(adderzoo_benchmark, m) {
  m.def("cpu_ceiling(str form, int steps) -> int");
  m.def("cuda_ceiling(Tensor like, str form, int steps) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(adderzoo_benchmark, CompositeExplicitAutograd, m) {
  m.impl("cpu_ceiling", TORCH_BOX(&adderzoo::cpu::cpu_ceiling));
}
