"""A damaged rule, and a damaged model, concern themselves alone; windows are kept under leaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import tierstore
from tests.integration.kit import created, equal, opened
from tierstore import Rows
from tierstore.blobs.base import BlobInfo
from tierstore.blobs.memory import MemoryStore
from tierstore.cli.kit import app
from tierstore.errors import Conflict, Damaged
from tierstore.format.keys import (
    ALIASES,
    REMOVED_LOG,
    VERSION_LOG,
    entry_key,
    ref_prefix,
    retention_key,
)
from tierstore.modelstore.home.retention import read_over
from tierstore.modelstore.names.removed import Windows
from tierstore.modelstore.reclaim.removal import Removing
from tierstore.modelstore.store import Store
from tierstore.serving.agent import Agent

NOW = timedelta(0)


def content(value: float) -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(int(value)).standard_normal((40, 8))}


class Leaping(MemoryStore):
    """A store whose clock may be ahead of this machine's."""

    ahead_s = 0.0

    def info(self, key: str) -> BlobInfo:
        info = super().info(key)
        return BlobInfo(info.key, info.size, info.mtime + self.ahead_s)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of a@1 to a@3 and b@1 to b@3, in which versions may be removed."""
    with created(Leaping("leaping"), tmp_path) as store:
        store.reclaim.enable(wait_s=0)
        for at, model in enumerate("ab"):
            for number in (1, 2, 3):
                store.save(model, content(10 * at + number))
        yield store


def leap(store: Store, days: float) -> None:
    assert isinstance(store._blobs, Leaping)
    store._blobs.ahead_s = days * 86400.0


def damage_rules(store: Store, model: str | None) -> None:
    store._blobs.put(retention_key(model), b"TSOB")


def numbers(store: Store, model: str) -> list[int]:
    return [version.number for version in store.versions(model)]


# Damaged rules


def test_damaged_rules_keep_no_others_from_being_set_shown_and_applied(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    damage_rules(store, "a")
    store.retention.set("b", keep_last=2, window=NOW)
    store.retention.set(None, keep_last=1, window=NOW)
    of_store, of_a, of_b = store.retention.all()
    assert (of_store.problem, of_b.problem) == (None, None)
    assert "retention/models/a is damaged" in (of_a.problem or "")
    assert "'tierstore retention set a' sets it again" in (of_a.problem or "")
    with pytest.raises(Damaged, match="retention/models/a"):
        store.retention.get("a")
    first, second = store.retention.outlooks()
    assert (first.model, first.set_for, first.going) == ("a", "a", [])
    assert "retention/models/a is damaged" in (first.blocked or "")
    assert [str(one) for one in second.going] == ["b@1"]
    agent = Agent(store)
    agent.round()
    assert agent.stats.failed_rounds == 0
    assert numbers(store, "b") == [3, 2, 1], "a third of it: that has to be allowed"
    assert numbers(store, "a") == [3, 2, 1], "the rules for all are not those of a"
    assert "nothing of a is removed by its rules: retention retention/models/a" in caplog.text
    store.retention.apply("b", most_percent=100)
    assert numbers(store, "b") == [3, 2]
    with pytest.raises(Damaged, match="retention/models/a"):
        store.retention.apply("a", at_once=True, most_percent=100)
    assert store.retention.remove("a")
    assert not store.retention.remove("a")
    assert [one.problem for one in store.retention.all()] == [None, None]


def test_damaged_rules_for_all_concern_who_has_none_of_its_own(store: Store) -> None:
    store.retention.set("b", keep_last=2, window=NOW, alias_history=NOW)
    damage_rules(store, None)
    first, second = store.retention.outlooks()
    assert (first.model, first.set_for) == ("a", None)
    assert "retention/store is damaged" in (first.blocked or "")
    assert [str(one) for one in second.going] == ["b@1"]
    store.retention.set("b", keep_last=2)
    assert "retention/store" in (store.retention.outlooks()[1].blocked or ""), "its window"


def test_what_is_removed_stays_while_its_window_cannot_be_read(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The garbage of all other models is collected, and the listing promises nothing."""
    for model in "ab":
        store.retention.set(model, window=NOW)
        store.remove(f"{model}@1")
    damage_rules(store, "a")
    report = store.reclaim.run(grace=NOW)
    assert len(report.of("deleted")) == 1
    assert "nothing is collected that was removed of a, or that its aliases left" in caplog.text
    of_a, of_b = store.deleted()
    assert (of_a.until, of_b.until) == (of_a.removed, of_b.removed)
    with pytest.raises(LookupError, match="until when it is nobody knows: retention retention/mod"):
        store.load("a@1")
    assert Windows(store._parts.home, store._names.removals).expired("a") == set()
    store.undelete("a@1")
    store.remove("a@1")
    store.retention.set("a", window=NOW)
    assert len(store.reclaim.run(grace=NOW).of("deleted")) == 1


