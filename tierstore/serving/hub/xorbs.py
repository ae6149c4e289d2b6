"""What clients send by the Xet protocol: xorbs, which hold chunks, and shards, which list files.

A xorb is a run of chunks; each has a head of 8 bytes and then its bytes, which may be compressed.
A shard begins with the files: of which chunks of which xorbs each consists, and its SHA-256. What
lies behind these is not needed here. All numbers are little-endian; a hash is four numbers of 64
bits, in binary in a shard and in hex in a URL.

Source: github.com/huggingface/xet-core, ``xet_core_structures/src/xorb_object`` and
``metadata_shard``.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from lz4.frame import LZ4FrameDecompressor

_SHARD_HEAD = struct.Struct("<32sQQ")  # tag, version, size of the footer
_TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
_VERSION = 2
_ENTRY = struct.Struct("<32sIIII")
_END = b"\xff" * 32
_VERIFIED, _WITH_SHA256 = 1 << 31, 1 << 30
_CHUNK_HEAD = struct.Struct("<II")
_FOOTER = b"XETBLOB"
_LARGEST_CHUNK_BYTES = 128 << 10
_PLAIN, _LZ4, _LZ4_OF_4_GROUPS = range(3)


class Malformed(ValueError):
    """What was sent is no xorb or shard."""


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a file: chunks of a xorb, which lie one after the other there.

    Attributes:
        xorb: Hash of the xorb, as hex digits.
        first: Index of the first chunk.
        end: Index after the last one.
        size: Bytes of all of them.
    """

    xorb: str
    first: int
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class XetFile:
    """A file of a shard.

    Attributes:
        sha256: Its SHA-256, as hex digits.
        entries: Its parts, as they lie in the shard.
    """

    sha256: str
    entries: memoryview

    def terms(self) -> Iterator[Term]:
        """Yield its parts, in their order."""
        for xorb, _, size, first, end in _ENTRY.iter_unpack(self.entries):
            yield Term(_hex(xorb), first, end, size)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(size for _, _, size, _, _ in _ENTRY.iter_unpack(self.entries))


def files_of(shard: memoryview) -> Iterator[XetFile]:
    """Yield the files that a shard lists.

    Raises:
        Malformed: It is no shard, or lists a file without a SHA-256.
    """
    try:
        tag, version, _ = _SHARD_HEAD.unpack_from(shard)
        if (tag, version) != (_TAG, _VERSION):
            raise Malformed("this is no shard, or one of another version")
        at = _SHARD_HEAD.size
        while True:
            name, flags, count, _, _ = _ENTRY.unpack_from(shard, at)
            if name == _END:
                return
            at += _ENTRY.size
            if not flags & _WITH_SHA256:
                raise Malformed("a file in the shard has no SHA-256")
            end = at + count * _ENTRY.size
            entries = shard[at:end]
            at = end + (count * _ENTRY.size if flags & _VERIFIED else 0)
            sha256 = _hex(_ENTRY.unpack_from(shard, at)[0])
            at += _ENTRY.size
            yield XetFile(sha256, entries)
    except struct.error:
        raise Malformed("the shard ends within a file") from None


def _hex(raw: bytes) -> str:
    return struct.pack(">4Q", *struct.unpack("<4Q", raw)).hex()


class Xorb:
    """The chunks of a xorb.

    Args:
        data: The xorb.

    Raises:
        Malformed: It is no xorb.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._begins = array("Q")
        at = 0
        while at < len(data) and data[at : at + len(_FOOTER)] != _FOOTER:
            self._begins.append(at)
            at += _CHUNK_HEAD.size + self._head(at)[0]
        if at > len(data):
            raise Malformed("the xorb ends within a chunk")

    def _head(self, at: int) -> tuple[int, int, int]:
        """Return stored size, kind of compression and plain size of the chunk that begins here."""
        if at + _CHUNK_HEAD.size > len(self._data):
            raise Malformed("the xorb ends within a chunk")
        stored, plain = _CHUNK_HEAD.unpack_from(self._data, at)
        version, kind = stored & 0xFF, plain & 0xFF
        stored, plain = stored >> 8, plain >> 8
        if version or plain > _LARGEST_CHUNK_BYTES or stored > 2 * _LARGEST_CHUNK_BYTES:
            raise Malformed("the head of a chunk is not one that is known")
        return stored, kind, plain

    def chunks(self, term: Term) -> Iterator[bytes]:
        """Yield the plain bytes of a term's chunks.

        Raises:
            Malformed: The xorb has no such chunks, they are damaged, or have another size.
        """
        if not term.first < term.end <= len(self._begins):
            raise Malformed(f"the xorb {term.xorb} has no chunks {term.first} to {term.end}")
        left = term.size
        for at in self._begins[term.first : term.end]:
            stored, kind, plain = self._head(at)
            begin = at + _CHUNK_HEAD.size
            chunk = _decoded(bytes(self._data[begin : begin + stored]), kind, plain)
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
        if left:
            raise Malformed(f"chunks of the xorb {term.xorb} have another size than the shard says")


def _decoded(stored: bytes, kind: int, plain: int) -> bytes:
    if kind == _PLAIN:
        chunk = stored
    elif kind in (_LZ4, _LZ4_OF_4_GROUPS):
        chunk = _unpacked(stored, plain)
        if kind == _LZ4_OF_4_GROUPS:
            chunk = _regrouped(chunk)
    else:
        raise Malformed(f"a chunk is compressed in a way that is not known: {kind}")
    if len(chunk) != plain:
        raise Malformed("a chunk has another size than its head says")
    return chunk


def _unpacked(stored: bytes, plain: int) -> bytes:
    decompressor = LZ4FrameDecompressor()
    try:
        chunk: bytes = decompressor.decompress(stored, max_length=plain + 1)
    except (RuntimeError, EOFError):
        raise Malformed("a chunk is no LZ4 frame") from None
    return chunk


def _regrouped(grouped: bytes) -> bytes:
    """Undo the grouping of bytes by their place in groups of 4."""
    source, at = np.frombuffer(grouped, np.uint8), 0
    out = np.empty_like(source)
    for lane in range(4):
        count = len(out[lane::4])
        out[lane::4] = source[at : at + count]
        at += count
    return out.tobytes()
