"""How large versions are: in their entries, in lists, in copies, and where an entry is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tierstore
from tests.integration.kit import created
from tests.integration.test_copy import copied
from tierstore import Rows
from tierstore.blobs.base import BlobStore
from tierstore.blobs.memory import MemoryStore
from tierstore.cli.kit.app import run
from tierstore.format.keys import VARIANTS, VERSION_LOG, VERSIONS, entry_key, ref_prefix
from tierstore.format.reflog import RefEntry, Summary, parse_entry
from tierstore.format.sealed import Kind, seal_body
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.variants.derive import derive

WRONG = Summary(bytes=1, files=2, tensors=3)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Store]:
    """A model with a patch that is folded, one on it, and a variant; and a release."""
    monkeypatch.setenv("TIERSTORE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(cache))
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"w": np.arange(6000, dtype=np.float32).reshape(100, 60), "b": np.ones(3)})
        for number in (1, 2):
            store.patch("m", {"w": Rows([number], np.zeros((1, 60), np.float32))})
            if number == 1:
                store.fold("m")
        derive(store, "m@1", {"int8": "row"})
        store.releases.create("all", ["m@1"])
        yield store


@pytest.fixture
def blobs(store: Store) -> BlobStore:
    return store._parts.home.blobs


def versions_of(store: Store) -> list[Version]:
    return [*store.versions("m"), *store.variants("m@1")]


def sizes(versions: list[Version]) -> list[tuple[int | None, ...]]:
    return [(one.size, one.file_count, one.tensor_count) for one in versions]


def loaded(store: Store) -> list[tuple[int | None, ...]]:
    """What the versions have, as they are loaded."""
    every = [store.load(version) for version in versions_of(store)]
    return [(sum(file.size for file in one.files), len(one.files), len(one)) for one in every]


def say(blobs: BlobStore, summary: Summary | msgspec.UnsetType, name: str = VERSION_LOG) -> None:
    """Have all entries of a log say this; early ones say nothing."""
    for info in list(blobs.list(ref_prefix("m", name) + "000000/")):
        entry = parse_entry(blobs.get(info.key), int(info.key[-9:]), "x")
        new: RefEntry = msgspec.structs.replace(entry, summary=summary)
        blobs.put(info.key, seal_body(Kind.REF, new))


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[int | None, ...]]:
    """The sizes in what ``tierstore ls`` prints: of the newest versions, or of a model's."""
    assert run(["ls", "--json", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    found = told["versions"] if words else [one["latest"] for one in told["models"]]
    return [(one["bytes"], one["files"], one["tensors"]) for one in found]


def test_entries_say_how_large_versions_are(store: Store) -> None:
    assert sizes(versions_of(store)) == loaded(store)
    assert sizes([store.resolve("all")]) == [(None, None, None)]


def test_early_entries_are_listed_with_sizes_too(
    store: Store, blobs: BlobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their manifests are read once; so is that at which patches end."""
    expected = loaded(store)[:3]
    say(blobs, msgspec.UNSET)
    assert sizes(store.versions("m")) == [(None, None, None)] * 3
    assert listed(capsys, "m") == expected
    blobs.delete([info.key for info in blobs.list(VERSIONS)])
    assert listed(capsys, "m") == expected
    assert listed(capsys) == expected[:1]


def test_what_cannot_be_read_has_no_size(
    store: Store, blobs: BlobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    say(blobs, msgspec.UNSET)
    blobs.delete([info.key for info in blobs.list(VERSIONS)])
    assert listed(capsys) == [(None, None, None)]


def test_a_check_says_which_entry_is_wrong(store: Store, blobs: BlobStore) -> None:
    """And nothing else goes by it."""
    assert not store.check().findings
    expected, usage = loaded(store), store.usage()
    say(blobs, WRONG)
    say(blobs, WRONG, VARIANTS + "int8-row")
    found = [one for one in store.check().findings if "1 bytes in 2 files" in one.what]
    prefix = ref_prefix("m", VERSION_LOG)
    keys = [entry_key(prefix, seq) for seq in (1, 2, 3)]
    variant = entry_key(ref_prefix("m", VARIANTS + "int8-row"), 1)
    assert [one.key for one in found] == sorted([*keys, variant])
    assert (loaded(store), store.usage()) == (expected, usage)


def test_a_copy_says_what_its_manifests_do(store: Store, blobs: BlobStore, cache: Path) -> None:
    expected = sizes(versions_of(store))
    say(blobs, WRONG)
    say(blobs, msgspec.UNSET, VARIANTS + "int8-row")
    with created(MemoryStore("other"), cache / "other") as other:
        for number in (1, 2, 3):
            copied(store, f"m@{number}", other)
        assert sizes(versions_of(other)) == expected
