/* Decoding: every length is checked before it is used, whatever head, ends and payload hold. */
#include "internal.h"

typedef struct {
    enum tsk_mode mode;
    unsigned table;
    const uint8_t *data; /* stored bytes; for const and zstd the plane's symbols once they are there */
    const uint8_t *end;
} plane;

typedef struct {
    tsk_scratch *scratch;
    const tsk_isa *isa;
    const tsk_form *form;
    const uint8_t *tables[TSK_MAX_TABLES];
    size_t n_tables;
    const uint8_t *limit; /* end of the payload: no load goes beyond */
    tsk_zstd_fn decompress;
    void *ctx;
} job;

static int read_head(job *j, const uint8_t *head, size_t n)
{
    size_t at = 0;
    if (n > TSK_MAX_HEAD) return TSK_BAD_HEAD;
    while (at < n) {
        size_t bytes = tsk_table_read(head + at, n - at, NULL);
        if (!bytes || j->n_tables == TSK_MAX_TABLES) return TSK_BAD_HEAD;
        j->tables[j->n_tables++] = head + at;
        at += bytes;
    }
    return TSK_OK;
}

/* Descriptors: modes and lengths, which with the tail add up to the block's payload. */
static int read_planes(const job *j, const uint8_t *payload, size_t n, size_t words, size_t tail, plane *p)
{
    const unsigned word = j->form->word;
    size_t at = (size_t)word * TSK_DESCRIPTOR;
    if (n < at + tail) return TSK_BAD_BLOCK;
    for (unsigned i = 0; i < word; i++) {
        const uint8_t *d = payload + (size_t)i * TSK_DESCRIPTOR;
        size_t length = tsk_load32(d + 2);
        if (length > n - tail - at) return TSK_BAD_BLOCK;
        p[i] = (plane){(enum tsk_mode)d[0], d[1], payload + at, payload + at + length};
        at += length;
        switch (d[0]) {
        case TSK_MODE_RAW:
            if (length != words || d[1]) return TSK_BAD_BLOCK;
            break;
        case TSK_MODE_CONST:
            if (length != 1 || !words || d[1]) return TSK_BAD_BLOCK;
            break;
        case TSK_MODE_ZSTD:
            if (!length || !words || d[1]) return TSK_BAD_BLOCK;
            break;
        case TSK_MODE_HUFFMAN:
            if (!words || d[1] >= j->n_tables) return TSK_BAD_BLOCK;
            break;
        default:
            return TSK_BAD_BLOCK;
        }
    }
    return at + tail == n ? TSK_OK : TSK_BAD_BLOCK;
}

static int fill_planes(const job *j, plane *p, uint8_t *const *store, size_t words)
{
    for (unsigned i = 0; i < j->form->word; i++) {
        if (p[i].mode == TSK_MODE_CONST) {
            memset(store[i], p[i].data[0], words < TSK_SEGMENT ? words : TSK_SEGMENT);
        } else if (p[i].mode == TSK_MODE_ZSTD) {
            ptrdiff_t got = j->decompress(j->ctx, p[i].data, (size_t)(p[i].end - p[i].data), store[i], words);
            if (got < 0) return TSK_CALLBACK;
            if ((size_t)got != words) return TSK_BAD_BLOCK;
            p[i].data = store[i];
        } else if (p[i].mode == TSK_MODE_HUFFMAN && j->scratch->decoders[i].id != (int)p[i].table) {
            tsk_code code;
            const uint8_t *table = j->tables[p[i].table];
            tsk_table_read(table, TSK_MAX_HEAD, code.len); /* its form was checked by read_head */
            tsk_code_assign(&code);
            tsk_decoder_build(&j->scratch->decoders[i], &code);
            j->scratch->decoders[i].id = (int)p[i].table;
        }
    }
    return TSK_OK;
}

