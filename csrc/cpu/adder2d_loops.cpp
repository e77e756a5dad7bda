#include "adder2d_loops.h"

#include "capability.h"

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
ADDERZOO_DECLARE_LOOPS(avx512vl_loops)
ADDERZOO_DECLARE_LOOPS(avx512_loops)
#endif

template <typename T>
const Loops<T>& loops() {
#define ADDERZOO_RETURN_LOOPS(capability)            \
  if constexpr (sizeof(T) == sizeof(double)) {       \
    return capability::kDouble;                      \
  } else if constexpr (sizeof(T) == sizeof(float)) { \
    return capability::kFloat;                       \
  } else {                                           \
    return capability::kBytes;                       \
  }
  switch (sizeof(T) == 1 ? capability() : capability_of_floats()) {
#ifdef __x86_64__
    case Capability::kAvx512:
      ADDERZOO_RETURN_LOOPS(avx512_loops)
    case Capability::kAvx512Vl:
      ADDERZOO_RETURN_LOOPS(avx512vl_loops)
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
