// What a file that compiles the loops for AVX-512's instructions on vectors of 32 bytes includes before it switches
// these on.
#pragma once

#include "target_avx512.h"

#undef ADDERZOO_CAPABILITY
#undef ADDERZOO_CAPABILITY_NAME
#undef ADDERZOO_VECTOR_BYTES
#define ADDERZOO_CAPABILITY avx512vl_loops
#define ADDERZOO_CAPABILITY_NAME "avx512vl"
#define ADDERZOO_VECTOR_BYTES 32