/* The next segment of a Huffman plane: u16 lengths of its five streams, then the streams. */
static int read_segment(const job *j, const tsk_decoder *d, plane *p, uint8_t *dst, size_t n)
{
    const uint8_t *at[TSK_STREAMS + 1];
    if (p->end - p->data < TSK_SEGMENT_HEAD) return TSK_BAD_BLOCK;
    at[0] = p->data + TSK_SEGMENT_HEAD;
    for (unsigned k = 0; k < TSK_STREAMS; k++) {
        size_t length = tsk_load16(p->data + 2 * k);
        if (length > (size_t)(p->end - at[k])) return TSK_BAD_BLOCK;
        at[k + 1] = at[k] + length;
    }
    p->data = at[TSK_STREAMS];
    return j->isa->decode_segment(d, at, j->limit, dst, n);
}

static int read_block(const job *j, const uint8_t *payload, size_t payload_len, uint8_t *out, size_t n,
                      const uint8_t *base)
{
    const tsk_form *form = j->form;
    const unsigned word = form->word;
    const size_t words = n / word, tail = n % word, stride = (words + 127) & ~(size_t)63;
    plane p[TSK_MAX_WORD];
    uint8_t *store[TSK_MAX_WORD];
    const uint8_t *symbols[TSK_MAX_WORD];

    int rc = read_planes(j, payload, payload_len, words, tail, p);
    for (unsigned i = 0; i < word; i++) store[i] = j->scratch->planes + i * stride;
    if (!rc) rc = fill_planes(j, p, store, words);
    for (size_t at = 0; !rc && at < words; at += TSK_SEGMENT) {
        size_t m = words - at < TSK_SEGMENT ? words - at : TSK_SEGMENT;
        uint8_t *dst = out + at * word;
        for (unsigned i = 0; i < word && !rc; i++) {
            symbols[i] = p[i].mode == TSK_MODE_RAW || p[i].mode == TSK_MODE_ZSTD ? p[i].data + at : store[i];
            if (p[i].mode != TSK_MODE_HUFFMAN) continue;
            symbols[i] = word == 1 ? dst : store[i];
            rc = read_segment(j, &j->scratch->decoders[i], &p[i], word == 1 ? dst : store[i], m);
        }
        if (rc) break;
        j->isa->merge(symbols, m, word, form->map == TSK_ROTATE, dst);
        if (form->map >= TSK_DELTA_INT)
            j->isa->undelta(dst, base + at * word, m, word, form->map == TSK_DELTA_FLOAT);
    }
    for (unsigned i = 0; i < word && !rc; i++)
        if (p[i].mode == TSK_MODE_HUFFMAN && p[i].data != p[i].end) rc = TSK_BAD_BLOCK;
    if (!rc && tail) memcpy(out + words * word, payload + payload_len - tail, tail);
    return rc;
}

int tsk_decode(tsk_scratch *s, const tsk_form *form, const uint8_t *head, size_t head_len,
               const uint64_t *ends, size_t n_ends, const uint8_t *payload, size_t payload_len,
               uint8_t *out, size_t n, const uint8_t *base, tsk_zstd_fn decompress, void *ctx,
               size_t *bad_block)
{
    job j = {.scratch = s, .isa = tsk_isa_current(), .form = form, .limit = payload + payload_len,
             .decompress = decompress, .ctx = ctx};
    const size_t blocks = (n + form->block_size - 1) / form->block_size;
    size_t from = 0;

    *bad_block = 0;
    int rc = read_head(&j, head, head_len);
    if (rc) return rc;
    if (n_ends != blocks || (blocks ? ends[blocks - 1] : 0) != payload_len) return TSK_BAD_ENDS;
    for (unsigned i = 0; i < form->word; i++) s->decoders[i].id = -1;
    for (size_t b = 0; b < blocks; b++) {
        size_t at = b * form->block_size;
        *bad_block = b;
        if (ends[b] < from || ends[b] > payload_len) return TSK_BAD_ENDS;
        rc = read_block(&j, payload + from, (size_t)ends[b] - from, out + at,
                        n - at < form->block_size ? n - at : form->block_size, base ? base + at : NULL);
        if (rc) return rc;
        from = (size_t)ends[b];
    }
    return TSK_OK;
}
