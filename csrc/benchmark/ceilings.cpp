#include "ceilings.h"

namespace adderzoo::cpu {

#define ADDERZOO_DECLARE_CEILING(capability) \
  namespace capability {                     \
  extern const CeilingLoop kCeiling;         \
  }

ADDERZOO_DECLARE_CEILING(default_loops)
#ifdef __x86_64__
ADDERZOO_DECLARE_CEILING(avx2_loops)
ADDERZOO_DECLARE_CEILING(avx512vl_loops)
ADDERZOO_DECLARE_CEILING(avx512_loops)
#endif

CeilingLoop ceiling_loop(Ceiling form) {
  switch (form == Ceiling::kByteDistance ? capability() : capability_of_floats()) {
#ifdef __x86_64__
    case Capability::kAvx512:
      return avx512_loops::kCeiling;
    case Capability::kAvx512Vl:
      return avx512vl_loops::kCeiling;
    case Capability::kAvx2:
      return avx2_loops::kCeiling;
#endif
    default:
      return default_loops::kCeiling;
  }
}

}  // namespace adderzoo::cpu
