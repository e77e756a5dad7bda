#include <cstring>

#include "adder2d_loops.h"

#ifdef __x86_64__
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define ADDERZOO_CAPABILITY avx2_loops
#define ADDERZOO_CAPABILITY_NAME "avx2"
#define ADDERZOO_VECTOR_BYTES 32
#define ADDERZOO_REGISTERS 16
#include "adder2d_loops_body.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