def test_what_an_alias_left_stays_while_its_history_cannot_be_read(store: Store) -> None:
    store.retention.set("a", window=NOW, alias_history=NOW)
    store.alias("a", "prod", "a@1")
    for number in (2, 3):
        store.alias("a", "prod", f"a@{number}")
    store.remove("a@1")
    damage_rules(store, "a")
    found = store.reclaim.run(grace=NOW, window=NOW)
    assert found.of("deleted") == []
    assert "its retention cannot be read" in "".join(one.why for one in found.packs)


# Damaged models


Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """Runs commands on a store of a@1 to a@3, b@1 to b@3 and c@1 to c@3."""
    with tierstore.init(tmp_path / "store") as store:
        store.reclaim.enable(wait_s=0)
        for at, model in enumerate("abc"):
            for number in (1, 2, 3):
                store.save(model, content(10 * at + number))
    monkeypatch.setenv("TIERSTORE_STORE", str(tmp_path / "store"))

    def run(*argv: str) -> tuple[int, str, str]:
        code = app.run(argv)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def write(tmp_path: Path, key: str) -> None:
    (tmp_path / "store" / key).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "store" / key).write_bytes(b"TSOB")


def test_commands_go_on_behind_damaged_rules(run: Program, tmp_path: Path) -> None:
    write(tmp_path, retention_key("a"))
    code, out, err = run("retention", "set", "b", "--keep-last", "2", "--window", "0")
    assert (code, err) == (0, "")
    assert "1 of the 3 versions of b would be removed by rules" in out
    code, out, err = run("retention", "ls")
    assert code == 4
    assert "damaged" in out
    assert "1 of the 3 versions of b would be removed by rules" in out
    assert "'tierstore retention set a' sets it again" in err
    assert "nothing of a is removed by its rules: retention" in run("doctor", "-q")[1]
    code, out, err = run("retention", "apply", "--yes", "-q")
    assert (code, out) == (4, "b@1\n")
    assert err.startswith("tierstore: error: retention retention/models/a is damaged")
    code, out, err = run("retention", "rm", "a")
    assert (code, out) == (0, "nothing is set for a itself any more\n")
    assert run("retention", "ls")[0] == 0


def test_commands_go_on_behind_a_damaged_model(run: Program, tmp_path: Path) -> None:
    run("rm", "c@1")
    for model in "ab":
        write(tmp_path, entry_key(ref_prefix(model, REMOVED_LOG), 1))
    code, out, err = run("ls", "-q")
    assert (code, out) == (4, "c\n")
    assert "tierstore: error: 2 models were skipped: a: removal 1 of a is damaged" in err
    assert "; b: removal 1 of b is damaged" in err
    code, out, err = run("ls", "--deleted", "-q")
    assert (code, out) == (4, "c@1\n")
    code, out, err = run("forget", "a", "c", "--keep-last", "1", "--yes", "-q")
    assert (code, out) == (4, "c@2\n")
    run("retention", "set", "--keep-last", "1", "--window", "0")
    (tmp_path / "more").write_text("more")
    run("save", "c", str(tmp_path / "more"), "--allow-no-tensors")
    code, out, err = run("retention", "apply", "--yes", "-q")
    assert (code, out) == (4, "c@3\n")
    run("alias", "set", "c@prod", "c@4")
    run("release", "create", "r", "c@4")
    write(tmp_path, entry_key(ref_prefix("a", f"{ALIASES}prod"), 1))
    code, out, err = run("alias", "ls", "-q")
    assert (code, out) == (4, "c@prod\n")
    assert "refs/a/alias/prod/000000/000000001 is damaged" in err
    code, out, err = run("release", "ls", "-q")
    assert (code, out) == (4, "r\n")
    assert "2 models were skipped: a: removal 1 of a is damaged" in err
    code, out, err = run("du")
    assert (code, "saved by dedup" in out) == (4, True)
    assert "not counted, as it cannot be read: a: removal 1 of a is damaged" in err


def test_the_count_of_blocked_models_is_a_metric(store: Store) -> None:
    agent = Agent(store)
    assert agent.gauges() == []
    store._blobs.put(entry_key(ref_prefix("a", VERSION_LOG), 1), b"TSOB")
    store.retention.set(None, keep_last=3, window=NOW)
    agent.round()
    [(name, _, labels, value)] = agent.gauges()
    assert (name, labels, value) == ("retention_blocked_models", {}, 1)


