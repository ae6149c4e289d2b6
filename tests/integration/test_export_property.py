"""An export is a directory that holds exactly the version: whatever was there, and however the
export before it ended.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import tierstore
from tests.integration.kit import MIB, created, python
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import Conflict, SourceError
from tierstore.format.exportlist import ExportList
from tierstore.format.paths import EXPORT_LIST, EXPORT_STAGING, folders_of
from tierstore.modelstore.loading.exportdir import Others, exporting
from tierstore.modelstore.saving.source import open_source
from tierstore.modelstore.store import Store

Files = Mapping[str, bytes]

# in memory where there is such a place: thousands of exports wait for the disk otherwise
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
PART = st.sampled_from(["a", "b", "config.json", "x.index.json", "tokenizer.json", "w.dat", "é"])


def holds(files: Files) -> bool:
    """Whether a directory can hold these files: none of them is a folder of another."""
    return {folder for path in files for folder in folders_of(path)}.isdisjoint(files)


def directories(smallest: int = 1) -> st.SearchStrategy[dict[str, bytes]]:
    """Draw the content of directories."""
    path = st.lists(PART, min_size=1, max_size=3).map("/".join)
    return st.dictionaries(path, st.binary(max_size=3), min_size=smallest, max_size=6).filter(holds)


def written(root: Path, files: Files) -> Path:
    root.mkdir(exist_ok=True)
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def content(root: Path) -> dict[str, bytes]:
    """Every file below ``root`` that tierstore does not keep for itself."""
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in paths.items()
        if name != EXPORT_LIST and not name.startswith(f"{EXPORT_STAGING}/")
    }


def is_exactly(root: Path, files: Files) -> None:
    assert content(root) == files
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()}
    assert there == {folder for path in files for folder in folders_of(path)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with created(MemoryStore("exports"), tmp_path_factory.mktemp("cache")) as store:
        yield store


@given(versions=st.lists(directories(), min_size=1, max_size=4), others=directories())
@settings(max_examples=30)
def test_directories_exported_over_each_other_give_exactly_the_last(
    store: Store, versions: list[dict[str, bytes]], others: dict[str, bytes]
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        out = Path(name, "out")
        for number, files in enumerate(versions):
            version = store.save(
                "m", written(Path(name, str(number)), files), allow_no_tensors=True
            )
            store.load(version).export(out)
            is_exactly(out, files)
            again = store.save("m", out, allow_no_tensors=True)
            assert again.digest == version.digest, "the list is no content"
        last = versions[-1]
        more = {path: data for path, data in others.items() if path not in last}
        if not more or not holds({**more, **last}):
            return
        before = content(written(out, more))
        with pytest.raises(Conflict, match="that no export wrote"):
            store.load("m").export(out)
        assert content(out) == before, "a refusal changes nothing"
        store.load("m").export(out, others="merge")
        assert content(out) == {**more, **last}
        store.load("m").export(out, others="delete")
        is_exactly(out, last)


class Killed(BaseException):
    """The process is no more: no call changes anything after it."""


@contextmanager
def killed_after(calls: int) -> Iterator[None]:
    """Let ``calls`` system calls change something; the next one, and all after it, do nothing."""
    left = calls

    def dying(call: Callable[..., Any], changes: Callable[..., bool]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if changes(*args):
                left -= 1
                if left < 0:
                    raise Killed
            return call(*args, **kwargs)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rmdir", "unlink", "rename", "write"):
            patch.setattr(os, name, dying(getattr(os, name), lambda *_: True))
        patch.setattr(os, "open", dying(os.open, lambda _, flags, *rest: bool(flags & os.O_CREAT)))
        yield


def export(out: Path, files: Files, others: Others = "refuse") -> None:
    wanted = ExportList(version="m@1", digest="b3:00", whole=True, files=sorted(files))
    with exporting(out, wanted, others) as target:
        for path, data in files.items():
            with target.file(path) as fd:
                os.write(fd, data)


def looked_at(out: Path, before: Files, after: Files, kept: Files) -> None:
    """Check what a loader and a save find where an export was killed.

    An index that is in ``kept`` is of files that no export wrote, and stays beside them.
    """
    there = content(out)
    assert there.items() <= before.items() or there.items() <= after.items(), "a mix of two"
    for files in (before, after):
        entries = {
            path
            for path in files.keys() - kept.keys()
            if path.endswith(("config.json", "index.json"))
        }
        if entries and entries <= there.keys() and there.items() <= files.items():
            assert there == files, "a loader that finds all that it begins with finds all"
    staged = [path for path in out.glob(f"{EXPORT_STAGING}/**/*") if path.is_file()]
    assert {path.suffix for path in staged} <= {".tmp", "", ".json"}
    assert {path.name for path in staged if path.suffix == ".json"} <= {EXPORT_LIST}
    try:
        saved = {
            file.path for file in open_source(out, metadata=None, exclude=(), allow_no_tensors=True)
        }
    except SourceError:
        return
    assert saved == there.keys()
    assert there in (before, after), "what a save takes is a version"


@given(
    old=directories(0),
    new=directories(),
    aliens=directories(0),
    others=st.sampled_from(["refuse", "delete", "merge"]),
)
@example(old={"config.json/x/b": b""}, new={"config.json": b"2"}, aliens={}, others="merge")
@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # as it is slow
def test_an_export_that_is_killed_at_any_call(
    old: dict[str, bytes], new: dict[str, bytes], aliens: dict[str, bytes], others: Others
) -> None:
    aliens = {} if others == "refuse" else aliens
    kept = {path: data for path, data in aliens.items() if path not in {**old, **new}}
    if others == "merge" and not (holds({**old, **kept}) and holds({**new, **kept})):
        kept = {}
    if not holds({**old, **kept}):
        kept = {}
    after = {**new, **kept} if others == "merge" else new
    for calls in range(1000):
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            out = Path(name, "out")
            if old:
                export(out, old)
            if kept:
                written(out, kept)
            before = content(out) if out.exists() else {}
            try:
                with killed_after(calls):
                    export(out, new, others)
            except Killed:
                if out.exists():
                    looked_at(out, before, after, kept if others == "merge" else {})
                export(out, new, others)
                is_exactly(out, after)
                assert not (out / EXPORT_STAGING).exists()
            else:
                is_exactly(out, after)
                return
    raise AssertionError("an export of six files takes a thousand calls")


EXPORTING = """
import sys, tierstore
store = tierstore.open(sys.argv[1])
versions = [store.load("m@1"), store.load("m@2")]
print("ready", flush=True)
while True:
    for model in versions:
        model.export(sys.argv[2])
"""


def test_an_export_that_is_really_killed(tmp_path: Path) -> None:
    files = [
        {"config.json": b"1", "w.dat": bytes(MIB), "only/in/first": b"1"},
        {"config.json": b"2", "w.dat": bytes([2]) * MIB, "only": b"2"},
    ]
    with tierstore.init(tmp_path / "store", chunk_size=MIB) as store:
        for number, each in enumerate(files):
            store.save("m", written(tmp_path / str(number), each), allow_no_tensors=True)
        chance, out = random.Random(3), tmp_path / "out"
        for number in range(6):
            process = python(EXPORTING, tmp_path / "store", out)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
            time.sleep(chance.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if out.exists():
                there = content(out)
                assert any(there.items() <= each.items() for each in files), "a mix of two"
                assert "config.json" not in there or there in files
            store.load(f"m@{number % 2 + 1}").export(out)
            is_exactly(out, files[number % 2])
