#include <cstring>

#include "../cpu/adder2d_accumulation.h"
#include "../cpu/loops/target_default.h"
#include "ceilings.h"

ADDERZOO_TARGET_ON

#include "ceilings_body.h"
