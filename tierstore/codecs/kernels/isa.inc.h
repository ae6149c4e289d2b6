/* The inner loops, compiled once for each instruction set: NAME(x) gives a function its suffix, ISA its
 * target attribute. They are plain C on purpose: compilers turn them into SIMD of the set's width. */

/* Near the end of the input the eight bytes are put together one by one; beyond it there are zeros. */
ISA static uint64_t NAME(load_careful)(const uint8_t *p, const uint8_t *limit)
{
    uint64_t v = 0;
    if (limit - p >= 8) return tsk_load64(p);
    for (int i = 0; p + i < limit; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

/* The end of one stream: code by code, so that not one symbol too many is written, until `out_end`; then
 * the stream must end within its last byte. `bit` is the position in the stream. */
ISA static int NAME(decode_tail)(const tsk_decoder *d, const uint8_t *start, const uint8_t *end, size_t bit,
                                 const uint8_t *limit, uint8_t *dst, const uint8_t *dst_end)
{
    const size_t bits = (size_t)(end - start) * 8;
    while (dst_end - dst >= 32 && bit <= bits && limit - (start + bit / 8) >= 8) {
        uint64_t v = tsk_load64(start + bit / 8) >> (bit & 7);
        for (unsigned i = 0; i < 5; i++) { /* 5 windows of 11 bits out of 57; at most 30 symbols */
            uint64_t e = d->multi[TSK_WINDOWS + (v & (TSK_WINDOWS - 1))];
            tsk_store64(dst, e >> 16);
            dst += (uint8_t)(e >> 8);
            v >>= e & 63;
            bit += e & 63;
        }
    }
    while (dst < dst_end) {
        if (bit > bits) return TSK_BAD_STREAM;
        uint64_t v = NAME(load_careful)(start + bit / 8, limit) >> (bit & 7);
        for (unsigned i = 0; i < 5 && dst < dst_end; i++) {
            unsigned one = d->single[v & (TSK_WINDOWS - 1)];
            *dst++ = (uint8_t)(one >> 8);
            v >>= one & 15;
            bit += one & 15;
        }
    }
    return (bit + 7) / 8 == (size_t)(end - start) ? TSK_OK : TSK_BAD_STREAM;
}

/* For stream k: its input, output and state are i##k, o##k and s##k of decode_segment. */
#if defined(ISA_BMI2) && !defined(__SANITIZE_ADDRESS__)
/* What the C below says, in seven instructions; compilers run out of registers and take eleven. */
#define STEP(k)                                                                                              \
    __asm__ volatile("bzhi %[log], %[s], %%rcx\n\t"                                                          \
                     "movq (%[t], %%rcx, 8), %%rax\n\t"                                                      \
                     "movq 2(%[t], %%rcx, 8), %%rcx\n\t"                                                     \
                     "shrx %%rax, %[s], %[s]\n\t"                                                            \
                     "movzbl %%ah, %%eax\n\t"                                                                \
                     "movq %%rcx, (%[o])\n\t"                                                                \
                     "addq %%rax, %[o]"                                                                      \
                     : [s] "+r"(s##k), [o] "+r"(o##k)                                                        \
                     : [t] "r"(multi), [log] "r"((uint64_t)TSK_LOG)                                          \
                     : "rax", "rcx", "cc", "memory");
#else
#define STEP(k)                                                                                              \
    {                                                                                                        \
        uint64_t e = multi[s##k & (TSK_WINDOWS - 1)];                                                        \
        s##k >>= e & 63;                                                                                     \
        tsk_store64(o##k, e >> 16);                                                                          \
        o##k += (uint8_t)(e >> 8);                                                                           \
    }
#endif
#define REFILL(k)                                                                                            \
    {                                                                                                        \
        unsigned used = (unsigned)__builtin_clzll(s##k);                                                     \
        i##k += used >> 3;                                                                                   \
        s##k = (tsk_load64(i##k) | marker) >> (used & 7);                                                    \
    }
#define ALL(x) x(0) x(1) x(2) x(3) x(4)
#define BOUND(k)                                                                                             \
    r = (end[k] - o##k - 2) / 30;                                                                            \
    rounds = r < rounds ? r : rounds;                                                                        \
    r = (limit - i##k - 15) / 7;                                                                             \
    rounds = r < rounds ? r : rounds;
#define POSITION(k) bit[k] = (size_t)(i##k - at[k]) * 8 + (size_t)__builtin_clzll(s##k);

/* Five streams in lockstep. The state of a stream is the next bits, lowest first, under a marker bit that
 * starts at bit 63: its leading zeros count what was consumed since the last load, so a refill is branch
 * free. A round of five lookups consumes at most 55 of at least 56 bits and writes at most 30 symbols; as
 * many rounds run unchecked as the worst case allows for every stream, then the count is taken again. */
ISA static int NAME(decode_segment)(const tsk_decoder *d, const uint8_t *const at[TSK_STREAMS + 1],
                                    const uint8_t *limit, uint8_t *dst, size_t n)
{
    const uint64_t marker = (uint64_t)1 << 63, *const multi = d->multi + TSK_WINDOWS;
    const uint8_t *i0 = at[0], *i1 = at[1], *i2 = at[2], *i3 = at[3], *i4 = at[4];
    const size_t each = (n + TSK_STREAMS - 1) / TSK_STREAMS;
    uint8_t *begin[TSK_STREAMS], *end[TSK_STREAMS];
    size_t bit[TSK_STREAMS] = {0};

    for (unsigned k = 0; k < TSK_STREAMS; k++) {
        begin[k] = dst + (each * k < n ? each * k : n);
        end[k] = begin[k] + tsk_stream_symbols(n, k);
    }
    uint8_t *o0 = begin[0], *o1 = begin[1], *o2 = begin[2], *o3 = begin[3], *o4 = begin[4];
    if (limit - at[4] >= 16 && limit - at[0] >= 16) {
        uint64_t s0 = tsk_load64(i0) | marker, s1 = tsk_load64(i1) | marker, s2 = tsk_load64(i2) | marker,
                 s3 = tsk_load64(i3) | marker, s4 = tsk_load64(i4) | marker;
        for (;;) {
            ptrdiff_t rounds = PTRDIFF_MAX, r;
            ALL(BOUND)
            if (rounds < 1) break;
            do {
                ALL(STEP) ALL(STEP) ALL(STEP) ALL(STEP) ALL(STEP)
                ALL(REFILL)
            } while (--rounds);
        }
        ALL(POSITION)
    }
    uint8_t *const out[TSK_STREAMS] = {o0, o1, o2, o3, o4};
    for (unsigned k = 0; k < TSK_STREAMS; k++) {
        int rc = NAME(decode_tail)(d, at[k], at[k + 1], bit[k], limit, out[k], end[k]);
        if (rc) return rc;
    }
    return TSK_OK;
}

#undef POSITION
#undef BOUND
#undef ALL
#undef REFILL
#undef STEP

#ifndef OWN_ENCODE_STREAM
ISA static size_t NAME(encode_stream)(const tsk_encoder *e, const uint8_t *src, size_t n, uint8_t *dst)
{
    const uint8_t *const start = dst;
    const uint32_t *pairs = e->pairs;
    uint64_t bits = 0;
    size_t held = 0, i = 0;

    for (; i + 4 <= n; i += 4) {
        uint32_t v = tsk_load32(src + i), a = pairs[v & 0xffff], b = pairs[v >> 16];
        uint64_t codes = (uint64_t)(b >> 8) << (a & 31) | a >> 8;
        TSK_PUT(codes, (a & 31) + (b & 31))
    }
    for (; i < n; i++) TSK_PUT(e->code.bits[src[i]], e->code.len[src[i]])
    dst += (held + 7) / 8;
    return (size_t)(dst - start);
}

ISA static void NAME(fill_pairs)(tsk_encoder *e)
{
    uint32_t len[256], bits[256];
    unsigned low = e->low, high = e->high;
    for (unsigned s = low; s <= high; s++) {
        len[s] = e->code.len[s];
        bits[s] = e->code.bits[s];
    }
    for (unsigned second = low; second <= high; second++) {
        uint32_t *row = e->pairs + (second << 8), b = bits[second], l = len[second];
        for (unsigned first = low; first <= high; first++)
            row[first] = (bits[first] | b << len[first]) << 8 | (len[first] + l);
    }
}
#endif

ISA static void NAME(bounds)(const uint8_t *src, size_t n, unsigned *low, unsigned *high)
{
    uint8_t least = 255, most = 0;
    for (size_t i = 0; i < n; i++) {
        least = src[i] < least ? src[i] : least;
        most = src[i] > most ? src[i] : most;
    }
    *low = least;
    *high = most;
}

#define ROTL(v, w) ((v) << 1 | (v) >> (8 * (w) - 1))
#define ROTR(v, w) ((v) >> 1 | (v) << (8 * (w) - 1))

#define SPLIT_MERGE(T, W)                                                                                    \
    ISA static void NAME(split##W)(const uint8_t *restrict src, size_t n, int rotate, uint8_t *const *p)     \
    {                                                                                                        \
        for (unsigned j = 0; j < W; j++) {                                                                   \
            uint8_t *restrict plane = p[j];                                                                  \
            unsigned shift = 8 * j;                                                                          \
            if (rotate)                                                                                      \
                for (size_t i = 0; i < n; i++) {                                                             \
                    T v;                                                                                     \
                    memcpy(&v, src + i * W, W);                                                              \
                    plane[i] = (uint8_t)((T)ROTL(v, W) >> shift);                                            \
                }                                                                                            \
            else                                                                                             \
                for (size_t i = 0; i < n; i++) {                                                             \
                    T v;                                                                                     \
                    memcpy(&v, src + i * W, W);                                                              \
                    plane[i] = (uint8_t)(v >> shift);                                                        \
                }                                                                                            \
        }                                                                                                    \
    }

SPLIT_MERGE(uint16_t, 2)
SPLIT_MERGE(uint32_t, 4)
SPLIT_MERGE(uint64_t, 8)
#undef SPLIT_MERGE

ISA static void NAME(merge2)(const uint8_t *const *p, size_t n, int rotate, uint8_t *restrict dst)
{
    const uint8_t *restrict a = p[0], *restrict b = p[1];
    if (rotate)
        for (size_t i = 0; i < n; i++) {
            uint16_t v = (uint16_t)(a[i] | b[i] << 8);
            tsk_store16(dst + 2 * i, (uint16_t)ROTR(v, 2));
        }
    else
        for (size_t i = 0; i < n; i++) tsk_store16(dst + 2 * i, (uint16_t)(a[i] | b[i] << 8));
}

ISA static void NAME(merge4)(const uint8_t *const *p, size_t n, int rotate, uint8_t *restrict dst)
{
    const uint8_t *restrict a = p[0], *restrict b = p[1], *restrict c = p[2], *restrict d = p[3];
    if (rotate)
        for (size_t i = 0; i < n; i++) {
            uint32_t v = (uint32_t)a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 | (uint32_t)d[i] << 24;
            tsk_store32(dst + 4 * i, ROTR(v, 4));
        }
    else
        for (size_t i = 0; i < n; i++)
            tsk_store32(dst + 4 * i, (uint32_t)a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 |
                                         (uint32_t)d[i] << 24);
}

ISA static void NAME(merge8)(const uint8_t *const *p, size_t n, int rotate, uint8_t *restrict dst)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t v = 0;
        for (unsigned j = 0; j < 8; j++) v |= (uint64_t)p[j][i] << 8 * j;
        tsk_store64(dst + 8 * i, rotate ? ROTR(v, 8) : v);
    }
}

ISA static void NAME(split)(const uint8_t *src, size_t n, unsigned word, int rotate, uint8_t *const *planes)
{
    if (word == 2) NAME(split2)(src, n, rotate, planes);
    else if (word == 4) NAME(split4)(src, n, rotate, planes);
    else NAME(split8)(src, n, rotate, planes);
}

ISA static void NAME(merge)(const uint8_t *const *planes, size_t n, unsigned word, int rotate, uint8_t *dst)
{
    if (word == 1) { if (planes[0] != dst) memcpy(dst, planes[0], n); }
    else if (word == 2) NAME(merge2)(planes, n, rotate, dst);
    else if (word == 4) NAME(merge4)(planes, n, rotate, dst);
    else NAME(merge8)(planes, n, rotate, dst);
}

/* Floats in the order of their values: the magnitude's bits flip where the sign is set. Its own inverse. */
#define ORDERED(v, w, f) ((v) ^ (((0 - ((v) >> (8 * (w) - 1))) & (f)) >> 1))

/* `mask` is all ones for floats, zero for integers. */
#define DELTA(T, W)                                                                                          \
    ISA static void NAME(delta##W)(const uint8_t *restrict src, const uint8_t *restrict base, size_t n,      \
                                   T mask, uint8_t *restrict dst)                                            \
    {                                                                                                        \
        for (size_t i = 0; i < n; i++) {                                                                     \
            T x, b, d, z;                                                                                    \
            memcpy(&x, src + i * W, W);                                                                      \
            memcpy(&b, base + i * W, W);                                                                     \
            d = (T)((T)ORDERED(x, W, mask) - (T)ORDERED(b, W, mask));                                        \
            z = (T)((T)(d << 1) ^ (T)(0 - (T)(d >> (8 * W - 1))));                                           \
            memcpy(dst + i * W, &z, W);                                                                      \
        }                                                                                                    \
    }                                                                                                        \
    ISA static void NAME(undelta##W)(uint8_t *restrict words, const uint8_t *restrict base, size_t n,        \
                                     T mask)                                                                 \
    {                                                                                                        \
        for (size_t i = 0; i < n; i++) {                                                                     \
            T z, b, x;                                                                                       \
            memcpy(&z, words + i * W, W);                                                                    \
            memcpy(&b, base + i * W, W);                                                                     \
            x = (T)((T)ORDERED(b, W, mask) + (T)((T)(z >> 1) ^ (T)(0 - (z & 1))));                           \
            x = (T)ORDERED(x, W, mask);                                                                      \
            memcpy(words + i * W, &x, W);                                                                    \
        }                                                                                                    \
    }

DELTA(uint8_t, 1)
DELTA(uint16_t, 2)
DELTA(uint32_t, 4)
DELTA(uint64_t, 8)
#undef DELTA
#undef ORDERED
#undef ROTL
#undef ROTR

ISA static void NAME(delta)(const uint8_t *src, const uint8_t *base, size_t n, unsigned word, int is_float,
                            uint8_t *dst)
{
    uint64_t mask = is_float ? UINT64_MAX : 0;
    if (word == 1) NAME(delta1)(src, base, n, (uint8_t)mask, dst);
    else if (word == 2) NAME(delta2)(src, base, n, (uint16_t)mask, dst);
    else if (word == 4) NAME(delta4)(src, base, n, (uint32_t)mask, dst);
    else NAME(delta8)(src, base, n, mask, dst);
}

ISA static void NAME(undelta)(uint8_t *words, const uint8_t *base, size_t n, unsigned word, int is_float)
{
    uint64_t mask = is_float ? UINT64_MAX : 0;
    if (word == 1) NAME(undelta1)(words, base, n, (uint8_t)mask);
    else if (word == 2) NAME(undelta2)(words, base, n, (uint16_t)mask);
    else if (word == 4) NAME(undelta4)(words, base, n, (uint32_t)mask);
    else NAME(undelta8)(words, base, n, mask);
}

const tsk_isa NAME(tsk_isa) = {
    ISA_NAME, NAME(decode_segment), NAME(encode_stream), NAME(bounds), NAME(fill_pairs),
    NAME(split), NAME(merge), NAME(delta), NAME(undelta),
};
