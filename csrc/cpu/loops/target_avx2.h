// What a file that compiles the loops for AVX2 includes before it switches that on. Macros, since clang leaves out of
// account what an included file switches on.
#pragma once

#include <immintrin.h>

#ifdef __clang__
#define ADDERZOO_TARGET_ON _Pragma("clang attribute push(__attribute__((target(\"avx2,fma\"))), apply_to = function)")
#define ADDERZOO_TARGET_OFF _Pragma("clang attribute pop")
#else
#define ADDERZOO_TARGET_ON _Pragma("GCC target(\"avx2,fma\")")
#define ADDERZOO_TARGET_OFF
#endif

#define ADDERZOO_CAPABILITY avx2_loops
#define ADDERZOO_CAPABILITY_NAME "avx2"
#define ADDERZOO_VECTOR_BYTES 32
#define ADDERZOO_REGISTERS 16
