/* Encoding: what every plane of every block becomes, and the payload it makes. */
#include <math.h>

#include "internal.h"

#define LINE 64
#define SAMPLE_EVERY 8    /* one line in eight is counted, */
#define SAMPLE_LEAST 8192 /* but at least so many symbols */
#define PATIENCE 0.02     /* bits a symbol that a new code must save beyond what it takes */
#define GUESSED 8         /* symbols that a sampled code may give a code to without having seen them */

typedef struct {
    tsk_scratch *scratch;
    const tsk_isa *isa;
    uint8_t *out, *head;
    size_t pos, cap, head_len;
    int tables;
    tsk_zstd_fn compress;
    void *ctx;
} job;

typedef struct {
    enum tsk_mode mode;
    uint8_t table;
} choice;

/* log2 of m in [1, 2) by (m-1) times a quartic fitted to log2(m)/(m-1); error below 2e-5. */
static float log2_of(uint32_t v)
{
    float f = (float)v;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    int exponent = (int)(bits >> 23) - 127;
    bits = (bits & 0x7fffff) | 0x3f800000;
    memcpy(&f, &bits, 4);
    f -= 1.0f;
    return (float)exponent + f * (1.4418799f + f * (-0.7088652f + f * (0.4152456f + f * (-0.1935165f + f * 0.0452683f))));
}

/* Bits that `total` symbols of this histogram need at least (their order-0 entropy). */
static double entropy_bits(const uint32_t hist[256], size_t total)
{
    float sum = 0;
    for (unsigned s = 0; s < 256; s++) {
        float part = (float)hist[s] * log2_of(hist[s] | (hist[s] == 0));
        sum += part;
    }
    return (double)total * log2_of((uint32_t)total) - sum;
}

/* Four histograms: equal neighbours must not wait for each other's store. */
static inline void count_part(const uint8_t *src, size_t n, uint32_t part[4][256])
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t v = tsk_load64(src + i);
        part[0][v & 255]++;
        part[1][v >> 8 & 255]++;
        part[2][v >> 16 & 255]++;
        part[3][v >> 24 & 255]++;
        part[0][v >> 32 & 255]++;
        part[1][v >> 40 & 255]++;
        part[2][v >> 48 & 255]++;
        part[3][v >> 56]++;
    }
    for (; i < n; i++) part[0][src[i]]++;
}

static void add_parts(uint32_t part[4][256], uint32_t hist[256])
{
    for (unsigned s = 0; s < 256; s++) hist[s] = part[0][s] + part[1][s] + part[2][s] + part[3][s];
}

/* Count lines of 64 symbols, evenly spread; returns how many symbols were counted. */
static size_t count_sample(const uint8_t *src, size_t n, uint32_t hist[256])
{
    uint32_t part[4][256];
    size_t wanted = n / SAMPLE_EVERY < SAMPLE_LEAST ? SAMPLE_LEAST : n / SAMPLE_EVERY;
    memset(part, 0, sizeof part);
    if (n <= wanted) {
        count_part(src, n, part);
        wanted = n;
    } else {
        size_t lines = wanted / LINE;
        wanted = lines * LINE;
        for (size_t i = 0; i < lines; i++) count_part(src + (n - LINE) * i / (lines - 1), LINE, part);
    }
    add_parts(part, hist);
    return wanted;
}

/* Bits of what was counted under this code, infinite when a symbol has none. */
static double code_bits(const uint32_t hist[256], const uint8_t len[256])
{
    uint64_t bits = 0;
    uint32_t uncoded = 0;
    for (unsigned s = 0; s < 256; s++) {
        bits += (uint64_t)hist[s] * len[s];
        uncoded |= len[s] ? 0 : hist[s];
    }
    return uncoded ? (double)INFINITY : (double)bits;
}

/* Leave in the plane's encoder the code to use: a new one where it pays for its place in the head and for
 * the time that a reader needs to build its table. `hist` counts `counted` of the plane's n symbols and none
 * of them with zero. Returns the bits of the plane, infinite when there is no code for it. */
