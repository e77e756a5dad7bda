#include "capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace adderzoo::cpu {
namespace {

Capability best_capability() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Capability::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::kAvx2;
#endif
  return Capability::kDefault;
}

// Zen 4: AVX-512, but in halves. A loop of maxima and multiply-adds then takes a third less time on vectors of 32
// bytes.
bool halves_vectors() {
#ifdef __x86_64__
  return __builtin_cpu_is("amdfam19h") && best_capability() == Capability::kAvx512;
#else
  return false;
#endif
}

bool adds_beside_comparisons() {
#ifdef __x86_64__
  return __builtin_cpu_is("amdfam17h");
#else
  return false;
#endif
}

Capability choose_capability(Capability unasked) {
  const Capability best = best_capability();
  const char* asked = std::getenv("ADDERZOO_CPU_CAPABILITY");
  if (asked == nullptr || *asked == '\0') return unasked;
  const std::string name = asked;
  const Capability capability = name == "avx512"     ? Capability::kAvx512
                                : name == "avx512vl" ? Capability::kAvx512Vl
                                : name == "avx2"     ? Capability::kAvx2
                                                     : Capability::kDefault;
  if ((capability == Capability::kDefault && name != "default") || capability > best) {
    throw std::runtime_error(
        "ADDERZOO_CPU_CAPABILITY is '" + name +
        "'; it takes 'default', 'avx2', 'avx512vl' or 'avx512', as far as this processor has them");
  }
  return capability;
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose_capability(best_capability());
  return chosen;
}

Capability capability_of_floats() {
  static const Capability chosen = choose_capability(halves_vectors() ? Capability::kAvx512Vl : best_capability());
  return chosen;
}

Function form_for_processor(Function best) {
  if (adds_beside_comparisons()) {
    if (best == Function::kMaxFmaDistance) return Function::kMaxDistance;
    if (best == Function::kFmaClippedSlope) return Function::kClippedSlope;
  }
  if (best == Function::kDoubleDistance && !halves_vectors()) return Function::kDistance;
  return best;
}

}  // namespace adderzoo::cpu
