// What a processor can do at most, for `adderzoo benchmark`: loops with the instructions of the operators' own, but all
// operands at hand.
#pragma once

#include <cstdint>

#include "../cpu/capability.h"

namespace adderzoo::cpu {

enum class Ceiling { kMultiplyAdd, kDistance, kSlope, kByteDistance };

// Takes so many steps, and returns the number of elements.
using CeilingLoop = int64_t (*)(Ceiling form, int64_t steps);

// That of the instruction set whose loops run (capability.h), for bytes or floats.
CeilingLoop ceiling_loop(Ceiling form);

}  // namespace adderzoo::cpu
