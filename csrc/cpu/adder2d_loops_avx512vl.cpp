#include <cstring>

#include "adder2d_loops.h"

#ifdef __x86_64__
#include "loops/target_avx512vl.h"

ADDERZOO_TARGET_ON

#include "loops/table.h"

ADDERZOO_TARGET_OFF
#endif
