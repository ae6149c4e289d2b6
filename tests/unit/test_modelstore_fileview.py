"""A stored file read by ranges gives the bytes that were saved, and fetches only what it must."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.kit import safetensors_bytes
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Damaged, NotFound
from tierstore.modelstore.home.home import create_config
from tierstore.modelstore.settings import Settings
from tierstore.modelstore.store import Store

MIB = 1 << 20
NOISE = np.random.default_rng(0).bytes(3 * MIB)
FILES = {
    # the header has an odd length, so that no tensor lies at a whole number of anything
    "model.safetensors": safetensors_bytes(
        [
            ("a", "U8", [100], NOISE[:100]),
            ("empty", "F32", [0, 7], b""),
            ("big", "U8", [2 * MIB + 5], NOISE[: 2 * MIB + 5]),
            ("b", "I16", [3], NOISE[7:13]),
        ],
        {"k": "väl"},
    ),
    "sub/plain.bin": NOISE[5 : 2 * MIB + 99],
    "config.json": b"{}",
    "empty.txt": b"",
}


@dataclass
class Case:
    store: Store
    blobs: MemoryStore


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    source = tmp_path_factory.mktemp("model")
    for path, data in FILES.items():
        (source / path).parent.mkdir(exist_ok=True)
        (source / path).write_bytes(data)
    blobs = MemoryStore("fileview")
    create_config(blobs, MIB)
    cache = tmp_path_factory.mktemp("cache")
    store = Store(blobs, Settings(cache, threads=2, memory_limit_bytes=64 * MIB))
    store.save("m", source)
    return Case(store, blobs)


@given(path=st.sampled_from(sorted(FILES)), data=st.data())
def test_every_range_is_the_files_own(case: Case, path: str, data: st.DataObject) -> None:
    whole = FILES[path]
    near = [0, 8, len(whole), MIB, 2 * MIB, 100, len(whole) - 6]
    offset = data.draw(
        st.one_of(st.integers(0, len(whole) + 9), st.sampled_from([max(0, at) for at in near]))
    )
    length = data.draw(st.one_of(st.none(), st.integers(0, 300), st.integers(0, len(whole) + 9)))
    view = case.store.load("m").open_file(path)
    expected = whole[offset:] if length is None else whole[offset : offset + length]
    assert view.read(offset, length) == expected
    if length is not None:
        ranges = [(0, 20), (offset, length), (offset // 2, 9)]
        assert view.read_ranges(ranges) == [whole[at : at + count] for at, count in ranges]
    out = bytearray(b"x" * (len(expected) + 3))
    assert view.read_into(offset, memoryview(out)) >= len(expected)
    assert out[: len(expected)] == expected


def test_what_it_says_of_itself(case: Case) -> None:
    model = case.store.load("m")
    for path, data in FILES.items():
        view = model.open_file(path)
        assert (view.path, view.size, len(view)) == (path, len(data), len(data))
        assert view.sha256 == hashlib.sha256(data).hexdigest()
        assert view.header == data[: len(view.header)]
        assert model.read_file(path) == data
    with pytest.raises(NotFound, match="no file 'other'"):
        model.open_file("other")
    with pytest.raises(ValueError, match="negative"):
        model.open_file("config.json").read(-1)
    with pytest.raises(ValueError, match="negative"):
        model.open_file("config.json").read(0, -1)


def test_only_what_a_range_needs_is_fetched(case: Case) -> None:
    model = case.store.load("m")
    view = model.open_file("model.safetensors")
    view.read(0, len(view.header))
    assert model.stats.bytes_fetched == 0, "the header lies in the manifest"
    view.read(len(view.header) + MIB + 300_000, 10)
    assert 0 < model.stats.bytes_fetched < 300_000, "more than a block and a head for 10 bytes"


def test_a_damaged_range_is_never_returned(case: Case) -> None:
    model = case.store.load("m")
    view = model.open_file("sub/plain.bin")
    place = model._file_pieces(model._file_entry("sub/plain.bin"))[0].place
    key = f"packs/{place.pack.hex()[:2]}/{place.pack.hex()}"
    good = case.blobs.get(key)
    bad = bytearray(good)
    bad[place.offset + place.frame_bytes - 1] ^= 1  # in the last block of the first chunk
    case.blobs.put(key, bytes(bad))
    try:
        with pytest.raises(Damaged):
            view.read(MIB - 10, 20)
        with pytest.raises(Damaged):
            view.read(0, MIB)
        assert view.read(0, 1000) == FILES["sub/plain.bin"][:1000], "its first block is good"
    finally:
        case.blobs.put(key, good)


@given(path=st.sampled_from(sorted(FILES)), data=st.data())
def test_spans_cover_a_range_and_end_where_chunks_end(
    case: Case, path: str, data: st.DataObject
) -> None:
    whole = FILES[path]
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    most = data.draw(st.sampled_from([1000, MIB, MIB + 300, 10 * MIB]))
    model = case.store.load("m")
    view = model.open_file(path)
    spans = list(view.spans(start, stop, most))
    assert b"".join(view.read(a, b - a) for a, b in spans) == whole[start:stop]
    file = model._file_entry(path)
    edges = {piece.begin + len(file.header) for piece in model._file_pieces(file)}
    assert {b for _, b in spans[:-1]} <= edges
    assert all(b > a for a, b in spans)
