// Which instruction set's loops run on this processor, and in which of several forms with the same result.
#pragma once

#include "adder2d_accumulation.h"

namespace adderzoo::cpu {

// kAvx512Vl has AVX-512's instructions and registers, and AVX2's width.
enum class Capability { kDefault, kAvx2, kAvx512Vl, kAvx512 };

// The best for bytes that this processor can run. ADDERZOO_CPU_CAPABILITY (default, avx2, avx512vl, avx512) in the
// environment asks for another; std::runtime_error where this processor or this build lacks it.
Capability capability();

// The best for floats, likewise.
Capability capability_of_floats();

// The form of a distance or slope for this processor, of those that are the same to the last bit. `best` is that of an
// instruction set. Where comparisons run beside additions but not beside multiply-adds (Zen 1, measured, and Zen 2; on
// Zen 3 to 5, measured, it is the other way round), kMaxFmaDistance becomes kMaxDistance and kFmaClippedSlope
// kClippedSlope; and kDoubleDistance becomes kDistance but where floating-point additions run beside differences of
// bytes and those of integers do not (Zen 4, measured).
Function form_for_processor(Function best);

}  // namespace adderzoo::cpu
