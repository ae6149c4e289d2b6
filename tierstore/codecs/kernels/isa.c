/* Which instruction set runs: the widest that the processor and the limit allow. */
#include "internal.h"

static const tsk_isa *current;

static const tsk_isa *widest(int allowed)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
               __builtin_cpu_supports("bmi2"); /* every processor with BMI2 has LZCNT */
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512vbmi");
    if (avx512 && allowed >= 2) return &tsk_isa_avx512;
    if (avx2 && allowed >= 1) return &tsk_isa_avx2;
#endif
    (void)allowed;
    return &tsk_isa_generic;
}

const tsk_isa *tsk_isa_current(void)
{
    const tsk_isa *isa = __atomic_load_n(&current, __ATOMIC_ACQUIRE);
    if (!isa) {
        isa = widest(2);
        __atomic_store_n(&current, isa, __ATOMIC_RELEASE);
    }
    return isa;
}

const char *tsk_isa_name(void) { return tsk_isa_current()->name; }

int tsk_isa_limit(const char *name)
{
    int allowed = !name || !strcmp(name, "avx512") ? 2 : !strcmp(name, "avx2") ? 1
                  : !strcmp(name, "generic")       ? 0 : -1;
    if (allowed < 0) return -1;
    __atomic_store_n(&current, widest(allowed), __ATOMIC_RELEASE);
    return 0;
}
