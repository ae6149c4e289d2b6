"""Folders that others could write to, or made first, are not believed."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierstore
from tests.unit.test_tiers_local import chunk, files, hot, offer, read
from tierstore.blobs.local.store import LocalStore
from tierstore.config import settings_from
from tierstore.errors import ConfigError, NotFound
from tierstore.folders import ALONE, Owners
from tierstore.modelstore.home.index import ChunkIndex
from tierstore.serving.hub.spool import UploadSpool
from tierstore.store import Store
from tierstore.variants.spool import ArraySpool

REMOVED: dict[str, Callable[[Store], object]] = {
    "init": lambda store: tierstore.init("new"),
    "init here": lambda store: tierstore.init("."),
    "open": lambda store: tierstore.open(Path("new")),
    "save": lambda store: store.save("m", "new"),
    "export": lambda store: store.load("m").export("new"),
    "patch": lambda store: store.patch("m", Path("new")),
    "tier": lambda store: store.admin.tiers.add(
        tierstore.TierSpec(name="warm", role="warm", url="new")
    ),
    "validate": lambda store: store.admin.validate("new", "warm"),
}


@pytest.mark.parametrize("call", REMOVED.values(), ids=REMOVED)
def test_a_path_in_a_current_directory_that_was_removed(
    call: Callable[[Store], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    with tierstore.init(tmp_path / "store") as store:
        store.save("m", {"w": np.ones(3, "f4")})
        (tmp_path / "gone").rmdir()
        with pytest.raises(NotFound) as refused:
            call(store)
        assert str(refused.value) in {
            f"'{path}' begins in the current directory, which does not exist any more: change to "
            "another one, or give an absolute path"
            for path in ("new", ".")
        }
        store.load("m").export(tmp_path / "out")
        assert (tmp_path / "out").is_dir(), "absolute paths need no current directory"


OTHERS = (54321, 54322)
"""Users that a test of root becomes; where it is run by another user, that one stays itself."""


def as_user(user: int, group: int, work: Callable[[], object]) -> Any:
    """Return what ``work`` returns, or raises, in a child process that is another user."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(group)
                os.setuid(user)
            os.umask(0o077)
            result: object = work()
        except BaseException as error:
            result = repr(error)
        os.write(into, pickle.dumps(result))
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        found = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in which everybody may make folders, as in /tmp."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def of_another_user(place: Path) -> Path:
    if os.geteuid() != 0:
        return Path("/usr")
    path = place / "taken"
    as_user(OTHERS[0], OTHERS[0], path.mkdir)
    return path


def test_a_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ALONE.make(tmp_path / "a" / "b" / "c", above=1)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")]
    assert modes == [0o777, 0o700, 0o700]
    ALONE.make(tmp_path / "a" / "b" / "c", above=1)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777, 0o720])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(PermissionError, match="may write to it"):
        ALONE.make(path)
    with pytest.raises(PermissionError, match="may write to it"):
        ALONE.make(path / "below", above=1)
    path.chmod(0o755)
    ALONE.make(path / "below", above=1)


def test_a_folder_of_another_user_is_refused(place: Path) -> None:
    with pytest.raises(PermissionError, match="belongs to user"):
        ALONE.make(of_another_user(place))


def test_a_link_of_another_user_is_refused(place: Path) -> None:
    (place / "mine").mkdir(0o700)
    if os.geteuid() == 0:
        link = place / "link"
        as_user(OTHERS[0], OTHERS[0], lambda: link.symlink_to(place / "mine"))
        with pytest.raises(PermissionError, match=f"the link belongs to user {OTHERS[0]}"):
            ALONE.make(link)
    own = place / "own"
    own.symlink_to(place / "mine")
    ALONE.make(own)


def test_nothing_of_a_folder_of_another_user_is_used(place: Path) -> None:
    taken = of_another_user(place)
    tier = hot(taken)
    assert offer(tier, chunk(1)) == [False]
    assert read(tier, chunk(1)[0]) is None
    with pytest.raises(ConfigError, match="--spool"):
        UploadSpool(taken)
    with pytest.raises(Exception, match="belongs to user"):
        ArraySpool(taken)
    index = ChunkIndex(LocalStore(place / "store", create=True), taken / "s" / "index.sqlite")
    index.sync()
    assert index._path is None, "it is kept in memory"
    index.close()


def test_a_hot_tier_that_somebody_else_made_first_gives_nothing(place: Path) -> None:
    one = chunk(1)

    def forge() -> None:
        tier = hot(place / "hot", group=None)
        assert offer(tier, one) == [True]
        path = files(place / "hot")[one[0].hex()]
        path.chmod(0o600)
        path.write_bytes(bytes(len(one[1])))
        for folder in (place / "hot").rglob("*"):
            folder.chmod(0o755)
        (place / "hot").chmod(0o755)

    if os.geteuid() == 0:
        assert as_user(OTHERS[0], OTHERS[0], forge) is None
        assert read(hot(place / "hot"), one[0]) is None


def test_a_group_shares_a_hot_tier(place: Path) -> None:
    group = OTHERS[0] if os.geteuid() == 0 else os.getegid()
    root = place / "hot"

    def put(seed: int) -> list[bool]:
        return offer(hot(root, group=group), chunk(seed))

    def get(seed: int) -> bool:
        digest, data = chunk(seed)
        tier = hot(root, group=group)
        mapped = tier.map_tensor([digest], len(data), len(data))
        return mapped is not None and read(tier, digest) == data

    assert as_user(OTHERS[0], group, lambda: put(1)) == [True]
    assert as_user(OTHERS[1], group, lambda: put(2)) == [True]
    for user in OTHERS:
        assert as_user(user, group, lambda: [get(1), get(2)]) == [True, True]
    assert as_user(OTHERS[1], group, lambda: hot(root, group=group).scrub(1 << 30)).damaged == []
    for path in root.rglob("*"):
        assert not path.stat().st_mode & stat.S_IWOTH, path
    if os.geteuid() == 0:
        assert "PermissionError" in as_user(
            OTHERS[1], 54399, lambda: Owners(group).make(root / "x")
        )
    assert offer(hot(root), chunk(3)) == [False], "who does not name the group does not use it"


def test_without_a_home_directory_the_cache_has_no_name_that_others_could_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", no_home)

    def made() -> tuple[str, int]:
        folder = settings_from({}).cache_dir
        return str(folder), stat.S_IMODE(folder.stat().st_mode)

    first, first_mode = as_user(OTHERS[0], OTHERS[0], made)
    second, second_mode = as_user(OTHERS[0], OTHERS[0], made)
    assert first_mode == second_mode == 0o700
    assert first != second
    assert not Path(first).exists(), "its process has ended: the second one has swept it"
    Path(second).rmdir()


NO_HOME = """
import os, sys
from pathlib import Path
from tierstore.config import settings_from

def no_home():
    raise RuntimeError

Path.home = no_home
cache = settings_from({}).cache_dir
child = os.fork()
if not child:
    sys.exit()
os.waitpid(child, 0)
print(cache, cache.is_dir())
"""


def test_a_cache_that_ends_with_its_process_outlives_forked_children() -> None:
    said = subprocess.check_output([sys.executable, "-c", NO_HOME], text=True, timeout=120)
    folder, is_there = said.split()
    assert is_there == "True"
    assert not Path(folder).exists()
