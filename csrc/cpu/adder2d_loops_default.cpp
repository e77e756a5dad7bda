#include <cstring>

#include "adder2d_loops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__aarch64__) && !defined(__clang__)
// GCC's scheduling before it gives out registers, which on x86-64 is off, spills sums inside the loops.
#pragma GCC optimize("no-schedule-insns")
#endif

// 16 bytes: what every x86-64 (SSE2) and every aarch64 (NEON) processor has.
#define ADDERZOO_CAPABILITY default_loops
#define ADDERZOO_CAPABILITY_NAME "default"
#define ADDERZOO_VECTOR_BYTES 16
#ifdef __aarch64__
#define ADDERZOO_REGISTERS 32
#else
#define ADDERZOO_REGISTERS 16
#endif
#include "adder2d_loops_body.h"
