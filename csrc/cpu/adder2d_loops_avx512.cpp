#include <cstring>

#include "adder2d_loops.h"

#ifdef __x86_64__
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif

#define ADDERZOO_CAPABILITY avx512_loops
#define ADDERZOO_CAPABILITY_NAME "avx512"
#define ADDERZOO_VECTOR_BYTES 64
#define ADDERZOO_REGISTERS 32
#include "adder2d_loops_body.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
