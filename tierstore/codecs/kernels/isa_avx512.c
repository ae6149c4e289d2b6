#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define ISA __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,bmi,bmi2,lzcnt")))
#define ISA_BMI2
#define ISA_NAME "avx512"
#define NAME(x) x##_avx512
#define OWN_ENCODE_STREAM

typedef struct {
    __m512i len[4], low[4], high[4]; /* length, bits 0-7 and bits 8-10 of each symbol's code */
} code_bytes;

/* table[symbol] for 64 symbols out of a table of 64, 128 or 256 bytes. */
ISA static inline __attribute__((always_inline)) __m512i lookup(const __m512i table[4], __m512i symbols,
                                                                unsigned quarters)
{
    if (quarters == 1) return _mm512_permutexvar_epi8(symbols, table[0]);
    __m512i a = _mm512_permutex2var_epi8(table[0], symbols, table[1]);
    if (quarters == 2) return a;
    __m512i b = _mm512_permutex2var_epi8(table[2], symbols, table[3]);
    return _mm512_mask_mov_epi8(a, _mm512_movepi8_mask(symbols), b);
}

/* Pieces of 2n bits, each with its length in n.. bits of `len`: neighbours become one, first one lowest. */
ISA static inline __m512i join16(__m512i code, __m512i len)
{
    __m512i first = _mm512_and_si512(code, _mm512_set1_epi32(0xffff));
    __m512i shift = _mm512_and_si512(len, _mm512_set1_epi32(0xffff));
    return _mm512_or_si512(first, _mm512_sllv_epi32(_mm512_srli_epi32(code, 16), shift));
}

ISA static inline __m512i join32(__m512i code, __m512i len)
{
    __m512i first = _mm512_and_si512(code, _mm512_set1_epi64(0xffffffff));
    __m512i shift = _mm512_and_si512(len, _mm512_set1_epi64(0xffffffff));
    return _mm512_or_si512(first, _mm512_sllv_epi64(_mm512_srli_epi64(code, 32), shift));
}

/* The codes of 8 symbols, widened to 16 bits and in each 64-bit lane joined to those of four symbols. */
ISA static inline void join_four(__m512i *code, __m512i *len)
{
    __m512i pairs = join16(*code, *len), pair_len = _mm512_madd_epi16(*len, _mm512_set1_epi16(1));
    *code = join32(pairs, pair_len);
    *len = _mm512_add_epi64(_mm512_and_si512(pair_len, _mm512_set1_epi64(0xffffffff)),
                            _mm512_srli_epi64(pair_len, 32));
}

/* The bits of 64 symbols as 8 pieces of 8 symbols, or as 16 pieces of 4 when one of 8 has more than 56 bits
 * (what fits beside 7 held bits). Returns the number of pieces. */
ISA static inline __attribute__((always_inline)) unsigned
gather_pieces(const code_bytes *t, __m512i symbols, unsigned quarters, uint64_t piece[16], uint64_t length[16])
{
    const __m512i zero = _mm512_setzero_si512();
    __m512i len = lookup(t->len, symbols, quarters);
    __m512i low = lookup(t->low, symbols, quarters), high = lookup(t->high, symbols, quarters);
    /* Within each 128-bit lane `a` has its first 8 symbols, `b` the last 8. */
    __m512i a = _mm512_unpacklo_epi8(low, high), a_len = _mm512_unpacklo_epi8(len, zero);
    __m512i b = _mm512_unpackhi_epi8(low, high), b_len = _mm512_unpackhi_epi8(len, zero);
    join_four(&a, &a_len);
    join_four(&b, &b_len);
    __m512i first = _mm512_unpacklo_epi64(a, b), first_len = _mm512_unpacklo_epi64(a_len, b_len);
    __m512i second = _mm512_unpackhi_epi64(a, b), both_len = _mm512_add_epi64(
        first_len, _mm512_unpackhi_epi64(a_len, b_len));
    if (!_mm512_cmpgt_epu64_mask(both_len, _mm512_set1_epi64(56))) {
        _mm512_storeu_si512(piece, _mm512_or_si512(first, _mm512_sllv_epi64(second, first_len)));
        _mm512_storeu_si512(length, both_len);
        return 8;
    }
    const __m512i order = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0); /* a0 a1 b0 b1 of each lane */
    const __m512i order2 = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    _mm512_storeu_si512(piece, _mm512_permutex2var_epi64(a, order, b));
    _mm512_storeu_si512(piece + 8, _mm512_permutex2var_epi64(a, order2, b));
    _mm512_storeu_si512(length, _mm512_permutex2var_epi64(a_len, order, b_len));
    _mm512_storeu_si512(length + 8, _mm512_permutex2var_epi64(a_len, order2, b_len));
    return 16;
}

/* `quarters` of 64 symbols from e->low on have codes. */
ISA static inline __attribute__((always_inline)) size_t
encode_span(const tsk_encoder *e, const uint8_t *src, size_t n, uint8_t *dst, unsigned quarters)
{
    const uint8_t *const start = dst;
    const unsigned shift = quarters == 4 ? 0 : e->low;
    uint8_t len[256], low[256], high[256];
    code_bytes t;
    uint64_t bits = 0, piece[16], length[16];
    size_t held = 0, i = 0;

    for (unsigned s = 0; s < 64 * quarters; s++) {
        unsigned code = e->code.bits[(s + shift) & 255];
        len[s] = e->code.len[(s + shift) & 255];
        low[s] = (uint8_t)code;
        high[s] = (uint8_t)(code >> 8);
    }
    for (unsigned q = 0; q < quarters; q++) {
        t.len[q] = _mm512_loadu_si512(len + 64 * q);
        t.low[q] = _mm512_loadu_si512(low + 64 * q);
        t.high[q] = _mm512_loadu_si512(high + 64 * q);
    }
    const __m512i from = _mm512_set1_epi8((char)shift);
    for (; i + 64 <= n; i += 64) {
        __m512i symbols = _mm512_sub_epi8(_mm512_loadu_si512(src + i), from);
        unsigned pieces = gather_pieces(&t, symbols, quarters, piece, length);
        for (unsigned k = 0; k < 8; k++) TSK_PUT(piece[k], length[k])
        if (pieces == 16)
            for (unsigned k = 8; k < 16; k++) TSK_PUT(piece[k], length[k])
    }
    for (; i < n; i++) TSK_PUT(e->code.bits[src[i]], e->code.len[src[i]])
    dst += (held + 7) / 8;
    return (size_t)(dst - start);
}

/* As the portable one, with codes looked up and joined 64 at a time, so that the chain of shifts through
 * the held bits has one link for 4 or 8 symbols. */
ISA static size_t encode_stream_avx512(const tsk_encoder *e, const uint8_t *src, size_t n, uint8_t *dst)
{
    const unsigned span = e->high - e->low;
    if (span < 64) return encode_span(e, src, n, dst, 1);
    if (span < 128) return encode_span(e, src, n, dst, 2);
    return encode_span(e, src, n, dst, 4);
}

ISA static void fill_pairs_avx512(tsk_encoder *e) { (void)e; /* not needed: codes are looked up one by one */ }

#include "isa.inc.h"
#endif
