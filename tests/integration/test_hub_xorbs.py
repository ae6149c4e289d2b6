"""What clients send by the Xet protocol: good, cut off, and changed."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import lz4.frame
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.serving.hub.xorbs import Malformed, Term, Xorb, files_of

NAME = "00" * 7 + "01" + "00" * 7 + "02" + "00" * 7 + "03" + "00" * 7 + "04"
RAW = struct.pack("<4Q", 1, 2, 3, 4)
SHA256 = bytes(range(32))


def hashed(digest: bytes) -> bytes:
    """Return a digest as shards hold it: four numbers, little-endian."""
    return struct.pack("<4Q", *struct.unpack(">4Q", digest)) if digest else b""


def grouped(plain: bytes) -> bytes:
    return b"".join(plain[lane::4] for lane in range(4))


PACKERS: list[Callable[[bytes], bytes]] = [
    lambda plain: plain,
    lz4.frame.compress,
    lambda plain: lz4.frame.compress(grouped(plain)),
]


def chunk(kind: int, plain: bytes) -> bytes:
    stored = PACKERS[kind](plain)
    head = bytes([0]) + len(stored).to_bytes(3, "little")
    return head + bytes([kind]) + len(plain).to_bytes(3, "little") + stored


def entry(raw: bytes, *numbers: int) -> bytes:
    return struct.pack("<32sIIII", raw, *numbers)


def shard(*terms: tuple[int, int, int], verified: bool = True, sha256: bytes = SHA256) -> bytes:
    tag = b"HFRepoMetaData\0UigEj{" + bytes([129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169])
    flags = (1 << 31) * verified | (1 << 30) * bool(sha256)
    rows = [entry(bytes(32), flags, len(terms), 0, 0)]
    rows += [entry(RAW, 0, size, first, end) for size, first, end in terms]
    rows += [entry(bytes(32), 0, 0, 0, 0)] * len(terms) * verified
    rows += [entry(hashed(sha256), 0, 0, 0, 0)] * bool(sha256)
    return struct.pack("<32sQQ", tag, 2, 200) + b"".join(rows) + entry(b"\xff" * 32, 0, 0, 0, 0)


def read(data: bytes) -> list[tuple[str, list[Term]]]:
    return [(file.sha256, list(file.terms())) for file in files_of(memoryview(data))]


@given(st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=300)), min_size=1))
def test_chunks_of_every_kind_are_read(chunks: list[tuple[int, bytes]]) -> None:
    data = b"".join(chunk(kind, plain) for kind, plain in chunks)
    for footer in (b"", b"XETBLOB\x01 and what follows"):
        xorb = Xorb(memoryview(data + footer))
        for first in range(len(chunks)):
            wanted = [plain for _, plain in chunks[first:]]
            term = Term(NAME, first, len(chunks), sum(map(len, wanted)))
            assert list(xorb.chunks(term)) == wanted


def test_a_file_of_a_shard() -> None:
    terms = [(100, 0, 2), (50, 1, 2)]
    for verified in (False, True):
        assert read(shard(*terms, verified=verified)) == [
            (SHA256.hex(), [Term(NAME, 0, 2, 100), Term(NAME, 1, 2, 50)])
        ]
    (file,) = files_of(memoryview(shard(*terms)))
    assert file.size == 150


def test_a_shard_that_is_cut_off_or_has_no_sha256_is_refused() -> None:
    whole = shard((100, 0, 2), (50, 1, 2))
    for end in range(len(whole)):
        with pytest.raises(Malformed):
            read(whole[:end])
    with pytest.raises(Malformed, match="SHA-256"):
        read(shard((100, 0, 2), sha256=b""))
    with pytest.raises(Malformed, match="no shard"):
        read(b"x" + whole[1:])


DAMAGED = {
    "no such chunks": Term(NAME, 1, 3, 4000),
    "no chunks at all": Term(NAME, 1, 1, 0),
    "more bytes": Term(NAME, 0, 2, 8001),
    "fewer bytes": Term(NAME, 0, 2, 7999),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_term_that_the_xorb_does_not_have_is_refused(name: str) -> None:
    xorb = Xorb(memoryview(chunk(1, bytes(4000)) + chunk(0, bytes(4000))))
    with pytest.raises(Malformed):
        list(xorb.chunks(DAMAGED[name]))


def test_a_chunk_is_not_unpacked_beyond_its_size() -> None:
    bomb = lz4.frame.compress(bytes(60 << 20))
    assert len(bomb) < 256 << 10
    head = bytes([0]) + len(bomb).to_bytes(3, "little") + bytes([1]) + (9).to_bytes(3, "little")
    tracemalloc.start()
    with pytest.raises(Malformed, match="another size"):
        list(Xorb(memoryview(head + bomb)).chunks(Term(NAME, 0, 1, 9)))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    large = bytes([0]) + (9).to_bytes(3, "little") + bytes([1]) + (1 << 20).to_bytes(3, "little")
    with pytest.raises(Malformed, match="head"):
        Xorb(memoryview(large + bytes(9)))


@given(st.integers(0, 2), st.data())
def test_a_changed_xorb_is_read_or_malformed(kind: int, data: st.DataObject) -> None:
    plain = np.arange(500, dtype="<u4").tobytes()
    whole = bytearray(chunk(kind, plain) + chunk(1, b"last"))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.integers(0, len(whole)))
    try:
        xorb = Xorb(memoryview(bytes(whole[:end])))
        for one in xorb.chunks(Term(NAME, 0, 1, len(plain))):
            assert len(one) == len(plain)
    except Malformed:
        pass
