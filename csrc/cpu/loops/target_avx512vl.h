// What a file that compiles the loops for AVX-512's instructions on vectors of 32 bytes includes before it switches
// that on. Macros, since clang leaves out of account what an included file switches on.
#pragma once

#include <immintrin.h>

#ifdef __clang__
// clang-format off
#define ADDERZOO_TARGET_ON \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,fma\"))), apply_to = function)")
// clang-format on
#define ADDERZOO_TARGET_OFF _Pragma("clang attribute pop")
#else
#define ADDERZOO_TARGET_ON _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,fma\")")
#define ADDERZOO_TARGET_OFF
#endif

#define ADDERZOO_CAPABILITY avx512vl_loops
#define ADDERZOO_CAPABILITY_NAME "avx512vl"
#define ADDERZOO_VECTOR_BYTES 32
#define ADDERZOO_REGISTERS 32
