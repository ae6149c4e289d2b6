"""Choosing a codec for a chunk, and reading what was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from tierstore.codecs import zstd
from tierstore.codecs.base import (
    DELTA,
    FORMS,
    PLANES,
    RAW,
    ZSTD,
    Encoded,
    Form,
    block_bounds,
    check_sizes,
    flat,
)
from tierstore.codecs.native import decode_planes, encode_planes
from tierstore.deferred import np
from tierstore.errors import Damaged, UsageError
from tierstore.ids import Buffer


def encode(
    plain: Buffer,
    dtype: str,
    *,
    block_size: int = 1 << 18,
    base: Buffer | None = None,
    out: memoryview | None = None,
) -> Encoded:
    """Encode the plain bytes of one chunk by what its dtype is.

    ``plain`` has at most 16 MiB; ``dtype`` is a safetensors dtype, or ``""`` for bytes that are
    no tensor; ``block_size`` (bytes, a power of two) is the unit of ``decode_block``. With a
    ``base`` of the same length the result is a delta where that is smaller. The payload goes to
    ``out``, which needs room for ``len(plain)`` bytes, or to a new buffer. It is raw, a view of
    ``plain``, unless a 64th is saved.

    Raises ``UsageError`` for sizes beyond the limits. The same input gives the same bytes on the
    same build.
    """
    data = flat(plain)
    base_view = None if base is None else flat(base)
    check_sizes(data.nbytes, block_size, base_view)
    form = FORMS.get(dtype)
    budget = data.nbytes - -(-data.nbytes // 64)
    room = _room(data.nbytes) if out is None else flat(out)
    if room.nbytes < data.nbytes:
        raise UsageError(f"out has {room.nbytes} bytes; a chunk of {data.nbytes} needs as many")
    encoded: Encoded | None = None
    if budget > 0:
        if form is None:
            encoded = _encode_zstd(data, block_size, room[:budget])
        elif base_view is None:
            encoded = _encode_planes(data, form, None, block_size, room[:budget])
        else:
            encoded = _encode_smaller(data, form, base_view, block_size, room[:budget])
    if encoded is not None:
        return encoded
    ends = tuple(
        min(start + block_size, data.nbytes) for start in range(0, data.nbytes, block_size)
    )
    return Encoded(RAW, b"", ends, data)


def _room(length: int) -> memoryview:
    return np.empty(length, np.uint8).data if length else memoryview(bytearray())


def _encode_zstd(data: memoryview, block_size: int, room: memoryview) -> Encoded | None:
    ends: list[int] = []
    length = 0
    for start in range(0, data.nbytes, block_size):
        frame = zstd.compress_block(data[start : start + block_size])
        if length + len(frame) > room.nbytes:
            return None
        room[length : length + len(frame)] = frame
        length += len(frame)
        ends.append(length)
    return Encoded(ZSTD, b"", tuple(ends), room[:length])


def _encode_planes(
    data: memoryview, form: Form, base: memoryview | None, block_size: int, room: memoryview
) -> Encoded | None:
    result = encode_planes(data, form, base, room, block_size)
    if result is None:
        return None
    head, ends, length = result
    if len(head) + length > room.nbytes:
        return None
    return Encoded(PLANES if base is None else DELTA, head, ends, room[:length])


def _encode_smaller(
    data: memoryview, form: Form, base: memoryview, block_size: int, room: memoryview
) -> Encoded | None:
    """The smaller of delta and standalone; what the delta needs is all that standalone may take."""
    delta = _encode_planes(data, form, base, block_size, room)
    if delta is None:
        return _encode_planes(data, form, None, block_size, room)
    # most deltas are small, and so is the memory in which standalone gives up
    size = len(delta.head) + len(delta.payload)
    standalone = _encode_planes(data, form, None, block_size, _room(size))
    if standalone is None:
        return delta
    payload = room[: len(standalone.payload)]
    payload[:] = standalone.payload
    return Encoded(PLANES, standalone.head, standalone.ends, payload)


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
    """Decode a whole chunk into ``out``, which is writable and has exactly the plain length.

    A ``DELTA`` needs the ``base`` it was encoded with; other codecs ignore it. Raises ``Damaged``
    when head, ends or payload do not fit the format or each other (``out`` then holds anything),
    ``UsageError`` when the caller's own buffers do not fit.
    """
    target, data = flat(out), flat(payload)
    base_view = None if base is None or codec != DELTA else flat(base)
    check_sizes(target.nbytes, block_size, base_view)
    if codec in (RAW, ZSTD):
        bounds = block_bounds(ends, data.nbytes, target.nbytes, block_size)
        if len(head):
            raise Damaged(f"codec {codec} has no head, but there are {len(head)} bytes of it")
        _decode_plain(codec, bounds, data, target, block_size)
        return
    if codec not in (PLANES, DELTA) or dtype not in FORMS:
        raise Damaged(f"there is no codec {codec} for dtype {dtype!r}")
    if codec == DELTA and base_view is None:
        raise UsageError("a delta is decoded against its base: pass base=")
    decode_planes(bytes(head), ends, data, base_view, target, FORMS[dtype], block_size)


def _decode_plain(
    codec: int, bounds: list[int], data: memoryview, target: memoryview, block_size: int
) -> None:
    for index, start in enumerate(range(0, target.nbytes, block_size)):
        block = target[start : start + block_size]
        stored = data[bounds[index] : bounds[index + 1]]
        if codec == ZSTD:
            block[:] = zstd.decompress(stored, block.nbytes)
        elif stored.nbytes != block.nbytes:
            raise Damaged(f"raw block {index} has {stored.nbytes} bytes, not {block.nbytes}")
        else:
            block[:] = stored


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
    """Decode one block into ``out_of_block``, its plain length; ``base`` is the same block of the
    base.

    Raises as ``decode`` does; ``index`` names the block in the message.
    """
    length = memoryview(payload_of_block).nbytes
    if not 0 < memoryview(out_of_block).nbytes <= block_size:
        raise UsageError(
            f"block {index} has 1 to {block_size} bytes; out_of_block has another length"
        )
    try:
        decode(
            codec,
            head,
            (length,),
            payload_of_block,
            out_of_block,
            dtype,
            block_size=block_size,
            base=base,
        )
    except Damaged as error:
        raise Damaged(f"block {index} of the chunk: {error}") from error
