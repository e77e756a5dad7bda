// Which instruction set's loops run on this processor.
#pragma once

namespace adderzoo::cpu {

enum class Capability { kDefault, kAvx2, kAvx512 };

// The best that this processor can run. ADDERZOO_CPU_CAPABILITY (default, avx2, avx512) in the environment asks for
// another; std::runtime_error where this processor or this build lacks it.
Capability capability();

// Whether maxima run beside additions on this processor, but not beside multiply-adds.
bool adds_beside_maxima();

}  // namespace adderzoo::cpu
