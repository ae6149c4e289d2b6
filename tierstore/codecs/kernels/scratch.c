/* Working memory of one encode or decode, kept by its owner from call to call. */
#include <stdlib.h>

#include "internal.h"

tsk_scratch *tsk_scratch_new(size_t block_size)
{
    /* Planes are rounded up to 64 bytes and may be overrun by 63 more. */
    const size_t planes = block_size + TSK_MAX_WORD * 128, pairs = (size_t)1 << 16;
    tsk_scratch *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->block_size = block_size;
    s->planes = malloc(planes);
    s->words = malloc(planes);
    s->segment = malloc(TSK_SEGMENT_BOUND);
    s->decoders = malloc(TSK_MAX_WORD * sizeof *s->decoders);
    uint32_t *all = malloc(TSK_MAX_WORD * pairs * sizeof *all); /* pages that no code touches cost nothing */
    for (unsigned i = 0; all && i < TSK_MAX_WORD; i++) s->encoders[i].pairs = all + i * pairs;
    if (s->planes && s->words && s->segment && s->decoders && all) return s;
    tsk_scratch_free(s);
    return NULL;
}

void tsk_scratch_free(tsk_scratch *s)
{
    if (!s) return;
    free(s->planes);
    free(s->words);
    free(s->segment);
    free(s->decoders);
    free(s->encoders[0].pairs);
    free(s);
}

size_t tsk_scratch_block_size(const tsk_scratch *s) { return s->block_size; }
