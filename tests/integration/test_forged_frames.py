"""Frames and layouts that are wrong in one thing alone: every other check of theirs passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import created
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.codecs import DELTA, RAW
from tierstore.errors import Damaged
from tierstore.format import proof
from tierstore.format.frame import build_head, parse_frame_head
from tierstore.format.keys import layout_key, pack_key
from tierstore.format.layout import seal_layout
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.store import Store

WORDS = np.random.default_rng(4).integers(0, 256, (600, 1000), np.uint8)
"""Three blocks of bytes that no codec makes smaller: the frame's payload is the chunk itself."""


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("forged")


@pytest.fixture
def store(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as made:
        made.save("m", {"w": WORDS})
        yield made


def place(store: Store, ref: str) -> ChunkPlace:
    [piece] = store.load(ref).tensor("w")._base.chunks()
    return piece.place


def spoil(blobs: BlobStore, where: ChunkPlace, at: int, *, sums: bool) -> None:
    """Change byte ``at`` of a raw chunk, and with ``sums`` every checksum of its frame as well."""
    key = pack_key(where.pack)
    pack = bytearray(blobs.get(key))
    frame = pack[where.offset : where.offset + where.frame_bytes]
    head = parse_frame_head(frame, "the frame")
    assert head.codec == RAW
    payload = frame[head.head_bytes :]
    payload[at] ^= 1
    start = bytes(frame[: head.head_bytes])
    if sums:
        start = build_head(
            digest=head.digest, codec=RAW, dtype=head.dtype, plain=payload, codec_head=b"",
            ends=head.ends, payload=payload,
        )  # fmt: skip
    pack[where.offset : where.offset + where.frame_bytes] = start + payload
    blobs.put(key, pack)


def test_a_frame_with_right_checksums_of_other_bytes_is_damaged(
    store: Store, blobs: MemoryStore
) -> None:
    spoil(blobs, place(store, "m"), 1234, sums=True)
    with pytest.raises(Damaged, match="plain bytes do not match their digest"):
        store.load("m").load()


def test_a_part_that_is_to_be_stored_again_is_compared_with_its_chunks_digest(
    store: Store, blobs: MemoryStore
) -> None:
    opened = store.load("m")._opened.verified()
    assert np.array_equal(opened.tensors["w"][[1, 599]], WORDS[[1, 599]])
    spoil(blobs, place(store, "m"), 1234, sums=True)
    for row in (1, 599):
        with pytest.raises(Damaged, match="plain bytes do not match their digest"):
            store.load("m")._opened.verified().tensors["w"][row]


def test_a_row_of_a_block_that_does_not_match_its_checksum_is_damaged(
    store: Store, blobs: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a chunk without a proof, as one that was stored without the native part."""
    words = WORDS[::-1].copy()
    with monkeypatch.context() as patched:
        patched.setattr(proof, "_native", None)
        store.save("plain", {"w": words})
    spoil(blobs, place(store, "plain"), 1234, sums=False)
    tensor = store.load("plain").tensor("w")
    with pytest.raises(Damaged, match="checksum of its block 0"):
        tensor[1]
    assert np.array_equal(tensor[599], words[599]), "another block is what it was"


def test_a_layout_whose_bases_are_deltas_is_damaged(store: Store, blobs: MemoryStore) -> None:
    words = np.random.default_rng(5).standard_normal((300, 500)).astype(np.float16)
    store.save("base", {"w": words})
    tuned = words.copy()
    tuned.view(np.uint16)[::3] += 1
    store.save("base", {"w": tuned})
    top, below = place(store, "base@2"), place(store, "base@1")
    assert top.bases == (below.digest,)
    places = [top, replace(below, codec=DELTA, bases=(top.digest,))]
    sizes = {one.pack: blobs.info(pack_key(one.pack)).size for one in places}
    digest = store.resolve("base@2").digest
    blobs.put(layout_key(digest), seal_layout(digest, places, sizes))
    with pytest.raises(Damaged, match="not standalone"):
        store.load("base@2").load()


def test_a_layout_that_finds_another_chunk_is_damaged(store: Store, blobs: MemoryStore) -> None:
    store.save("two", {"a": WORDS[::-1].copy(), "b": WORDS[:, ::-1].copy()})
    model = store.load("two")
    [one], [other] = ([piece.place for piece in model.tensor(n)._base.chunks()] for n in "ab")
    assert one.frame_bytes == other.frame_bytes
    places = [replace(one, digest=other.digest), replace(other, digest=one.digest)]
    sizes = {one.pack: blobs.info(pack_key(one.pack)).size}
    blobs.put(layout_key(model.version.digest), seal_layout(model.version.digest, places, sizes))
    swapped = store.load("two")
    for read in (swapped.load, lambda: swapped.tensor("a")[3]):
        with pytest.raises(Damaged, match="frame of another chunk"):
            read()