static double choose_code(job *j, tsk_encoder *e, const uint32_t hist[256], size_t counted, size_t n)
{
    const double scale = (double)n / (double)counted, patience = (double)n * PATIENCE + 256;
    double now = e->id < 0 ? (double)INFINITY : scale * code_bits(hist, e->code.len);
    if (now <= scale * entropy_bits(hist, counted) * 1.005 + patience) return now;

    tsk_code code;
    uint8_t table[2 + 128];
    tsk_code_lengths(hist, code.len);
    size_t bytes = tsk_table_write(code.len, table);
    double bits = scale * code_bits(hist, code.len);
    if (now <= bits + 8 * (double)bytes + patience) return now;
    if (j->tables == TSK_MAX_TABLES || bytes > TSK_MAX_HEAD - j->head_len) return now;
    memcpy(j->head + j->head_len, table, bytes);
    j->head_len += bytes;
    tsk_code_assign(&code);
    e->code = code;
    e->low = table[0];
    e->high = table[1];
    e->id = j->tables++;
    j->isa->fill_pairs(e);
    return bits;
}

static size_t encode_segment(const job *j, const tsk_encoder *e, const uint8_t *src, size_t n, uint8_t *dst)
{
    size_t used = TSK_SEGMENT_HEAD;
    for (unsigned k = 0; k < TSK_STREAMS; k++) {
        size_t symbols = tsk_stream_symbols(n, k), bytes = 0;
        if (symbols) bytes = j->isa->encode_stream(e, src, symbols, dst + used);
        tsk_store16(dst + 2 * k, (uint16_t)bytes);
        src += symbols;
        used += bytes;
    }
    return used;
}

static int put_huffman(job *j, const tsk_encoder *e, const uint8_t *src, size_t n)
{
    for (size_t i = 0; i < n; i += TSK_SEGMENT) {
        size_t m = n - i < TSK_SEGMENT ? n - i : TSK_SEGMENT, bytes;
        if (j->cap - j->pos >= TSK_SEGMENT_BOUND) {
            bytes = encode_segment(j, e, src + i, m, j->out + j->pos);
        } else { /* near the end of `out`, where the worst case might not fit */
            bytes = encode_segment(j, e, src + i, m, j->scratch->segment);
            if (bytes > j->cap - j->pos) return TSK_NO_GAIN;
            memcpy(j->out + j->pos, j->scratch->segment, bytes);
        }
        j->pos += bytes;
    }
    return TSK_OK;
}

static int put_bytes(job *j, const uint8_t *src, size_t n)
{
    if (n > j->cap - j->pos) return TSK_NO_GAIN;
    if (n) memcpy(j->out + j->pos, src, n);
    j->pos += n;
    return TSK_OK;
}

/* The mode by the recipe: one value, near-uniform, one symbol far ahead of all others, or Huffman. */
static enum tsk_mode probe(const uint8_t *src, size_t n, const uint32_t hist[256], size_t counted)
{
    uint32_t top = 0;
    for (unsigned s = 0; s < 256; s++) top = hist[s] > top ? hist[s] : top;
    if (n == 0) return TSK_MODE_RAW;
    if (top == counted && !memcmp(src, src + 1, n - 1)) return TSK_MODE_CONST;
    if (top > counted * 4 / 5) return TSK_MODE_ZSTD;
    return entropy_bits(hist, counted) > 7.8 * (double)counted ? TSK_MODE_RAW : TSK_MODE_HUFFMAN;
}

/* Make every symbol of the plane count: those between its smallest and largest that the sample missed are
 * taken as rare, or, when there are many of them, the whole plane is counted. Returns the symbols counted. */
static size_t cover(const job *j, const uint8_t *src, size_t n, uint32_t hist[256], size_t counted)
{
    unsigned low, high, missed = 0;
    if (counted == n) return n;
    j->isa->bounds(src, n, &low, &high);
    for (unsigned s = low; s <= high; s++) missed += !hist[s];
    if (missed > GUESSED) {
        uint32_t part[4][256];
        memset(part, 0, sizeof part);
        count_part(src, n, part);
        add_parts(part, hist);
        return n;
    }
    for (unsigned s = low; s <= high; s++) hist[s] += !hist[s];
    return counted + missed;
}

