// Which instruction set's loops run on this processor.
#pragma once

namespace adderzoo::cpu {

// kAvx512Vl has AVX-512's instructions and registers, and AVX2's width.
enum class Capability { kDefault, kAvx2, kAvx512Vl, kAvx512 };

// The best for bytes that this processor can run. ADDERZOO_CPU_CAPABILITY (default, avx2, avx512vl, avx512) in the
// environment asks for another; std::runtime_error where this processor or this build lacks it.
Capability capability();

// The best for floats, likewise.
Capability capability_of_floats();

// Whether maxima run beside additions on this processor, but not beside multiply-adds: Zen 1 (measured) to 3. On Zen 4
// (measured) and 5 it is the other way round.
bool adds_beside_maxima();

// Whether additions of floating-point numbers run beside differences of bytes, but those of integers do not: on Zen 4.
bool adds_beside_byte_distances();

}  // namespace adderzoo::cpu
