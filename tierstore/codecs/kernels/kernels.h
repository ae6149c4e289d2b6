/* Plane and delta kernels: plain bytes of one chunk <-> block payloads. No Python in here.
 *
 * The byte layout is normative in tierstore/format/SPEC-codecs.md. Every function takes its memory
 * from its caller, keeps no state between calls except in the scratch it is given, and is safe to call
 * from several threads with a scratch each.
 */
#ifndef TIERSTORE_KERNELS_H
#define TIERSTORE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define TSK_MAX_CHUNK ((size_t)1 << 24)
#define TSK_MAX_HEAD ((size_t)1 << 15)
#define TSK_MAX_BLOCKS ((size_t)1 << 18) /* the largest chunk in the smallest blocks */
#define TSK_MAX_WORD 8

/* What happens to a word before it is split into byte planes. */
enum tsk_map { TSK_PLAIN = 0, TSK_ROTATE = 1, TSK_DELTA_INT = 2, TSK_DELTA_FLOAT = 3 };

enum tsk_status {
    TSK_OK = 0,
    TSK_NO_GAIN = -1,        /* encode: the payload would not fit into `cap` */
    TSK_CALLBACK = -2,       /* the zstd callback failed and left its own error behind */
    TSK_NO_MEMORY = -3,
    TSK_BAD_HEAD = -4,       /* decode: a code table is not well formed */
    TSK_BAD_ENDS = -5,       /* decode: block ends decrease or do not cover the payload */
    TSK_BAD_BLOCK = -6,      /* decode: descriptors and lengths of a block disagree */
    TSK_BAD_STREAM = -7,     /* decode: a Huffman stream does not end where it should */
};

typedef struct {
    unsigned word;     /* bytes of a word: 1, 2, 4, 8 */
    enum tsk_map map;
    size_t block_size; /* plain bytes of a block, a multiple of 8 */
} tsk_form;

/* Compress `src` into at most `cap` bytes, or decompress it into exactly `cap` bytes. Returns the bytes
 * written, 0 when a compressed form would not fit, a negative number after an error. */
typedef ptrdiff_t (*tsk_zstd_fn)(void *ctx, const uint8_t *src, size_t n, uint8_t *dst, size_t cap);

typedef struct tsk_scratch tsk_scratch;

/* Memory for chunks of blocks of at most `block_size` bytes; NULL when there is none. */
tsk_scratch *tsk_scratch_new(size_t block_size);
void tsk_scratch_free(tsk_scratch *s);
size_t tsk_scratch_block_size(const tsk_scratch *s);

/* "avx512", "avx2" or "generic": what this processor runs; `name` limits it (NULL: no limit). */
const char *tsk_isa_name(void);
int tsk_isa_limit(const char *name);

/* Encode `n` bytes at `plain` into at most `cap` bytes at `out`. `head` has TSK_MAX_HEAD bytes; `ends`
 * takes one entry for each block. Returns the length of the payload or a negative tsk_status. */
ptrdiff_t tsk_encode(tsk_scratch *s, const tsk_form *form, const uint8_t *plain, size_t n,
                     const uint8_t *base, uint8_t *out, size_t cap, uint8_t *head, size_t *head_len,
                     uint64_t *ends, tsk_zstd_fn compress, void *ctx);

/* Decode into exactly `n` bytes at `out`. Returns TSK_OK or a negative tsk_status; `*bad_block` tells the
 * block that was being decoded. Never reads outside head, payload and base, whatever they hold. */
int tsk_decode(tsk_scratch *s, const tsk_form *form, const uint8_t *head, size_t head_len,
               const uint64_t *ends, size_t n_ends, const uint8_t *payload, size_t payload_len,
               uint8_t *out, size_t n, const uint8_t *base, tsk_zstd_fn decompress, void *ctx,
               size_t *bad_block);

#endif