static int put_plane(job *j, unsigned plane, const uint8_t *src, size_t n, choice *c)
{
    uint32_t hist[256];
    size_t counted = count_sample(src, n, hist);

    c->mode = probe(src, n, hist, counted);
    c->table = 0;
    if (c->mode == TSK_MODE_CONST) return put_bytes(j, src, 1);
    if (c->mode == TSK_MODE_ZSTD) {
        size_t room = j->cap - j->pos;
        ptrdiff_t used = j->compress(j->ctx, src, n, j->out + j->pos, room < n ? room : n);
        if (used < 0) return TSK_CALLBACK;
        j->pos += (size_t)used;
        if (used > 0) return TSK_OK;
    }
    if (c->mode == TSK_MODE_HUFFMAN) {
        tsk_encoder *e = &j->scratch->encoders[plane];
        counted = cover(j, src, n, hist, counted);
        double bits = choose_code(j, e, hist, counted, n);
        if (bits / 8 + (double)((n / TSK_SEGMENT + 1) * (TSK_SEGMENT_HEAD + 5)) < (double)(n - n / 64)) {
            c->table = (uint8_t)e->id;
            return put_huffman(j, e, src, n);
        }
    }
    c->mode = TSK_MODE_RAW;
    return put_bytes(j, src, n);
}

static int put_block(job *j, const tsk_form *form, const uint8_t *src, const uint8_t *base, size_t n)
{
    const unsigned word = form->word;
    const size_t words = n / word, stride = (words + 63) & ~(size_t)63;
    uint8_t *planes[TSK_MAX_WORD];
    const uint8_t *tail = src + words * word;
    size_t descriptors = j->pos, size = (size_t)word * TSK_DESCRIPTOR;

    if (form->map >= TSK_DELTA_INT) {
        j->isa->delta(src, base, words, word, form->map == TSK_DELTA_FLOAT, j->scratch->words);
        src = j->scratch->words;
    }
    for (unsigned p = 0; p < word; p++) planes[p] = j->scratch->planes + p * stride;
    if (word == 1) planes[0] = (uint8_t *)src; /* one plane: the words themselves, only read */
    else j->isa->split(src, words, word, form->map == TSK_ROTATE, planes);

    if (size > j->cap - j->pos) return TSK_NO_GAIN;
    j->pos += size;
    for (unsigned p = 0; p < word; p++) {
        uint8_t *descriptor = j->out + descriptors + (size_t)p * TSK_DESCRIPTOR;
        size_t from = j->pos;
        choice c;
        int rc = put_plane(j, p, planes[p], words, &c);
        if (rc) return rc;
        descriptor[0] = (uint8_t)c.mode;
        descriptor[1] = c.table;
        tsk_store32(descriptor + 2, (uint32_t)(j->pos - from));
    }
    return put_bytes(j, tail, n - words * word);
}

ptrdiff_t tsk_encode(tsk_scratch *s, const tsk_form *form, const uint8_t *plain, size_t n,
                     const uint8_t *base, uint8_t *out, size_t cap, uint8_t *head, size_t *head_len,
                     uint64_t *ends, tsk_zstd_fn compress, void *ctx)
{
    job j = {.scratch = s, .isa = tsk_isa_current(), .out = out, .head = head, .cap = cap,
             .compress = compress, .ctx = ctx};
    for (unsigned p = 0; p < TSK_MAX_WORD; p++) s->encoders[p].id = -1;
    for (size_t b = 0, at = 0; at < n; b++, at += form->block_size) {
        size_t len = n - at < form->block_size ? n - at : form->block_size;
        int rc = put_block(&j, form, plain + at, base ? base + at : NULL, len);
        if (rc) return rc;
        ends[b] = j.pos;
    }
    *head_len = j.head_len;
    return (ptrdiff_t)j.pos;
}
