"""The whole of it on object storage, and on file systems of fsspec."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import MIB, equal, tensors, tree
from tests.servers.moto import Moto
from tierstore import Rows
from tierstore.errors import Conflict, Damaged, NotFound

_names = itertools.count()


@pytest.fixture(params=["s3", "memory", "fsspec+memory"])
def url(
    request: pytest.FixtureRequest, moto_server: Moto, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    name = f"bucket-{next(_names)}"
    if request.param == "s3":
        for key, value in moto_server.environment.items():
            monkeypatch.setenv(key, value)
        moto_server.client().create_bucket(Bucket=name)
    return f"{request.param}://{name}/models/here"


def test_from_end_to_end(url: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    with pytest.raises(NotFound, match="is not a store"):
        tierstore.open(url)
    with tierstore.init(url, chunk_size=MIB) as store:
        store.save("org/m", tensors(1), alias="prod")
        changed = tensors(1) | {"bias": tensors(2)["bias"]}
        version = store.save("org/m", changed, alias="prod", message="second")
        assert version.stats is not None
        assert version.stats.new_chunks == 1
        store.load("org/m").export(source, others="merge")
        store.save("files", source)
    with pytest.raises(Conflict):
        tierstore.init(url)
    with tierstore.open(url) as store:
        assert store.models() == ["files", "org/m"]
        model = store.load("org/m@prod")
        equal(model.load(), changed)
        equal(store.load("org/m@1").load(), tensors(1))
        rows = [299, 0, 150, 0]
        assert model.tensor("emb")[rows].tobytes() == tensors(1)["emb"][rows].tobytes()
        assert model.tensor("emb")[100:290].tobytes() == tensors(1)["emb"][100:290].tobytes()
        assert store.load("files").read_file("config.json") == b"{}"
        store.load("files").export(tmp_path / "out")
        assert tree(tmp_path / "out") == tree(source)
        assert store.rollback("org/m", "prod").version.number == 1
        assert store.resolve("org/m@prod").number == 1
        report = store.check(read_data=True)
        assert report.findings == []
        assert store.usage().versions == 3


def test_what_was_lost_is_made_anew(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are the same, and nothing is stored again, on a node that has nothing yet."""
    with tierstore.init(url, chunk_size=MIB) as store:
        for number in (1, 2):
            store.save("m", tensors(number), base=None)
        store.patch("m@2", {"emb": Rows([7], np.ones((1, 1000), np.float32))})
        blobs = store._parts.home.blobs
        for prefix in ("index/", "layouts/"):
            blobs.delete([info.key for info in blobs.list(prefix)])
        done = store.reclaim.rebuild_layouts()
        assert (done.written, done.lost) == (3, [])
        assert store.reclaim.rebuild_index().chunks > 6
        assert store.check(read_data=True).findings == []
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "another node"))
    with tierstore.open(url) as store:
        equal(store.load("m@1").load(), tensors(1))
        patched = tensors(2)
        patched["emb"][7] = 1
        equal(store.load("m@3").load(), patched)
        version = store.save("again", tensors(2), base=None)
        assert version.stats is not None
        assert version.stats.new_bytes == 0


def test_a_flipped_byte_in_a_pack_is_found_and_healed(url: str) -> None:
    with tierstore.init(url, chunk_size=MIB) as store:
        store.save("m", tensors(1))
        blobs = store._parts.home.blobs
        (pack,) = [info.key for info in blobs.list("packs/")]
        data = bytearray(blobs.get(pack))
        data[len(data) // 2] ^= 4
        blobs.put(pack, data)
        with pytest.raises(Damaged, match=pack.rpartition("/")[2]):
            store.load("m").load()
        assert [(f.key, f.needed_by) for f in store.check(read_data=True).findings] == [
            (pack, ("m@1",))
        ]
        blobs.delete([pack])
        store.save("m", tensors(1))
        equal(store.load("m@1").load(), tensors(1))
        assert not store.check(read_data=True).damaged
