"""Export into directories that are not what they seem, or have no room."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

from tests.children import outlived
from tests.integration.kit import MIB, created, small_disk, tree
from tierstore import folders
from tierstore.blobs.memory import MemoryStore
from tierstore.errors import (
    BackendError,
    Conflict,
    Damaged,
    InvalidName,
    OutOfSpace,
    SourceChanged,
    SourceError,
    UnsupportedFormat,
    UsageError,
)
from tierstore.format.paths import EXPORT_LIST, EXPORT_STAGING
from tierstore.modelstore.loading import exportdir
from tierstore.modelstore.loading.exportdir import Others
from tierstore.modelstore.saving.source import BytesFile
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.unfinished import written_beside

LIST = '{"export": 1, "version": "m@1", "digest": "b3:00", "whole": true, "files": ["%s"]}'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub/deep").mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "sub/deep/b.txt").write_text("b")
    (root / "z.bin").write_bytes(np.random.default_rng(0).bytes(2 * MIB))
    return root


@pytest.fixture
def store(cache: Path, source: Path) -> Store:
    store = created(MemoryStore("export"), cache)
    store.save("m", source, allow_no_tensors=True)
    return store


@pytest.mark.parametrize("others", ["refuse", "merge"])
def test_a_link_inside_the_target_does_not_lead_out(
    store: Store, tmp_path: Path, others: Others
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "sub").symlink_to(outside)
    with pytest.raises(Conflict, match="sub"):
        store.load("m").export(target, others=others)
    assert list(outside.iterdir()) == [], "not even a folder"
    assert [path.name for path in target.iterdir()] == ["sub"]


def test_a_link_is_removed_and_what_it_points_to_stays(
    store: Store, source: Path, tmp_path: Path
) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep/b.txt").write_text("keep")
    target.mkdir()
    (target / "sub").symlink_to(outside)
    (target / "more").symlink_to(outside / "deep")
    store.load("m").export(target, others="delete")
    assert (outside / "deep/b.txt").read_text() == "keep"
    assert tree(target) == tree(source)
    assert not any(path.is_symlink() for path in target.rglob("*"))


def test_a_folder_of_an_export_that_became_a_link_is_not_followed(
    store: Store, tmp_path: Path
) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    store.load("m").export(target)
    (target / "sub").rename(outside)
    (target / "sub").symlink_to(outside)
    with pytest.raises(Conflict, match="no export wrote: sub"):
        store.load("m").export(target)
    assert (outside / "deep/b.txt").read_text() == "b"


def test_a_link_that_comes_while_an_export_is_at_work(store: Store, tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()

    def meanwhile(done: int, total: int) -> None:
        if done == total:
            (target / "sub").symlink_to(outside)

    with pytest.raises(BackendError, match=r"left without a whole version.*export again"):
        store.load("m").export(target, progress=meanwhile)
    assert list(outside.iterdir()) == []


def test_an_export_while_the_directory_is_saved(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    other = store.save("n", {"w": np.zeros(3, np.float32)})
    store.load("m").export(target)
    walk = os.walk

    def slow(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from list(walk(*args, **kwargs))[:1]  # the folders of the version before are gone
        store.load(other).export(target)
        (target / "a.txt").write_text("a")
        (target / "z.bin").write_text("z")

    monkeypatch.setattr(os, "walk", slow)
    with pytest.raises(SourceChanged, match="another version was exported to"):
        store.save("o", target)


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(
    store: Store, source: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    target = tmp_path / "target"
    target.mkdir()
    (target / "a.txt").symlink_to(precious)
    store.load("m").export(target, others="merge")
    assert precious.read_text() == "keep"
    assert not (target / "a.txt").is_symlink()
    assert tree(target) == tree(source)


def test_a_file_with_other_names_keeps_its_content_there(
    store: Store, source: Path, tmp_path: Path
) -> None:
    store.load("m").export(tmp_path / "target")
    hot = tmp_path / "hot"
    hot.hardlink_to(tmp_path / "target/a.txt")
    hot.write_text("what the other name says")
    (tmp_path / "target/a.txt").chmod(0o444)
    store.load("m").export(tmp_path / "target")
    assert hot.read_text() == "what the other name says"
    assert tree(tmp_path / "target") == tree(source), "read-only files are replaced too"


def test_a_link_to_the_target_itself_is_fine(store: Store, source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store.load("m").export(tmp_path / "link")
    assert tree(tmp_path / "real") == tree(source)
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_nothing_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(BackendError, match=r"link is a link to .*real, which does not exist"):
        store.load("m").export(tmp_path / "link")
    assert not (tmp_path / "real").exists()


def test_the_current_directory(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store.load("m").export(".")
    assert tree(tmp_path / "here") == tree(source)
    with pytest.raises(UsageError, match="has no name"):
        store.load("m").export("")


@pytest.mark.parametrize(
    "what", ["the target is a file", "a file is a folder", "a folder is a file"]
)
def test_something_in_the_way(store: Store, source: Path, tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    if what == "the target is a file":
        target.write_text("mine")
        with pytest.raises(UsageError, match="is a file, and an export goes to a directory"):
            store.load("m").export(target, others="delete")
        assert target.read_text() == "mine"
        return
    way = target / ("a.txt/mine" if what == "a file is a folder" else "sub")
    way.parent.mkdir(parents=True)
    way.write_text("mine")
    with pytest.raises(Conflict, match="no export wrote"):
        store.load("m").export(target)
    with pytest.raises(Conflict, match=f"{way} is in the way"):
        store.load("m").export(target, others="merge")
    assert tree(target).keys() == {way.relative_to(target).as_posix()}
    store.load("m").export(target, others="delete")
    assert tree(target) == tree(source)


def test_empty_folders(store: Store, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "a.txt/empty").mkdir(parents=True)
    (target / "other").mkdir()
    store.load("m").export(target)
    assert tree(target) == tree(source)
    assert (target / "other").is_dir(), "it is no file, and in nobody's way"
    store.load("m").export(target, others="delete")
    assert not (target / "other").exists()


def test_other_files_are_named(store: Store, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    store.load("m").export(target)
    for name in "0123456":
        (target / name).write_text("mine")
    with pytest.raises(Conflict, match=r"holds 7 files that no export wrote: 0, 1, 2, 3, 4, …\. "):
        store.load("m").export(target)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").write_text("another")
    store.save("n", tmp_path / "other", allow_no_tensors=True)
    store.load("n").export(target, others="merge")
    assert sorted(tree(target)) == [*"0123456", "a.txt"]
    assert (target / "a.txt").read_text() == "another"


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"export": 1}', "no JSON", LIST % "../outside", LIST % EXPORT_LIST],
)
def test_a_list_that_is_none(store: Store, source: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "outside").write_text("mine")
    target = tmp_path / "target"
    target.mkdir()
    (target / EXPORT_LIST).write_text(text)
    (target / "w").write_text("x")
    with pytest.raises(Conflict, match=r"is no list of an export.*remove that file"):
        store.load("m").export(target)
    with pytest.raises(Conflict, match="is no list of an export"):
        store.save("n", target)
    store.load("m").export(target, others="delete")
    assert tree(target) == tree(source)
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_list_of_a_newer_tierstore(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    newer = (LIST % "a").replace('"export": 1', '"export": 2')
    (tmp_path / "out" / EXPORT_LIST).write_text(newer)
    with pytest.raises(UnsupportedFormat, match="newer"):
        store.load("m").export(tmp_path / "out")


def test_a_save_of_an_interrupted_export_is_refused(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "parent/target"
    store.load("m").export(target)
    parts = (target / EXPORT_LIST).read_text()
    (target / EXPORT_LIST).write_text(parts.replace('"whole": true', '"whole": false'))
    for source in (target, target.parent):
        with pytest.raises(SourceError, match=r"target holds a part of m@1 only.*Export it again"):
            store.save("n", source, allow_no_tensors=True)
    (target / EXPORT_LIST).unlink()
    again = store.save("n", target, allow_no_tensors=True)
    assert again.digest == store.load("m").version.digest


def test_what_tierstore_keeps_is_never_content(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "parent/target"
    store.load("m").export(target)
    (target / EXPORT_STAGING).mkdir()
    (target / EXPORT_STAGING / "0.tmp").write_text("x")
    (target / "sub" / f".tierstore-{'0' * 32}.tmp").write_text("x")
    again = store.save("n", target, allow_no_tensors=True)
    assert again.digest == store.load("m").version.digest
    above = store.save("o", target.parent, allow_no_tensors=True)
    assert {file.path for file in store.load(above).files} == {
        "target/a.txt", "target/sub/deep/b.txt", "target/z.bin",
    }  # fmt: skip
    store.load("m").export(target)
    assert tree(target).keys() == {"a.txt", "sub/deep/b.txt", "z.bin"}


def test_two_exports_into_one_directory(store: Store, source: Path, tmp_path: Path) -> None:
    first = store.load("m")
    refused = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(Conflict, match="another export writes to"):
            store.load("m").export(tmp_path / "target", others="delete")
        refused.append(done)

    first.export(tmp_path / "target", progress=meanwhile)
    assert refused
    assert tree(tmp_path / "target") == tree(source)


def test_an_export_that_was_killed_and_left_a_child_is_done_again(
    store: Store, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"

    def fork_while_writing(fork: Callable[[], None]) -> None:
        store.load("m").export(target, progress=lambda done, total: fork())

    with outlived(fork_while_writing):
        assert [path.name for path in target.iterdir()] == [EXPORT_STAGING], (
            "nothing is in its place yet"
        )
        store.load("m").export(target)
        assert tree(target) == tree(source)


def test_a_child_that_leaves_an_export_removes_nothing_of_its_parents(
    store: Store, source: Path, tmp_path: Path
) -> None:
    class InChild(Exception):
        """Raised there alone."""

    children: list[int] = []

    def fork(done: int, total: int) -> None:
        if not children:
            children.append(os.fork())
            if not children[0]:
                raise InChild
            assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7

    try:
        store.load("m").export(tmp_path / "target", progress=fork)
    except InChild:
        os._exit(7)
    finally:
        if children == [0]:
            os._exit(8)
    assert tree(tmp_path / "target") == tree(source)


def test_a_signal_at_any_line_leaves_nothing(store: Store, tmp_path: Path) -> None:
    """Between the first folder that is made and the first file that is written."""
    interrupted = 0
    model = store.load("m")
    for line in itertools.count():
        target = tmp_path / f"{line}"
        target.mkdir()  # what was there is not removed with what was made in it
        with interrupted_at_line(line, exportdir._locked.__code__) as came:
            model.export(target)
        if not came:
            break
        interrupted += 1
        assert list(target.iterdir()) == []
    assert interrupted > 10


@contextlib.contextmanager
def interrupted_at_line(number: int, code: CodeType) -> Iterator[list[int]]:
    """Have Ctrl-C come before the given line, counted as they run, of a function."""
    came: list[int] = []
    lines = itertools.count()

    def look(frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line" and not came and next(lines) == number:
            came.append(frame.f_lineno)
            raise KeyboardInterrupt
        return look

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: look if frame.f_code is code else None)
    try:
        yield came
    except KeyboardInterrupt:
        assert came
    finally:
        sys.settrace(before)


def test_what_others_are_writing_is_no_content_and_stays(
    store: Store, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    left = target / f".tierstore-{'0' * 32}.tmp"
    left.touch()
    with written_beside(target / "later") as fd:
        os.write(fd, b"more")
        left.touch()  # this one was just swept
        store.load("m").export(target, others="delete")
        assert not left.exists()
        assert len(list(target.glob(".tierstore-*.tmp"))) == 1
    assert tree(target) == tree(source) | {"later": hashlib.sha256(b"more").hexdigest()}


@pytest.mark.parametrize("name", ["new\nline", "bell\a", "\x85", "x" * 256, EXPORT_LIST])
def test_names_that_are_refused_and_stay_readable(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:  # a version of a writer that did not refuse them
        patch.setattr("tierstore.modelstore.saving.source.check_new_path", lambda path: path)
        file = BytesFile(f"sub/{name}", b"what it holds")
        saving = store._parts.saving
        with saving.begin() as writer:
            writer.publish(store._names.publication("old", None, ""), [file])
    assert store.load("old").read_file(f"sub/{name}") == b"what it holds"
    with pytest.raises(InvalidName, match=r"not allowed: (it holds a control|a part of|tierstore)"):
        store.load("old").export(tmp_path / "target")
    assert not (tmp_path / "target").exists()
    if name != EXPORT_LIST and len(name) < 256:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / name).write_text("x")
        with pytest.raises(InvalidName, match=r"control character; rename it"):
            store.save("n", tmp_path / "in", allow_no_tensors=True)


def test_names_that_differ_by_case(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("Sub/a", "sub/b", "É", "\u00e9"):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_text(path)
    store.save("n", tmp_path / "in", allow_no_tensors=True)
    assert "'Sub' and 'sub' differ only by case" in caplog.text
    store.load("n").export(tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "in"), "this file system can hold both"


def test_a_target_that_takes_two_names_for_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("Sub/a", "sub/b"):
        (tmp_path / "in" / path).parent.mkdir(parents=True)
        (tmp_path / "in" / path).write_text(path)
    store.save("n", tmp_path / "in", allow_no_tensors=True)
    mkdir, stat = os.mkdir, os.stat
    with monkeypatch.context() as patch:  # as of a file system that folds case, for its folders
        patch.setattr(os, "mkdir", lambda path, *a, **kw: mkdir(str(path).lower(), *a, **kw))
        patch.setattr(os, "stat", lambda path, *a, **kw: stat(folded(path), *a, **kw))
        with pytest.raises(Conflict, match=r"cannot hold both '[Ss]ub' and '[sS]ub': its file sys"):
            store.load("n").export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def folded(path: Any) -> Any:
    return path.lower() if isinstance(path, str) else path


def test_a_mount_point_below_the_target(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "tar get"
    store.load("m").export(target)
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(exportdir, "mounts", lambda: folders.mounts(str(mounts)))
    root, line = "36 35 98:0 / / rw - ext4 /dev/root rw\n", "36 35 98:1 / {} rw - ext4 /dev/b rw\n"
    point = str(target).replace(" ", "\\040")
    mounts.write_text(line.format(f"{point}/sub/deep") + root)
    with pytest.raises(Conflict, match="tar get/sub/deep is a mount point"):
        store.load("m").export(target)
    mounts.write_text(line.format(f"{point}/empty"))
    store.load("m").export(target)
    with pytest.raises(Conflict, match="tar get/empty is a mount point"):
        store.load("m").export(target, others="delete")
    mounts.write_text(root + line.format(point))
    store.load("m").export(target, others="delete")
    assert tree(target) == tree(source), "the target itself may be one"


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A directory that takes no file of 2 MiB: a tmpfs, or else a limit on file sizes."""
    with small_disk(tmp_path / "full", "512k", 512 << 10) as path:
        yield path


def test_a_full_target(store: Store, full: Path) -> None:
    with pytest.raises(OutOfSpace, match=r"z\.bin cannot be written.*free some space"):
        store.load("m").export(full)
    assert tree(full) == {}, "nothing is put in place before all is there"


def test_a_pack_that_fails_half_way_leaves_no_half_file(
    store: Store, cache: Path, tmp_path: Path
) -> None:
    def plan(op: str, key: str, n: int) -> Fault:
        return "flip" if op == "get_ranges" else None

    faulty = Store(FaultyStore(store._parts.home.blobs, plan), store._parts.settings)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("what was there")
    with pytest.raises(Damaged):
        faulty.load("m").export(tmp_path / "out", others="delete")
    assert (tmp_path / "out/a.txt").read_text() == "what was there"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]
    faulty.close()
