#include "internal.h"

#if defined(__x86_64__)
#define ISA __attribute__((target("avx2,bmi,bmi2,lzcnt")))
#define ISA_BMI2
#define ISA_NAME "avx2"
#define NAME(x) x##_avx2
#include "isa.inc.h"
#endif
