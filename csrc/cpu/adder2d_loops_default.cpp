#include <cstring>

#include "adder2d_loops.h"

// 16 bytes: what every x86-64 (SSE2) and every aarch64 (NEON) processor has.
#define ADDERZOO_CAPABILITY default_loops
#define ADDERZOO_CAPABILITY_NAME "default"
#define ADDERZOO_VECTOR_BYTES 16
#define ADDERZOO_REGISTERS 16
#include "adder2d_loops_body.h"
