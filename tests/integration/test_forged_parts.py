"""Rows, slices and ranges of frames that somebody forged: every checksum fits, the digest does not.

Whoever can write a tier can write checksums that fit, so these show nothing. A proof does, which
binds each block to the chunk's digest; forged copies are damage, and others are read instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.integration.kit import MIB, settings
from tests.integration.test_tiers import Tiered
from tierstore.blobs.base import BlobStore
from tierstore.codecs import RAW
from tierstore.errors import Damaged
from tierstore.format import proof
from tierstore.format.frame import FrameHead, build_head, parse_frame_head
from tierstore.format.keys import layout_key, move_key, pack_key
from tierstore.format.layout import Move, seal_layout
from tierstore.format.pack import PackBuilder
from tierstore.format.proof import hash_plain, proof_frame
from tierstore.format.sealed import Kind, seal_body
from tierstore.format.table import ChunkPlace
from tierstore.modelstore.store import Store

BLOCK = 1 << 18
ROW = 1024
WORDS = np.random.default_rng(4).integers(0, 256, (1024, ROW), np.uint8)
"""Four blocks of bytes that no codec makes smaller: the frame's payload is the chunk itself."""
FORGED = WORDS.copy()
FORGED[1, 0] ^= 1


@pytest.fixture
def tiered(tmp_path: Path) -> Iterator[Tiered]:
    made = Tiered(tmp_path)
    yield made
    for store in made.opened:
        store.close()


def place(store: Store, ref: str = "m") -> ChunkPlace:
    [piece] = store.load(ref).tensor("w")._base.chunks()
    return piece.place


def head_over(plain: bytes, head: FrameHead) -> bytes:
    """A head of the same chunk whose every checksum fits other bytes."""
    return build_head(
        digest=head.digest, codec=RAW, dtype=head.dtype, plain=plain, codec_head=b"",
        ends=head.ends, payload=plain,
    )  # fmt: skip


Forge = Callable[[bytes, bytes], tuple[bytes, bytes]]
"""From the plain bytes and the proof of a chunk, those to put in their place."""


def changed(plain: bytes, values: bytes) -> tuple[bytes, bytes]:
    return plain[:ROW] + bytes([plain[ROW] ^ 1]) + plain[ROW + 1 :], values


def own_values(plain: bytes, values: bytes) -> tuple[bytes, bytes]:
    forged, _ = changed(plain, values)
    return forged, hash_plain(forged).proof


FORGERIES: dict[str, Forge] = {
    "block and sum": changed,
    "block, sum and value": own_values,
    "two blocks swapped": lambda plain, values: (
        plain[BLOCK : 2 * BLOCK] + plain[:BLOCK] + plain[2 * BLOCK :],
        values,
    ),
    "two blocks and their values swapped": lambda plain, values: (
        plain[BLOCK : 2 * BLOCK] + plain[:BLOCK] + plain[2 * BLOCK :],
        values[32:64] + values[:32] + values[64:],
    ),
    "values alone": lambda plain, values: (plain, values[:-1] + bytes([values[-1] ^ 1])),
    "no proof there": lambda plain, values: (changed(plain, values)[0], b""),
}


def forge(blobs: BlobStore, where: ChunkPlace, how: Forge) -> None:
    """Put a forged frame and proof in the place of a raw chunk's."""
    key = pack_key(where.pack)
    pack = bytearray(blobs.get(key))
    start = where.offset - where.proof_bytes
    old = bytes(pack[where.offset : where.offset + where.frame_bytes])
    head = parse_frame_head(old, "the frame")
    assert head.codec == RAW
    values = bytes(pack[where.offset - 32 * len(head.ends) : where.offset])
    plain, proven = how(old[head.head_bytes :], values if where.proof_bytes else b"")
    before = proof_frame(proven) if proven else bytes(where.proof_bytes)
    pack[start : where.offset + where.frame_bytes] = before + head_over(plain, head) + plain
    blobs.put(key, pack)


def without_proofs(store: Store, tiered: Tiered, ref: str = "m") -> None:
    """Make a layout what it was before there were proofs."""
    digest = store.resolve(ref).digest
    table = store._parts.home.layout(digest, store._parts.home.manifest(digest))
    sizes = dict(zip(table.pack_ids, table.pack_sizes, strict=True))
    places = [replace(one, proof_bytes=0) for one in table]
    tiered.stores["home"].inner.put(layout_key(digest), seal_layout(digest, places, sizes))


