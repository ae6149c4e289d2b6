"""What processes say of their reads: counted once each, whoever forks, ends or is killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from tierstore.tiers import activity
from tierstore.tiers.activity import ALIVE_S, Activity, activities
from tierstore.tiers.stats import TierStats


@pytest.fixture
def stats() -> TierStats:
    return TierStats()


def published(folder: Path, since: float = 0.0) -> list[activity.ProcessActivity]:
    return list(activities(folder, since))


def test_nothing_is_written_before_something_is_read(tmp_path: Path, stats: TierStats) -> None:
    own = Activity(tmp_path / "a", lambda: {"hot": stats})
    own.publish()
    own.publish(ended=True)
    assert not (tmp_path / "a").exists()
    assert published(tmp_path / "a") == []


def test_counters_and_rates(
    tmp_path: Path, stats: TierStats, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    own = Activity(tmp_path, lambda: {"hot": stats, "cold": TierStats()})
    own.publish()
    stats.count(hits=3, misses=1, hit_bytes=600)
    stats.record("get", 0.1, failed=True)
    now[0] += 2
    own.publish()
    (one,) = published(tmp_path)
    hot = one.tiers["hot"]
    assert (hot.hits, hot.misses, hot.errors, hot.hit_bytes) == (3, 1, 1, 600)
    assert (hot.recent_bytes, hot.recent_s) == (600, 2.0)
    assert one.alive(now[0])
    assert not one.alive(now[0] + ALIVE_S)
    now[0] += 2
    own.publish()
    assert published(tmp_path)[0].updated == 1002, "nothing new: not written again so soon"
    now[0] += 10
    own.publish()
    (one,) = published(tmp_path)
    assert (one.updated, one.tiers["hot"].recent_bytes) == (1014, 0)
    own.publish(ended=True)
    assert not published(tmp_path)[0].alive(now[0])
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_forked_child_does_not_tell_again_what_its_parent_told(
    tmp_path: Path, stats: TierStats
) -> None:
    own = Activity(tmp_path, lambda: {"hot": stats})
    stats.count(hits=100, hit_bytes=100)
    own.publish()
    pid = os.fork()
    if pid == 0:
        try:
            own.publish()
            stats.count(hits=7, hit_bytes=7)
            own.publish()
            grandchild = os.fork()
            if grandchild == 0:
                stats.count(hits=1)
                own.publish()
            else:
                os.waitpid(grandchild, 0)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert sorted(one.tiers["hot"].hits for one in published(tmp_path)) == [1, 7, 100]


def test_old_files_and_garbage(tmp_path: Path, stats: TierStats) -> None:
    (tmp_path / "1-a.json").write_bytes(b"{")
    (tmp_path / "2-b.json").write_bytes(b'{"pid": "x"}')
    old = tmp_path / "3-c.json"
    old.write_bytes(msgspec.json.encode({}))
    os.utime(old, (0, 0))
    own = Activity(tmp_path, lambda: {"hot": stats})
    stats.count(hits=1)
    own.publish()
    assert len(published(tmp_path)) == 1
    assert not old.exists()
    assert published(tmp_path, time.time() + 100) == []


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, stats: TierStats) -> None:
    (tmp_path / "file").write_text("")
    own = Activity(tmp_path / "file" / "a", lambda: {"hot": stats})
    stats.count(hits=1)
    own.publish()
    own.publish(ended=True)
    assert published(tmp_path) == []
    assert (tmp_path / "file").read_text() == ""
