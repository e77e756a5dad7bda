#include <cstring>

#include "adder2d_loops.h"
#include "loops/target_default.h"

ADDERZOO_TARGET_ON

#include "loops/table.h"
