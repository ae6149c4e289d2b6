"""The stored objects built and read with struct alone, from the tables of SPEC.md.

Nothing here uses tierstore's own builders or parsers, so both can be held to it. Every keyword of a
builder overrides one field; lengths and checksums are made to fit unless they are given.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import blake3
import xxhash
import zstandard


def xxh3(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


def b3(data: bytes) -> bytes:
    return blake3.blake3(data).digest()


def frame(
    plain: bytes = b"some plain bytes",
    *,
    magic: bytes = b"TSFR",
    version: int = 1,
    codec: int = 0,
    dtype: int = 0,
    flags: int = 0,
    plain_bytes: int | None = None,
    payload: bytes | None = None,
    payload_bytes: int | None = None,
    payload_sum: int | None = None,
    key_id: int = 0,
    nonce: bytes = bytes(12),
    block_log2: int = 18,
    zero1: int = 0,
    n_base: int | None = None,
    codec_head: bytes = b"",
    codec_head_bytes: int | None = None,
    zero2: int = 0,
    digest: bytes | None = None,
    ends: Sequence[int] | None = None,
    sums: Sequence[int] | None = None,
    bases: Sequence[tuple[bytes, int, int]] = (),
    head_sum: int | None = None,
) -> bytes:
    """Section 3."""
    size = 1 << min(block_log2, 24)
    payload = plain if payload is None else payload
    starts = range(0, len(plain), size)
    if ends is None:
        ends = [min(at + size, len(plain)) for at in starts]
        if ends:
            ends[-1] = len(payload)
    if sums is None:
        sums = [xxh3(plain[at : at + size]) for at in starts]
    head = struct.pack(
        "<4sBBBBIIQI12sBBHHH32s",
        magic, version, codec, dtype, flags,
        len(plain) if plain_bytes is None else plain_bytes,
        len(payload) if payload_bytes is None else payload_bytes,
        xxh3(payload) if payload_sum is None else payload_sum,
        key_id, nonce, block_log2, zero1,
        len(bases) if n_base is None else n_base,
        len(codec_head) if codec_head_bytes is None else codec_head_bytes,
        zero2, b3(plain) if digest is None else digest,
    )  # fmt: skip
    assert len(head) == 80
    for end, value in zip(ends, sums, strict=True):
        head += struct.pack("<IQ", end, value)
    for base, offset, length in bases:
        head += struct.pack("<32sII", base, offset, length)
    head += codec_head
    return head + struct.pack("<Q", xxh3(head) if head_sum is None else head_sum) + payload


def read_frame(data: bytes) -> dict[str, Any]:
    """The fields of a frame, after asserting all that section 3 demands."""
    assert data[:4] == b"TSFR"
    assert data[4] == 1
    assert data[7] == 0
    plain_bytes, payload_bytes, payload_sum, key_id = struct.unpack_from("<IIQI", data, 8)
    assert key_id == 0
    assert data[28:40] == bytes(12)
    block_log2, zero1, n_base, codec_head_bytes, zero2 = struct.unpack_from("<BBHHH", data, 40)
    assert (zero1, zero2) == (0, 0)
    blocks = -(-plain_bytes // (1 << block_log2))
    at = 80
    table = [struct.unpack_from("<IQ", data, at + 12 * i) for i in range(blocks)]
    at += 12 * blocks
    bases = [struct.unpack_from("<32sII", data, at + 40 * i) for i in range(n_base)]
    at += 40 * n_base
    codec_head = data[at : at + codec_head_bytes]
    at += codec_head_bytes
    assert struct.unpack_from("<Q", data, at)[0] == xxh3(data[:at])
    payload = data[at + 8 :]
    assert len(payload) == payload_bytes <= plain_bytes <= 16 << 20
    assert xxh3(payload) == payload_sum
    ends = [end for end, _ in table]
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == payload_bytes
    return {
        "codec": data[5], "dtype": data[6], "plain_bytes": plain_bytes, "block_log2": block_log2,
        "digest": data[48:80], "ends": ends, "sums": [value for _, value in table],
        "bases": bases, "codec_head": codec_head, "payload": payload, "head_bytes": at + 8,
    }  # fmt: skip


def sealed(
    kind: int,
    plain: bytes,
    *,
    magic: bytes = b"TSOB",
    version: int = 1,
    encoding: int = 0,
    flags: int = 0,
    key_id: int = 0,
    nonce: bytes = bytes(12),
    plain_bytes: int | None = None,
    body: bytes | None = None,
    body_bytes: int | None = None,
    body_sum: int | None = None,
    head_sum: int | None = None,
) -> bytes:
    """Section 5."""
    if body is None:
        body = zstandard.ZstdCompressor().compress(plain) if encoding == 1 else plain
    head = struct.pack(
        "<4sBBBBI12sQQQ",
        magic, kind, version, encoding, flags, key_id, nonce,
        len(plain) if plain_bytes is None else plain_bytes,
        len(body) if body_bytes is None else body_bytes,
        xxh3(body) if body_sum is None else body_sum,
    )  # fmt: skip
    assert len(head) == 48
    return head + struct.pack("<Q", xxh3(head) if head_sum is None else head_sum) + body


def read_sealed(data: bytes) -> tuple[int, bytes]:
    """Kind and plain body, after asserting all that section 5 demands."""
    assert data[:4] == b"TSOB"
    kind, version, encoding, flags, key_id = struct.unpack_from("<BBBBI", data, 4)
    assert (version, flags, key_id, data[12:24]) == (1, 0, 0, bytes(12))
    plain_bytes, body_bytes, body_sum, head_sum = struct.unpack_from("<QQQQ", data, 24)
    assert head_sum == xxh3(data[:48])
    body = data[56:]
    assert len(body) == body_bytes
    assert xxh3(body) == body_sum
    assert encoding in (0, 1)
    plain = body if encoding == 0 else zstandard.ZstdDecompressor().decompress(body)
    assert len(plain) == plain_bytes
    return kind, plain


def pack_header(
    *,
    magic: bytes = b"TSPK",
    version: int = 1,
    flags: int = 0,
    zero: int = 0,
    random: bytes = b"sixteen bytes :)",
    key_id: int = 0,
    nonce: bytes = bytes(12),
    zeros: bytes = bytes(16),
    head_sum: int | None = None,
) -> bytes:
    """Section 4, the first 64 bytes."""
    head = struct.pack(
        "<4sBBH16sI12s16s", magic, version, flags, zero, random, key_id, nonce, zeros
    )
    assert len(head) == 56
    return head + struct.pack("<Q", xxh3(head) if head_sum is None else head_sum)


def pack_trailer(
    offset: int,
    length: int,
    frames: int,
    pack_id: bytes,
    *,
    zero: int = 0,
    magic: bytes = b"TSPE",
    tail_sum: int | None = None,
) -> bytes:
    """Section 4, the last 64 bytes."""
    tail = struct.pack("<QII32sI4s", offset, length, frames, pack_id, zero, magic)
    assert len(tail) == 56
    return tail + struct.pack("<Q", xxh3(tail) if tail_sum is None else tail_sum)


def msgpack(value: object) -> bytes:
    """msgpack of None, int, str, bytes, list, tuple and dict, by its specification."""
    if isinstance(value, dict):
        pairs = b"".join(msgpack(k) + msgpack(v) for k, v in value.items())
        return b"\xdf" + struct.pack(">I", len(value)) + pairs
    if isinstance(value, list | tuple):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(msgpack, value))
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if value is None:
        return b"\xc0"
    assert isinstance(value, int)
    return b"\xcf" + struct.pack(">Q", value) if value >= 0 else b"\xd3" + struct.pack(">q", value)


def read_msgpack(data: bytes) -> Any:
    """The value in ``data``, which holds nothing else."""
    value, at = _read(data, 0)
    assert at == len(data)
    return value


def _read(data: bytes, at: int) -> tuple[Any, int]:
    tag = data[at]
    at += 1
    if tag < 0x80:
        return tag, at
    if tag >= 0xE0:
        return tag - 256, at
    if tag < 0x90:
        return _read_map(data, at, tag & 15)
    if tag < 0xA0:
        return _read_list(data, at, tag & 15)
    if tag < 0xC0:
        return data[at : at + (tag & 31)].decode(), at + (tag & 31)
    if tag == 0xC0:
        return None, at
    form = {
        0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
        0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I",
        0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I",
    }[tag]  # fmt: skip
    (number,) = struct.unpack_from(form, data, at)
    at += struct.calcsize(form)
    if tag in (0xC4, 0xC5, 0xC6):
        return data[at : at + number], at + number
    if tag in (0xD9, 0xDA, 0xDB):
        return data[at : at + number].decode(), at + number
    if tag in (0xDC, 0xDD):
        return _read_list(data, at, number)
    if tag in (0xDE, 0xDF):
        return _read_map(data, at, number)
    return number, at


def _read_list(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    values = []
    for _ in range(count):
        value, at = _read(data, at)
        values.append(value)
    return values, at


def _read_map(data: bytes, at: int, count: int) -> tuple[dict[Any, Any], int]:
    flat, at = _read_list(data, at, 2 * count)
    return dict(zip(flat[::2], flat[1::2], strict=True)), at


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)
