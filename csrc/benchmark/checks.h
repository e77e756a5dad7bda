// What both ceilings take.
#pragma once

#include <string>

#include "../adder2d_checks.h"

namespace adderzoo {

inline void check_steps(const char* op, int64_t steps) {
  if (steps < 0 || steps > kMostElements) fail(op, "steps must be from 0 to ", kMostElements, ", got ", steps);
}

[[noreturn]] inline void fail_form(const char* op, const std::string& form) {
  fail(op, "form must be 'multiply_add', 'distance', 'slope' or 'byte_distance', got '", form, "'");
}

}  // namespace adderzoo