@pytest.fixture
def store(tiered: Tiered) -> Store:
    made = tiered.open()
    made.save("m", {"w": WORDS})
    assert place(made).proof_bytes == 100 + 4 * 32
    return made


def test_a_row_is_read_with_its_proof_in_two_requests(store: Store) -> None:
    model = store.load("m")
    assert np.array_equal(model.tensor("w")[1], WORDS[1])
    assert model.stats.requests == 2
    where = place(store)
    assert model.stats.bytes_fetched == where.proof_bytes + where.head_bytes + BLOCK


@pytest.mark.parametrize("tier", ["warm", "home"])
@pytest.mark.parametrize("how", FORGERIES)
def test_a_forged_part_is_refused(tiered: Tiered, store: Store, how: str, tier: str) -> None:
    if tier == "home":
        tiered.copy("warm", "home", drop=True)
    forge(tiered.stores[tier].inner, place(store), FORGERIES[how])
    model = tiered.open().load("m")
    for read in (
        lambda: model.tensor("w")[1],
        lambda: model.tensor("w")[[0, 3]],
        lambda: model.tensor("w")[1:3],
        lambda: model.open_file("model.safetensors").read(900, 2000),
    ):
        with pytest.raises(Damaged):
            read()


@pytest.mark.parametrize("how", FORGERIES)
def test_a_forged_part_is_read_from_another_tier(
    tiered: Tiered, store: Store, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    tiered.copy("warm", "cold")
    forge(tiered.stores["warm"].inner, place(store), FORGERIES[how])
    model = tiered.open().load("m")
    assert np.array_equal(model.tensor("w")[[1, 2, 1023]], WORDS[[1, 2, 1023]])
    assert "in tier warm is damaged, another one was read" in caplog.text


def test_a_forged_frame_of_a_shared_tier_is_read_from_elsewhere(tiered: Tiered) -> None:
    store = tiered.open(hot=True)
    store.save("m", {"w": WORDS})
    store.load("m").load()
    assert store._parts.hot.flush(60)
    inner = tiered.stores["shared"].inner
    [info] = inner.list()
    old = bytes(inner.get(info.key))
    head = parse_frame_head(old, "the frame")
    plain, _ = changed(old[head.head_bytes :], b"")
    inner.put(info.key, head_over(plain, head) + plain)
    model = tiered.open(hot=True).load("m")
    assert np.array_equal(model.tensor("w")[[1, 2]], WORDS[[1, 2]])
    assert np.array_equal(model.load()["w"], WORDS)
    assert tiered.opened[-1]._parts.hot.shared[0].stats.damaged == 1


def test_a_forged_chunk_of_one_block_is_refused(tiered: Tiered) -> None:
    store = tiered.open()
    store.save("m", {"w": WORDS[:256]})
    assert place(store).proof_bytes == 0
    assert np.array_equal(store.load("m").tensor("w")[3], WORDS[3])
    forge(tiered.stores["warm"].inner, place(store), changed)
    with pytest.raises(Damaged, match="plain bytes do not match their digest"):
        store.load("m").tensor("w")[3]


def test_chunks_without_proofs_are_read_whole_if_asked(tiered: Tiered, store: Store) -> None:
    """The limit of the checksums, and what the setting makes of it."""
    without_proofs(store, tiered)
    forge(tiered.stores["warm"].inner, place(store), changed)
    assert np.array_equal(store.load("m").tensor("w")[1], FORGED[1]), "checksums show no forgery"
    strict = replace(settings(tiered.folder), verify_parts="chunks")
    with Store(tiered.stores["home"], strict, packs=store._parts.home.packs) as whole:
        for row in (1, 900):
            with pytest.raises(Damaged, match="plain bytes do not match their digest"):
                whole.load("m").tensor("w")[row]


def test_with_proofs_the_setting_reads_no_whole_chunk(tiered: Tiered, store: Store) -> None:
    strict = replace(settings(tiered.folder), verify_parts="chunks")
    with Store(tiered.stores["home"], strict, packs=store._parts.home.packs) as whole:
        model = whole.load("m")
        assert np.array_equal(model.tensor("w")[1], WORDS[1])
        assert model.stats.bytes_fetched < 2 * BLOCK


def test_without_the_native_part_whole_chunks_are_read(
    tiered: Tiered, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_native", None)
    model = store.load("m")
    assert np.array_equal(model.tensor("w")[[1, 900]], WORDS[[1, 900]])
    assert model.stats.bytes_fetched == place(store).frame_bytes
    store.save("other", {"w": FORGED})
    assert place(store, "other").proof_bytes == 0
    assert store.check(read_data=True).findings == []
    forge(tiered.stores["warm"].inner, place(store), changed)
    with pytest.raises(Damaged, match="plain bytes do not match their digest"):
        store.load("m").tensor("w")[900]


def test_a_proof_that_a_move_has_lost(tiered: Tiered, store: Store) -> None:
    """Whoever rewrites packs without proofs makes reads dearer, and none less sure."""
    old, warm = place(store), tiered.stores["warm"].inner
    data = bytes(warm.get(pack_key(old.pack)))
    frame = data[old.offset : old.offset + old.frame_bytes]
    builder = PackBuilder()
    builder.add(old.digest, frame, old.head_bytes, old.plain_bytes, old.codec)
    new, buffers, [now] = builder.close()
    warm.put(pack_key(new), buffers)
    warm.delete([pack_key(old.pack)])
    move = Move(pack=old.pack.hex(), into=[new.hex()])
    tiered.stores["home"].inner.put(move_key(old.pack), seal_body(Kind.MOVE, move))
    assert np.array_equal(store.load("m").tensor("w")[1], WORDS[1])
    forge(warm, now, changed)
    with pytest.raises(Damaged, match="plain bytes do not match their digest"):
        store.load("m").tensor("w")[1]


def test_rows_of_a_delta_on_a_forged_base_come_from_another_tier(tiered: Tiered) -> None:
    rng = np.random.default_rng(8)
    base = rng.integers(0, 2**16, (1024, 512), np.uint16).view(np.float16)
    tuned = base.copy()
    tuned.view(np.uint16)[::3] ^= 1
    store = tiered.open()
    store.save("m", {"w": base})
    store.save("m", {"w": tuned})
    assert place(store, "m@2").bases == (place(store, "m@1").digest,)
    without_proofs(store, tiered, "m@2")
    digest = store.resolve("m@2").digest
    table = store._parts.home.layout(digest, store._parts.home.manifest(digest))
    sizes = dict(zip(table.pack_ids, table.pack_sizes, strict=True))
    places = [  # of the base alone no proof is known
        replace(one, proof_bytes=228) if one.bases else one for one in table
    ]
    tiered.stores["home"].inner.put(layout_key(digest), seal_layout(digest, places, sizes))
    rows = [0, 1, 500, 1023]
    want = tuned[rows].tobytes()
    assert store.load("m@2").tensor("w")[rows].tobytes() == want
    tiered.copy("warm", "cold")
    forge(tiered.stores["warm"].inner, place(store, "m@1"), changed)
    assert store.load("m@2").tensor("w")[rows].tobytes() == want


def test_check_finds_a_bad_proof(tiered: Tiered, store: Store) -> None:
    assert store.check(read_data=True).findings == []
    forge(tiered.stores["warm"].inner, place(store), FORGERIES["values alone"])
    report = store.check(read_data=True)
    assert report.damaged
    assert any("its proof does not give its digest" in one.what for one in report.findings)
    assert np.array_equal(store.load("m").load()["w"], WORDS), "whole chunks need no proof"


def test_a_deduplicated_chunk_keeps_its_proof(tiered: Tiered, store: Store) -> None:
    store.save("again", {"w": WORDS})
    assert place(store, "again") == place(store)
    with Store(
        tiered.stores["home"], settings(tiered.folder / "other"), packs=store._parts.home.packs
    ) as other:  # from the index in home
        other.save("thrice", {"w": WORDS})
        assert place(other, "thrice") == place(store)


def test_a_chunk_of_every_length(tiered: Tiered) -> None:
    """Rows at the ends of blocks, of chunks of one to four blocks, whatever is left over."""
    store = tiered.open()
    sizes = [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1023, 3 * BLOCK, MIB - 1, MIB, MIB + 77]
    data = np.random.default_rng(6).integers(0, 256, 2 * MIB, np.uint8)
    store.save("m", {f"t{size}": data[:size] for size in sizes})
    model = store.load("m")
    for size in sizes:
        edges = {0, size // 2, size - 1, *range(BLOCK - 1, size, BLOCK), *range(0, size, BLOCK)}
        rows = sorted(edges)
        assert np.array_equal(model.tensor(f"t{size}")[rows], data[rows]), size
