/* Huffman codes of at most 11 bits: lengths, canonical codes, their stored form, the decoding table. */
#include <stdlib.h>

#include "internal.h"

/* Sort keys: count in the high bits, symbol in the low eight, so that equal counts order by symbol. */
static int compare_keys(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Package-merge (Larmore and Hirschberg, 1990): optimal lengths under the limit. Level by level the
 * cheapest 2k-2 of {symbols} + {pairs of the level before}; a symbol's length is the number of levels at
 * which it is among those taken. `count` has at least two nonzero entries. */
void tsk_code_lengths(const uint32_t count[256], uint8_t len[256])
{
    uint64_t leaf[256], level[2][512];
    uint16_t leaves_before[TSK_LOG][513]; /* [i]: symbols among the first i items of the level */
    size_t k = 0, m;

    memset(len, 0, 256);
    for (unsigned s = 0; s < 256; s++)
        if (count[s]) leaf[k++] = (uint64_t)count[s] << 8 | s;
    qsort(leaf, k, sizeof leaf[0], compare_keys);

    uint64_t *prev = level[0], *cur = level[1];
    for (size_t i = 0; i < k; i++) {
        prev[i] = leaf[i] >> 8;
        leaves_before[0][i] = (uint16_t)i;
    }
    leaves_before[0][k] = (uint16_t)k;
    m = k;
    for (unsigned l = 1; l < TSK_LOG; l++) {
        size_t packages = m / 2, i = 0, j = 0, t = 0;
        size_t want = k + packages < 2 * k - 2 ? k + packages : 2 * k - 2;
        for (; t < want; t++) {
            leaves_before[l][t] = (uint16_t)i;
            uint64_t package = j < packages ? prev[2 * j] + prev[2 * j + 1] : UINT64_MAX;
            if (i < k && leaf[i] >> 8 <= package) cur[t] = leaf[i++] >> 8;
            else { cur[t] = package; j++; }
        }
        leaves_before[l][t] = (uint16_t)i;
        m = want;
        uint64_t *swap = prev; prev = cur; cur = swap;
    }
    size_t take = 2 * k - 2;
    for (unsigned l = TSK_LOG; l-- > 0;) {
        size_t leaves = leaves_before[l][take];
        for (size_t i = 0; i < leaves; i++) len[leaf[i] & 255]++;
        take = 2 * (take - leaves);
    }
}

static uint16_t reversed(unsigned code, unsigned bits)
{
    unsigned r = 0;
    for (unsigned i = 0; i < bits; i++) r |= (code >> i & 1) << (bits - 1 - i);
    return (uint16_t)r;
}

/* Canonical codes as in RFC 1951, 3.2.2, stored with their first bit lowest. */
void tsk_code_assign(tsk_code *code)
{
    unsigned of_length[TSK_LOG + 2] = {0}, next[TSK_LOG + 2] = {0};
    for (unsigned s = 0; s < 256; s++) of_length[code->len[s]]++;
    of_length[0] = 0;
    for (unsigned l = 1; l <= TSK_LOG; l++) next[l] = (next[l - 1] + of_length[l - 1]) << 1;
    for (unsigned s = 0; s < 256; s++)
        code->bits[s] = code->len[s] ? reversed(next[code->len[s]]++, code->len[s]) : 0;
}

/* u8 first symbol, u8 last symbol, then their lengths and of all between, four bits each, low half first. */
size_t tsk_table_write(const uint8_t len[256], uint8_t *dst)
{
    unsigned low = 0, high = 255;
    while (!len[low]) low++;
    while (!len[high]) high--;
    dst[0] = (uint8_t)low;
    dst[1] = (uint8_t)high;
    size_t bytes = (high - low + 2) / 2;
    memset(dst + 2, 0, bytes);
    for (unsigned s = low; s <= high; s++)
        dst[2 + (s - low) / 2] |= (uint8_t)(len[s] << 4 * ((s - low) & 1));
    return 2 + bytes;
}

size_t tsk_table_read(const uint8_t *src, size_t n, uint8_t *len)
{
    if (n < 3 || src[0] >= src[1]) return 0;
    unsigned low = src[0], symbols = src[1] - low + 1u, kraft = 0, l = 0;
    size_t bytes = 2 + (symbols + 1) / 2;
    if (n < bytes) return 0;
    if (len) memset(len, 0, 256);
    for (unsigned i = 0; i < symbols; i++) {
        l = src[2 + i / 2] >> 4 * (i & 1) & 15;
        if (l > TSK_LOG || (i == 0 && l == 0)) return 0;
        if (l) kraft += TSK_WINDOWS >> l;
        if (len) len[low + i] = (uint8_t)l;
    }
    if (l == 0 || kraft != TSK_WINDOWS) return 0;
    if ((symbols & 1) && src[bytes - 1] >> 4) return 0;
    return bytes;
}

/* Symbols ordered by length of code, those of l bits in order[from[l]] .. order[from[l + 1] - 1]. */
static void order_by_length(const tsk_code *code, unsigned from[TSK_LOG + 2], uint8_t order[256])
{
    unsigned at[TSK_LOG + 2];
    memset(from, 0, sizeof at);
    for (unsigned s = 0; s < 256; s++) from[code->len[s] + 1]++;
    for (unsigned l = 1; l <= TSK_LOG + 1; l++) from[l] += from[l - 1];
    memcpy(at, from, sizeof at);
    for (unsigned s = 0; s < 256; s++) order[at[code->len[s]]++] = (uint8_t)s;
}

/* The entry of window `index` when `bits` of it are known, by walking code after code. */
static uint64_t walk(const uint16_t *single, unsigned index, unsigned bits)
{
    uint64_t symbols = 0;
    unsigned count = 0, used = 0;
    while (count < 6) {
        unsigned s = single[index], l = s & 15;
        if (used + l > bits) break;
        symbols |= (uint64_t)(s >> 8) << 8 * count++;
        used += l;
        index >>= l;
    }
    return symbols << 16 | count << 8 | used;
}

/* `single` grows bit by bit: the windows of l bits are those of l - 1 bits twice, then the codes of l bits
 * take their one window each. multi[2^r + w] is the entry for r known bits w. The windows that begin with
 * one code of l bits lie 2^l apart, and their entries are its symbol before those of multi[2^(r - l) ..].
 * Seven symbols, one more than an entry takes, need a code of one bit: only then are entries walked. */
void tsk_decoder_build(tsk_decoder *d, const tsk_code *code)
{
    unsigned from[TSK_LOG + 2], shortest = 1;
    uint8_t order[256];
    uint64_t *const multi = d->multi;

    order_by_length(code, from, order);
    while (from[shortest] == from[shortest + 1]) shortest++;
    d->single[0] = 0;
    for (unsigned l = 1; l <= TSK_LOG; l++) {
        memcpy(d->single + (1u << (l - 1)), d->single, sizeof *d->single << (l - 1));
        for (unsigned i = from[l]; i < from[l + 1]; i++)
            d->single[code->bits[order[i]]] = (uint16_t)(order[i] << 8 | l);
    }
    multi[0] = multi[1] = 0;
    for (unsigned r = 1; r <= TSK_LOG; r++) {
        const size_t known = (size_t)1 << r;
        uint64_t *const level = multi + known;
        if (r < TSK_LOG && r + shortest > TSK_LOG) continue; /* no code leaves so many bits */
        memset(level, 0, known * sizeof *level);
        for (unsigned i = from[1]; i < from[r + 1]; i++) {
            const unsigned symbol = order[i], l = code->len[symbol];
            const uint64_t *rest = multi + (known >> l), own = (uint64_t)symbol << 16;
            uint64_t *entry = level + code->bits[symbol];
            for (size_t j = 0; j < known >> l; j++)
                entry[j << l] = (rest[j] >> 16) << 24 | own | ((rest[j] & 0x73f) + 0x100 + l);
        }
        for (unsigned w = 0; shortest == 1 && w < known; w++)
            if ((level[w] >> 8 & 7) == 7) level[w] = walk(d->single, w, r);
    }
}
