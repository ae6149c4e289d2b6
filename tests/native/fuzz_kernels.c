/* Round trips and damaged payloads through the kernels, without Python.
 *
 * Built twice: with -fsanitize=address,undefined, where every buffer is its own allocation of the exact size;
 * and with -DGUARD_PAGES and no sanitizer, where every buffer ends at a page that may not be touched, because
 * sanitizers do not see the accesses of inline assembly.
 *
 * usage: fuzz_kernels SEED MUTATIONS
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#ifdef GUARD_PAGES
#include <sys/mman.h>
#endif

#define MOST ((size_t)1 << 19)
#define BLOCKS 4096

static uint64_t state;

static uint64_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % below;
}

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

enum slot { HEAD, ENDS, PAYLOAD, BASE, OUT, SLOTS };

/* A buffer of exactly n bytes in this slot, with a copy of `data` when there is one. */
static void *place(enum slot slot, const void *data, size_t n)
{
    static uint8_t *held[SLOTS];
#ifdef GUARD_PAGES
    const size_t page = 4096;
    if (!held[slot]) {
        held[slot] = mmap(NULL, MOST + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (held[slot] == MAP_FAILED || mprotect(held[slot] + MOST, page, PROT_NONE)) fail("no guard page");
    }
    uint8_t *at = held[slot] + MOST - n;
#else
    free(held[slot]);
    uint8_t *at = held[slot] = malloc(n ? n : 1);
    if (!at) fail("no memory");
    if (!n) at++; /* nothing of an empty buffer may be touched */
#endif
    if (data && n) memcpy(at, data, n);
    return at;
}

/* Stands in for zstd: runs of (count, byte). */
static ptrdiff_t squeeze(void *ctx, const uint8_t *src, size_t n, uint8_t *dst, size_t cap)
{
    size_t used = 0;
    (void)ctx;
    for (size_t i = 0, run; i < n; i += run) {
        for (run = 1; i + run < n && run < 255 && src[i + run] == src[i];) run++;
        if (used + 2 > cap) return 0;
        dst[used++] = (uint8_t)run;
        dst[used++] = src[i];
    }
    return (ptrdiff_t)used;
}

static ptrdiff_t expand(void *ctx, const uint8_t *src, size_t n, uint8_t *dst, size_t cap)
{
    size_t made = 0;
    (void)ctx;
    for (size_t i = 0; i + 2 <= n; i += 2) {
        if (src[i] > cap - made) return -1;
        memset(dst + made, src[i + 1], src[i]);
        made += src[i];
    }
    return (ptrdiff_t)made;
}

typedef struct {
    tsk_form form;
    size_t n, head_len, payload_len, blocks;
    uint8_t plain[MOST], base[MOST], payload[MOST], head[TSK_MAX_HEAD];
    uint64_t ends[BLOCKS];
} sample;

/* Bytes whose planes take every mode: skewed, constant, near-uniform, nearly constant, drifting. */
static void fill(uint8_t *bytes, size_t n, unsigned word)
{
    unsigned kind[8], from = (unsigned)draw(256);
    for (unsigned p = 0; p < word; p++) kind[p] = (unsigned)draw(6);
    for (size_t i = 0; i < n; i++) {
        unsigned sum = 0;
        if (i % 4096 == 0) from += (unsigned)draw(9);
        for (int k = 0; k < 4; k++) sum += (unsigned)draw(8);
        switch (kind[i % word]) {
        case 0: bytes[i] = (uint8_t)(from + sum); break;
        case 1: bytes[i] = 7; break;
        case 2: bytes[i] = (uint8_t)draw(256); break;
        case 3: bytes[i] = draw(40) ? 3 : (uint8_t)draw(5); break;
        case 4: bytes[i] = (uint8_t)(draw(3) ? 200 : sum * 8); break; /* a code of one bit */
        default: bytes[i] = (uint8_t)(sum * 9 + draw(9)); break;      /* long codes */
        }
    }
}

static void choose_isa(void)
{
    static const char *const names[] = {"avx512", "avx2", "generic"};
    tsk_isa_limit(names[draw(3)]);
}

static int decode(tsk_scratch *scratch, const sample *s, const uint8_t *head, size_t head_len,
                  const uint64_t *ends, size_t n_ends, const uint8_t *payload, size_t payload_len, uint8_t *out)
{
    size_t bad;
    const uint8_t *base = s->form.map >= TSK_DELTA_INT ? place(BASE, s->base, s->n) : NULL;
    choose_isa();
    return tsk_decode(scratch, &s->form, head, head_len, ends, n_ends, payload, payload_len, out, s->n, base,
                      expand, NULL, &bad);
}

/* Encode something new and check that it comes back; 0 when it did not get smaller. */
static int make(tsk_scratch *scratch, sample *s, size_t most)
{
    s->form.word = 1u << draw(4);
    s->form.map = (enum tsk_map)draw(4);
    s->form.block_size = (size_t)64 << draw(13);
    s->n = 1 + draw(most);
    if ((s->n + s->form.block_size - 1) / s->form.block_size > BLOCKS) return 0;
    fill(s->plain, s->n, s->form.word);
    memcpy(s->base, s->plain, s->n);
    for (size_t i = 0; i < s->n; i += 1 + draw(9)) s->base[i] ^= (uint8_t)draw(4);
    choose_isa();
    const uint8_t *base = s->form.map >= TSK_DELTA_INT ? place(BASE, s->base, s->n) : NULL;
    uint8_t *out = place(PAYLOAD, NULL, s->n);
    ptrdiff_t length = tsk_encode(scratch, &s->form, place(OUT, s->plain, s->n), s->n, base, out, s->n, s->head,
                                  &s->head_len, s->ends, squeeze, NULL);
    if (length == TSK_NO_GAIN) return 0;
    if (length < 0) fail("encode failed");
    s->payload_len = (size_t)length;
    s->blocks = (s->n + s->form.block_size - 1) / s->form.block_size;
    memcpy(s->payload, out, s->payload_len);
    out = place(OUT, NULL, s->n);
    int rc = decode(scratch, s, place(HEAD, s->head, s->head_len), s->head_len,
                    place(ENDS, s->ends, s->blocks * 8), s->blocks, place(PAYLOAD, s->payload, s->payload_len),
                    s->payload_len, out);
    if (rc || memcmp(out, s->plain, s->n)) {
        fprintf(stderr, "word %u map %d block %zu n %zu: rc %d\n", s->form.word, (int)s->form.map,
                s->form.block_size, s->n, rc);
        fail("a payload did not come back as it was");
    }
    return 1;
}

/* Change one to four bytes, mostly where descriptors, stream lengths and tables are. */
static void damage(const sample *s, uint8_t *head, uint64_t *ends, uint8_t *payload, size_t payload_len)
{
    for (uint64_t k = 1 + draw(4); k-- > 0;) {
        uint64_t where = draw(8);
        uint8_t value = draw(2) ? (uint8_t)draw(256) : (uint8_t)(draw(2) ? 0 : 255);
        if (where == 0 && s->head_len) head[draw(s->head_len)] = value;
        else if (where == 1) ends[draw(s->blocks)] += draw(2) ? draw(65) - 32 : draw(UINT64_MAX);
        else if (where < 5 && payload_len) {
            size_t block = draw(s->blocks), from = block ? s->ends[block - 1] : 0;
            size_t at = from + draw(6 * s->form.word + 24);
            if (at < payload_len) payload[at] = value;
        } else if (payload_len) payload[draw(payload_len)] = value;
    }
}

static int mutate(tsk_scratch *scratch, const sample *s)
{
    size_t head_len = s->head_len, payload_len = s->payload_len, n_ends = s->blocks;
    if (!draw(16) && head_len) head_len = draw(head_len);
    if (!draw(16)) payload_len = draw(payload_len);
    if (!draw(32)) n_ends = draw(n_ends + 1);
    uint8_t *head = place(HEAD, s->head, head_len), *payload = place(PAYLOAD, s->payload, payload_len);
    uint64_t *ends = place(ENDS, s->ends, s->blocks * 8);
    if (payload_len < s->payload_len) ends[s->blocks - 1] = payload_len;
    if (head_len == s->head_len) damage(s, head, ends, payload, payload_len);
    return decode(scratch, s, head, head_len, ends, n_ends, payload, payload_len, place(OUT, NULL, s->n));
}

int main(int argc, char **argv)
{
    static sample s;
    static const size_t sizes[] = {40, 700, 4000, 4000, 40000};
    unsigned long mutations = argc == 3 ? strtoul(argv[2], NULL, 10) : 0, done = 0, refused = 0;
    tsk_scratch *scratch = tsk_scratch_new(MOST);

    if (!mutations || !scratch) fail("usage: fuzz_kernels SEED MUTATIONS");
    state = strtoull(argv[1], NULL, 10) * 2654435761u + 88172645463325252u;
    for (int i = 0; i < 20; i++) make(scratch, &s, MOST); /* several segments, long streams */
    while (done < mutations) {
        size_t most = sizes[draw(5)];
        if (!make(scratch, &s, most)) continue;
        for (int i = 0; i < (most > 4000 ? 20 : 200) && done < mutations; i++, done++)
            refused += mutate(scratch, &s) != TSK_OK;
    }
    place(OUT, NULL, 0);
    tsk_scratch_free(scratch);
    printf("%lu mutations, %lu refused\n", done, refused);
    return refused > done / 4 ? 0 : 1;
}
