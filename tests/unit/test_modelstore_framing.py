"""Frames in pooled buffers: right bytes, and no buffer used again before it was written."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from tierstore.blobs.memory import MemoryStore
from tierstore.codecs import PLANES, RAW, ZSTD, decode
from tierstore.format import pack
from tierstore.format.checks import digest_of
from tierstore.format.frame import frame_payload, parse_frame_head
from tierstore.format.proof import hash_plain
from tierstore.ids import Buffer
from tierstore.modelstore.saving.framing import BufferPool, Frame, Framing
from tierstore.modelstore.saving.packer import Packer

_CHUNK = 1 << 20


def _weights(length: int, seed: int) -> bytes:
    values = np.random.default_rng(seed).normal(0, 0.02, length // 4).astype("<f4")
    return values.tobytes()


def _noise(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def _framed(pool: BufferPool, chunks: Sequence[tuple[bytes, str]]) -> tuple[list[Frame], Framing]:
    """The frames of chunks that lie end to end in one buffer, not finished yet."""
    source = pool.take()
    framing = Framing(pool, source)
    frames, at = [], 0
    for data, dtype in chunks:
        source[at : at + len(data)] = data
        plain = memoryview(source)[at : at + len(data)]
        at += len(data)
        frames.append(framing.add(plain, hashed=hash_plain(plain), dtype=dtype))
    return frames, framing


def _plain(frame: Frame) -> bytes:
    out = bytearray(frame.plain_bytes)
    head = parse_frame_head(frame.head, "a frame")
    payload = frame_payload(head, frame.head + bytes(frame.payload), "a frame")
    decode(
        head.codec, head.codec_head, head.ends, payload, memoryview(out), head.dtype,
        block_size=head.block_size,
    )  # fmt: skip
    return bytes(out)


def _scribble(pool: BufferPool) -> None:
    """Write over every buffer that the pool has, as its next users do."""
    for buffer in pool._free:
        buffer[:] = b"\xaa" * len(buffer)


@pytest.mark.parametrize(
    ("chunks", "codecs", "held"),
    [
        ([(_weights(_CHUNK, 1), "F32")], [PLANES], 1),
        ([(_weights(_CHUNK // 4, n), "F32") for n in range(4)], [PLANES] * 4, 1),
        ([(_weights(_CHUNK // 4, 1), "F32")], [PLANES], 0),
        ([(_noise(_CHUNK, 1), "U8")], [RAW], 1),
        ([(_noise(1000, 1), "U8"), (bytes(1000), "")], [RAW, ZSTD], 0),
        ([(_noise(_CHUNK // 2, 1), "U8"), (_weights(_CHUNK // 2, 2), "F32")], [RAW, PLANES], 1),
        ([(b"", "U8")], [RAW], 0),
    ],
)
def test_frames_are_right_whatever_comes_into_the_buffers_given_back(
    chunks: list[tuple[bytes, str]], codecs: list[int], held: int
) -> None:
    pool = BufferPool(_CHUNK)
    frames, framing = _framed(pool, chunks)
    kept = framing.finish()
    assert [frame.codec for frame in frames] == codecs
    assert len(kept) == held
    assert len(pool._free) == 2 - held
    _scribble(pool)
    assert [_plain(frame) for frame in frames] == [data for data, _ in chunks]


def test_nothing_added_gives_both_buffers_back() -> None:
    pool = BufferPool(_CHUNK)
    assert Framing(pool, pool.take()).finish() == []
    assert len(pool._free) == 2


class _Slow(MemoryStore):
    """Holds every blob back until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.begun = threading.Event()

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self.begun.set()
        assert self.go_on.wait(60)
        super().put(key, data)


def test_a_buffer_comes_back_after_the_last_pack_that_it_has_a_part_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", _CHUNK // 2)
    pool, store = BufferPool(_CHUNK), _Slow()
    packer = Packer(store, pool)
    chunks = [(_weights(_CHUNK // 4, n), "F32") for n in range(4)]
    frames, framing = _framed(pool, chunks)
    held = framing.finish()
    assert len(held) == 1
    expected = [frame.head + bytes(frame.payload) for frame in frames]
    for frame, (data, _) in zip(frames, chunks, strict=True):
        packer.add(digest_of(data).raw, frame)  # a pack is full after the third
    packer.hold(held)
    assert store.begun.wait(60)
    _scribble(pool)
    assert held[0] not in pool._free
    store.go_on.set()
    packer.finish()
    assert held[0] in pool._free
    packer.close()
    assert len(packer.pack_sizes) == 2
    stored = b"".join(bytes(store.get(blob.key)) for blob in store.list())
    assert all(frame in stored for frame in expected)
