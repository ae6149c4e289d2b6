#include "internal.h"

#define ISA
#define ISA_NAME "generic"
#define NAME(x) x##_generic
#include "isa.inc.h"