# Windows of models


def test_each_model_has_what_is_over_of_its_own(store: Store) -> None:
    """What was removed later may be over before: a removal of another model is open still."""
    store.retention.set("a", window=NOW)
    store.remove("b@1")
    store.remove("a@1")
    assert len(store.reclaim.run(grace=NOW).of("deleted")) == 1
    store.retention.set("a", window=timedelta(days=14))
    of_a, of_b = store.deleted()
    assert of_a.until == of_a.removed, "it is gone, whatever window is set later"
    assert of_b.until > datetime.now(UTC) + timedelta(days=6)
    store.remove("a@2")
    assert store.deleted("a")[0].until > datetime.now(UTC) + timedelta(days=13)
    store.undelete("b@1")


# Leaps of home's clock


def test_what_is_removed_while_the_clock_is_ahead_stays_longer(store: Store) -> None:
    leap(store, 10)
    store.remove("a@1")
    store.retention.set("b", keep_last=1, window=NOW)
    leap(store, 0)
    [gone] = store.deleted()
    assert gone.removed > datetime.now(UTC) + timedelta(days=9)
    assert gone.until - gone.removed == timedelta(days=7)
    assert store.reclaim.run(grace=NOW).of("deleted") == []
    done = store.retention.apply("b", most_percent=100)
    assert done is not None
    assert done.dry_run, "its rules are due once the clock has come so far"
    store.undelete("a@1")
    equal(store.load("a@1").load(), content(1))


def test_what_was_removed_ahead_and_is_over_ends_no_later_window(store: Store) -> None:
    leap(store, 10)
    store.remove("a@1")
    leap(store, 0)
    assert len(store.reclaim.run(window=NOW, grace=NOW).of("deleted")) == 1
    of_a = store.deleted("a")[0]
    assert of_a.until == of_a.removed
    store.remove("a@2", "b@1")
    newest = {str(one.version): one for one in store.deleted()}
    for ref in ("a@2", "b@1"):
        assert newest[ref].until > datetime.now(UTC) + timedelta(days=6)


def test_what_is_removed_under_a_number_that_was_lost_has_its_window(
    store: Store, tmp_path: Path
) -> None:
    """A collection took the lost entries for over; what was removed by them others have as well."""
    store.save("c", content(11), base=None)
    store.save("c", content(50), base=None)
    store.remove("c@1")
    store.reclaim.run(window=NOW, grace=NOW)
    prefix = ref_prefix("c", REMOVED_LOG)
    store._blobs.delete([info.key for info in store._blobs.list(prefix)])
    with opened(store._blobs, tmp_path / "new") as other:
        other.remove("c@2", force=True)
        assert other.reclaim.run(grace=NOW).of("deleted") == []
        [gone] = other.deleted("c")
        assert gone.until > datetime.now(UTC) + timedelta(days=6)
        other.undelete("c@2")


def test_what_was_removed_when_the_clock_was_behind_ends_no_earlier_window(store: Store) -> None:
    """A patch that can be undeleted keeps what it lies on from being purged."""
    patch = store.patch("a@1", {"w": Rows([1], np.ones((1, 8)))})
    store.remove(str(patch), force=True)
    leap(store, -40)
    store.remove("a@2")
    leap(store, 0)
    assert len(store.reclaim.run(grace=NOW).of("deleted")) == 1
    assert "a" not in read_over(store._blobs).entries  # clients of before go by that alone
    until = {str(one.version): one.until for one in store.deleted()}
    assert until["a@2"] < datetime.now(UTC)
    assert until[str(patch)] > datetime.now(UTC) + timedelta(days=6)
    with pytest.raises(Conflict, match=f"a@1 is needed by patch {patch}, which is removed and can"):
        Removing(store._names).purge([store.resolve("a@1")], force=True, note="")


def test_a_leap_ends_no_window_for_who_looks_at_it(store: Store) -> None:
    """A version on which a patch lies that can be undeleted is not purged."""
    patch = store.patch("a@1", {"w": Rows([1], np.ones((1, 8)))})
    store.remove(str(patch), force=True)
    leap(store, 300)
    with pytest.raises(Conflict, match=f"a@1 is needed by patch {patch}, which is removed and can"):
        Removing(store._names).purge([store.resolve("a@1")], force=True, note="")
    leap(store, 0)
    store.undelete(str(patch))
