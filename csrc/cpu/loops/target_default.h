// What every processor of the family has: 16 bytes, SSE2 on x86-64 and NEON on aarch64.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__aarch64__) && !defined(__clang__)
// GCC's scheduling before it gives out registers, which on x86-64 is off, spills sums inside the loops.
#define ADDERZOO_TARGET_ON _Pragma("GCC optimize(\"no-schedule-insns\")")
#else
#define ADDERZOO_TARGET_ON
#endif

#define ADDERZOO_CAPABILITY default_loops
#define ADDERZOO_CAPABILITY_NAME "default"
#define ADDERZOO_VECTOR_BYTES 16
#ifdef __aarch64__
#define ADDERZOO_REGISTERS 32
#else
#define ADDERZOO_REGISTERS 16
#endif
