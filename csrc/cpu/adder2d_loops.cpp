#include "adder2d_loops.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace adderzoo::cpu {

#define ADDERZOO_DECLARE_LOOPS(capability) \
  namespace capability {                   \
  extern const Loops<float> kFloat;        \
  extern const Loops<double> kDouble;      \
  extern const Loops<uint8_t> kBytes;      \
  }

ADDERZOO_DECLARE_LOOPS(default_loops)
#ifdef __x86_64__
ADDERZOO_DECLARE_LOOPS(avx2_loops)
ADDERZOO_DECLARE_LOOPS(avx512_loops)
#endif

namespace {

enum class Capability { kDefault, kAvx2, kAvx512 };

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

Capability choose_capability() {
  const Capability best = best_capability();
  const char* asked = std::getenv("ADDERZOO_CPU_CAPABILITY");
  if (asked == nullptr || *asked == '\0') return best;
  const std::string name = asked;
  const Capability capability = name == "avx512" ? Capability::kAvx512
                                : name == "avx2" ? Capability::kAvx2
                                                 : Capability::kDefault;
  if ((capability == Capability::kDefault && name != "default") || capability > best) {
    throw std::runtime_error("ADDERZOO_CPU_CAPABILITY is '" + name +
                             "'; it takes 'default', 'avx2' or 'avx512', as far as this processor has them");
  }
  return capability;
}

}  // namespace

template <typename T>
const Loops<T>& loops() {
  static const Capability capability = choose_capability();
#define ADDERZOO_RETURN_LOOPS(capability)            \
  if constexpr (sizeof(T) == sizeof(double)) {       \
    return capability::kDouble;                      \
  } else if constexpr (sizeof(T) == sizeof(float)) { \
    return capability::kFloat;                       \
  } else {                                           \
    return capability::kBytes;                       \
  }
  switch (capability) {
#ifdef __x86_64__
    case Capability::kAvx512:
      ADDERZOO_RETURN_LOOPS(avx512_loops)
    case Capability::kAvx2:
      ADDERZOO_RETURN_LOOPS(avx2_loops)
#endif
    default:
      ADDERZOO_RETURN_LOOPS(default_loops)
  }
}

template const Loops<float>& loops<float>();
template const Loops<double>& loops<double>();
template const Loops<uint8_t>& loops<uint8_t>();

}  // namespace adderzoo::cpu
