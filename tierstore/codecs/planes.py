"""The plane and delta codecs in numpy, for machines without the native kernels.

They read everything, and write zstd planes in place of Huffman planes. The layout is
normative in tierstore/format/SPEC-codecs.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tierstore.codecs import huffman, zstd
from tierstore.codecs.base import EncodedBlocks, WordType, block_bounds, lay_blocks
from tierstore.deferred import np
from tierstore.errors import Damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.unsignedinteger]

_RAW, _CONST, _ZSTD, _HUFFMAN = range(4)
_DESCRIPTOR = [("mode", "u1"), ("table", "u1"), ("length", "<u4")]
_DESCRIPTOR_BYTES = 6


def _words(data: memoryview, word_type: WordType) -> Words:
    whole = data.nbytes // word_type.word_bytes * word_type.word_bytes
    return np.frombuffer(data[:whole], f"<u{word_type.word_bytes}").astype(
        f"=u{word_type.word_bytes}", copy=False
    )


def _ordered(words: Words, word_type: WordType) -> Words:
    """Map floats to the order of their values: a set sign flips the magnitude. Its own inverse."""
    if not word_type.is_float:
        return words
    top = 8 * word_type.word_bytes - 1
    sign = words >> words.dtype.type(top)
    return words ^ sign * words.dtype.type((1 << top) - 1)


def _forward(words: Words, word_type: WordType, base: memoryview | None) -> Words:
    one, top = words.dtype.type(1), words.dtype.type(8 * word_type.word_bytes - 1)
    if base is not None:
        difference = _ordered(words, word_type) - _ordered(_words(base, word_type), word_type)
        return difference << one ^ (~(difference >> top) + one)
    return words << one | words >> top if word_type.rotates else words


def _backward(words: Words, word_type: WordType, base: memoryview | None) -> Words:
    one, top = words.dtype.type(1), words.dtype.type(8 * word_type.word_bytes - 1)
    if base is not None:
        difference = words >> one ^ (~(words & one) + one)
        return _ordered(_ordered(_words(base, word_type), word_type) + difference, word_type)
    return words >> one | words << top if word_type.rotates else words


def _encode_plane(plane: NDArray[np.uint8]) -> tuple[int, bytes]:
    if plane.size and (plane == plane[0]).all():
        return _CONST, plane[:1].tobytes()
    plain = plane.tobytes()
    counts = np.bincount(plane, minlength=256)
    compress = zstd.compress_sparse if counts.max() > 0.8 * plane.size else zstd.compress_entropy
    frame = compress(plain, plane.size - plane.size // 64 - 1) if plain else b""
    return (_ZSTD, frame) if frame else (_RAW, plain)


def _encode_block(plain: memoryview, word_type: WordType, base: memoryview | None) -> bytes:
    words = _forward(_words(plain, word_type), word_type, base)
    planes = (
        words.astype(f"<u{word_type.word_bytes}").view(np.uint8).reshape(-1, word_type.word_bytes)
    )
    stored = [
        _encode_plane(np.ascontiguousarray(planes[:, j])) for j in range(word_type.word_bytes)
    ]
    descriptors = np.array([(mode, 0, len(data)) for mode, data in stored], _DESCRIPTOR)
    tail = plain[words.size * word_type.word_bytes :]
    return b"".join([descriptors.tobytes(), *(data for _, data in stored), tail])


def encode(
    plain: memoryview,
    word_type: WordType,
    base: memoryview | None,
    out: memoryview,
    block_size: int,
) -> EncodedBlocks | None:
    """Encode into ``out``; ``None`` when the payload does not fit there."""
    blocks = (slice(at, at + block_size) for at in range(0, plain.nbytes, block_size))
    return lay_blocks(
        (_encode_block(plain[b], word_type, None if base is None else base[b]) for b in blocks), out
    )


def _decode_plane(
    mode: int, table: int, stored: memoryview, tables: list[huffman.DecodeTable], n: int
) -> NDArray[np.uint8]:
    data = np.frombuffer(stored, np.uint8)
    if mode == _RAW and data.size == n and not table:
        return data
    if mode == _CONST and data.size == 1 and n and not table:
        return np.full(n, data[0])
    if mode == _ZSTD and data.size and n and not table:
        return np.frombuffer(zstd.decompress(stored, n), np.uint8)
    if mode == _HUFFMAN and n and table < len(tables):
        return huffman.decode_plane(data, tables[table], n)
    raise Damaged(
        f"a plane of mode {mode}, table {table}, {data.size} bytes cannot hold {n} symbols"
    )


def _decode_block(
    payload: memoryview,
    tables: list[huffman.DecodeTable],
    out: memoryview,
    word_type: WordType,
    base: memoryview | None,
) -> None:
    n, tail = divmod(out.nbytes, word_type.word_bytes)
    at = word_type.word_bytes * _DESCRIPTOR_BYTES
    if payload.nbytes < at + tail:
        raise Damaged(f"a block of {payload.nbytes} bytes is too short for its descriptors")
    descriptors = np.frombuffer(payload[:at], _DESCRIPTOR)
    if at + int(descriptors["length"].sum(dtype=np.uint64)) + tail != payload.nbytes:
        raise Damaged("the planes of a block do not add up to its payload")
    planes = np.empty((n, word_type.word_bytes), np.uint8)
    for j, (mode, table, length) in enumerate(descriptors.tolist()):
        planes[:, j] = _decode_plane(mode, table, payload[at : at + length], tables, n)
        at += length
    words = (
        planes.view(f"<u{word_type.word_bytes}")
        .ravel()
        .astype(f"=u{word_type.word_bytes}", copy=False)
    )
    whole = n * word_type.word_bytes
    out[:whole] = (
        _backward(words, word_type, base).astype(f"<u{word_type.word_bytes}", copy=False).tobytes()
    )
    out[whole:] = payload[payload.nbytes - tail :]


def decode(
    head: bytes,
    ends: Sequence[int],
    payload: memoryview,
    base: memoryview | None,
    out: memoryview,
    word_type: WordType,
    block_size: int,
) -> None:
    """Decode into exactly ``out``; ``Damaged`` when anything does not fit."""
    tables = huffman.read_head(head)
    bounds = block_bounds(ends, payload.nbytes, out.nbytes, block_size)
    for index, start in enumerate(range(0, out.nbytes, block_size)):
        block = slice(start, start + block_size)
        stored = payload[bounds[index] : bounds[index + 1]]
        _decode_block(stored, tables, out[block], word_type, None if base is None else base[block])
