#include <cstring>

#include "../cpu/adder2d_accumulation.h"
#include "ceilings.h"

#ifdef __x86_64__
#include "../cpu/loops/target_avx512vl.h"

ADDERZOO_TARGET_ON

#include "ceilings_body.h"

ADDERZOO_TARGET_OFF
#endif
