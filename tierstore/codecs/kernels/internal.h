/* What the kernel files share: the format's constants, tables, and the operations of an instruction set. */
#ifndef TIERSTORE_KERNELS_INTERNAL_H
#define TIERSTORE_KERNELS_INTERNAL_H

#include <string.h>

#include "kernels.h"

#if !defined(__GNUC__)
#error "these kernels need GCC or Clang; without them tierstore uses numpy"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "these kernels are for little-endian machines; elsewhere tierstore uses numpy"
#endif

#define TSK_LOG 11                       /* longest code, bits */
#define TSK_WINDOWS (1u << TSK_LOG)
#define TSK_STREAMS 5
#define TSK_SEGMENT ((size_t)1 << 16)    /* symbols coded together */
#define TSK_SEGMENT_HEAD (2 * TSK_STREAMS)
#define TSK_MAX_TABLES 255
#define TSK_DESCRIPTOR 6                 /* bytes: u8 mode, u8 table, u32 length */
/* One segment at TSK_LOG bits a symbol, its head, and what 8-byte stores may write beyond. */
#define TSK_SEGMENT_BOUND (TSK_SEGMENT * TSK_LOG / 8 + TSK_SEGMENT_HEAD + 64)

enum tsk_mode { TSK_MODE_RAW = 0, TSK_MODE_CONST = 1, TSK_MODE_ZSTD = 2, TSK_MODE_HUFFMAN = 3 };

typedef struct {
    uint8_t len[256];   /* 0: no code */
    uint16_t bits[256]; /* first bit of the code lowest */
} tsk_code;

/* multi[2048 + window]: bits 0-5 bits used, bits 8-10 count of symbols (1 to 6), bits 16.. the symbols.
 * The lower half holds the same for shorter windows and is used only while the table is built.
 * single[window]: bits 0-3 length of the first code, bits 8-15 its symbol. */
typedef struct {
    uint64_t multi[2 * TSK_WINDOWS];
    uint16_t single[TSK_WINDOWS];
    int id; /* index in the head, -1: none */
} tsk_decoder;

/* pairs[first | second << 8]: bits 0-7 length, bits 8-29 both codes. */
typedef struct {
    tsk_code code;
    unsigned low, high; /* every symbol with a code is in [low, high] */
    int id;
    uint32_t *pairs;
} tsk_encoder;

typedef struct {
    const char *name;
    /* n symbols from five streams; `at` are their starts, at[5] the end of the last; reads stay below `limit`. */
    int (*decode_segment)(const tsk_decoder *d, const uint8_t *const at[TSK_STREAMS + 1],
                          const uint8_t *limit, uint8_t *dst, size_t n);
    /* Writes at most n * TSK_LOG / 8 + 16 bytes; returns the bytes used. */
    size_t (*encode_stream)(const tsk_encoder *e, const uint8_t *src, size_t n, uint8_t *dst);
    /* Smallest and largest of n > 0 symbols. */
    void (*bounds)(const uint8_t *src, size_t n, unsigned *low, unsigned *high);
    void (*fill_pairs)(tsk_encoder *e);
    void (*split)(const uint8_t *src, size_t words, unsigned word, int rotate, uint8_t *const *planes);
    void (*merge)(const uint8_t *const *planes, size_t words, unsigned word, int rotate, uint8_t *dst);
    void (*delta)(const uint8_t *src, const uint8_t *base, size_t words, unsigned word, int is_float,
                  uint8_t *dst);
    void (*undelta)(uint8_t *words, const uint8_t *base, size_t n, unsigned word, int is_float);
} tsk_isa;

extern const tsk_isa tsk_isa_generic;
#if defined(__x86_64__)
extern const tsk_isa tsk_isa_avx2, tsk_isa_avx512;
#endif
const tsk_isa *tsk_isa_current(void);

struct tsk_scratch {
    size_t block_size;
    uint8_t *planes;  /* block_size + 64: the planes of a block */
    uint8_t *words;   /* block_size + 64: a block's zigzag differences */
    uint8_t *segment; /* TSK_SEGMENT_BOUND */
    tsk_decoder *decoders; /* one for each plane */
    tsk_encoder encoders[TSK_MAX_WORD];
};

/* code.c */
void tsk_code_lengths(const uint32_t count[256], uint8_t len[256]);
void tsk_code_assign(tsk_code *code);
size_t tsk_table_write(const uint8_t len[256], uint8_t *dst);
void tsk_decoder_build(tsk_decoder *d, const tsk_code *code);
/* Bytes of the table at `src`, 0 when it is not well formed. `len` may be NULL. */
size_t tsk_table_read(const uint8_t *src, size_t n, uint8_t *len);

static inline uint64_t tsk_load64(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline uint32_t tsk_load32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint16_t tsk_load16(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline void tsk_store64(void *p, uint64_t v) { memcpy(p, &v, 8); }
static inline void tsk_store32(void *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void tsk_store16(void *p, uint16_t v) { memcpy(p, &v, 2); }

/* The five streams of n symbols hold ceil(n / 5) each, the last ones what is left. */
static inline size_t tsk_stream_symbols(size_t n, unsigned k)
{
    size_t each = (n + TSK_STREAMS - 1) / TSK_STREAMS, from = each * k;
    return from >= n ? 0 : (n - from < each ? n - from : each);
}

/* Append at most 56 bits to a stream: `bits` holds the `held` (at most 7) that are not yet whole bytes. */
#define TSK_PUT(value, bits_of_it)                                                                           \
    {                                                                                                        \
        bits |= (uint64_t)(value) << held;                                                                   \
        held += (bits_of_it);                                                                                \
        tsk_store64(dst, bits);                                                                              \
        dst += held >> 3;                                                                                    \
        bits >>= held & 56;                                                                                  \
        held &= 7;                                                                                           \
    }

#endif
