"""Encoding a chunk with the codec that suits it, and decoding it by the codec that was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from tierstore.codecs.base import (
    BYTES,
    WORD_TYPES,
    EncodedChunk,
    check_sizes,
    flat,
)
from tierstore.codecs.registry import CODECS, RAW, Encode
from tierstore.deferred import np
from tierstore.errors import Damaged, UsageError
from tierstore.ids import Buffer

_Candidate = tuple[int, bool, Encode]


def _candidates(by_words: bool, with_base: bool) -> tuple[_Candidate, ...]:
    """Return id, need of a base and encoder of the codecs to try, those with a base first."""
    found = [
        (codec.id, codec.needs_base, codec.encode)
        for codec in CODECS.values()
        if codec.encode is not None
        and codec.by_words == by_words
        and (with_base or not codec.needs_base)
    ]
    return tuple(sorted(found, key=lambda candidate: not candidate[1]))


_CANDIDATES = {
    (by_words, with_base): _candidates(by_words, with_base)
    for by_words in (False, True)
    for with_base in (False, True)
}


def encode(
    plain: Buffer,
    dtype: str,
    *,
    block_size: int = 1 << 18,
    base: Buffer | None = None,
    out: memoryview | None = None,
) -> EncodedChunk:
    """Encode the plain bytes of one chunk with the codec that suits its dtype.

    The same input gives the same bytes on the same build.

    Args:
        plain: At most 16 MiB.
        dtype: A safetensors dtype, or ``""`` for bytes that are no tensor.
        block_size: Bytes of a block, the unit of ``decode_block``; a power of two.
        base: As many bytes as ``plain``; the result is a delta where that is smaller.
        out: Memory for the payload, at least ``len(plain)`` bytes; by default a new buffer.

    Returns:
        The encoded chunk; raw, a view of ``plain``, unless another codec saves a 64th.

    Raises:
        UsageError: A size is beyond the limits.
    """
    data = flat(plain)
    base_view = None if base is None else flat(base)
    check_sizes(data.nbytes, block_size, base_view)
    word_type = WORD_TYPES.get(dtype)
    budget = data.nbytes - -(-data.nbytes // 64)
    room = _room(data.nbytes) if out is None else flat(out)
    if room.nbytes < data.nbytes:
        raise UsageError(f"out has {room.nbytes} bytes; a chunk of {data.nbytes} needs as many")
    encoded: EncodedChunk | None = None
    candidates = _CANDIDATES[word_type is not None, base_view is not None] if budget > 0 else ()
    for codec, needs_base, encode_blocks in candidates:
        target = room[:budget]
        if encoded is not None:
            # most deltas are small, and so is the memory in which the next codec gives up
            target = _room(len(encoded.head) + len(encoded.payload))
        result = encode_blocks(
            data, word_type or BYTES, base_view if needs_base else None, target, block_size
        )
        if result is None:
            continue
        head, ends, payload_bytes = result
        if len(head) + payload_bytes > target.nbytes:
            continue
        payload = room[:payload_bytes]
        if encoded is not None:
            payload[:] = target[:payload_bytes]
        encoded = EncodedChunk(codec, head, ends, payload)
    if encoded is not None:
        return encoded
    starts = range(0, data.nbytes, block_size)
    return EncodedChunk(
        RAW, b"", tuple(min(start + block_size, data.nbytes) for start in starts), data
    )


def _room(nbytes: int) -> memoryview:
    return np.empty(nbytes, np.uint8).data if nbytes else memoryview(bytearray())


def decode(
    codec: int,
    head: Buffer,
    ends: Sequence[int],
    payload: Buffer,
    out: memoryview,
    dtype: str,
    *,
    block_size: int,
    base: Buffer | None = None,
) -> None:
    """Decode a whole chunk.

    Args:
        codec: The id of its codec.
        head: The codec head.
        ends: For each block, where it ends in ``payload``.
        payload: The payloads of all blocks, end to end.
        out: Writable, of exactly the plain length.
        dtype: The safetensors dtype, or ``""``.
        block_size: Plain bytes of a block.
        base: The base that a delta was encoded with; other codecs ignore it.

    Raises:
        Damaged: Head, ends or payload do not fit the format or each other; ``out`` then holds
            anything.
        UsageError: The caller's own buffers do not fit.
    """
    target, data = flat(out), flat(payload)
    known = CODECS.get(codec)
    with_base = base is not None and known is not None and known.needs_base
    base_view = flat(base) if with_base and base is not None else None
    check_sizes(target.nbytes, block_size, base_view)
    word_type = WORD_TYPES.get(dtype)
    if known is None or (known.by_words and word_type is None):
        raise Damaged(f"there is no codec {codec} for dtype {dtype!r}")
    if known.needs_base and base_view is None:
        raise UsageError("a delta is decoded against its base: pass base=")
    known.decode(bytes(head), ends, data, base_view, target, word_type or BYTES, block_size)


def decode_block(
    codec: int,
    head: Buffer,
    payload_of_block: Buffer,
    out_of_block: memoryview,
    dtype: str,
    *,
    index: int,
    block_size: int,
    base: Buffer | None = None,
) -> None:
    """Decode one block of a chunk.

    Takes the same arguments and raises the same errors as ``decode``, except for these:

    Args:
        payload_of_block: The payload of this block alone.
        out_of_block: Writable, of exactly the block's plain length.
        index: The number of the block, for messages.
        base: The same block of the base.
    """
    payload_bytes = memoryview(payload_of_block).nbytes
    if not 0 < memoryview(out_of_block).nbytes <= block_size:
        raise UsageError(
            f"block {index} has 1 to {block_size} bytes; out_of_block has another length"
        )
    try:
        decode(
            codec,
            head,
            (payload_bytes,),
            payload_of_block,
            out_of_block,
            dtype,
            block_size=block_size,
            base=base,
        )
    except Damaged as error:
        raise Damaged(f"block {index} of the chunk: {error}") from error
