"""Sync: what comes, under which numbers, what stays away, and what is removed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.integration.kit import created, equal, opened
from tests.integration.test_copy import ROWS, model, same, size_of, tuned
from tierstore.blobs.memory import MemoryStore
from tierstore.copying import models
from tierstore.copying.models import ModelCopy
from tierstore.copying.pairs import Pairs
from tierstore.copying.report import Synced
from tierstore.copying.sync import Sync, Wanted, sync_stores
from tierstore.errors import Damaged, InvalidName, NotFound, Unreachable, UsageError
from tierstore.format.keys import REFS, version_key
from tierstore.modelstore.home.leases import WriterLease
from tierstore.modelstore.reclaim.feature import enable
from tierstore.modelstore.saving.copier import CopyWriter
from tierstore.modelstore.store import Store
from tierstore.testing.faulty import Fault, FaultyStore
from tierstore.variants.derive import derive


@pytest.fixture
def blobs() -> MemoryStore:
    return MemoryStore("source")


@pytest.fixture
def other() -> MemoryStore:
    return MemoryStore("target")


@pytest.fixture
def source(blobs: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(blobs, cache) as store:
        enable(store._parts.home, wait_s=0)
        first = model()
        store.save("m", first, message="one")
        store.save("m", tuned(first), alias="prod", message="two")
        store.patch("m", {"emb": ROWS})
        derive(store, "m@2", {"int8": "row"})
        store.save("org/other", model(3))
        store.releases.create("both", ["m@2", "org/other@1"], alias="prod")
        yield store


@pytest.fixture
def target(other: MemoryStore, cache: Path) -> Iterator[Store]:
    with created(other, cache / "target") as store:
        enable(store._parts.home, wait_s=0)
        yield store


def synced(source: Store, target: Store, **wanted: object) -> Synced:
    return sync_stores(source, target, Wanted(**wanted), None)  # type: ignore[arg-type]


def told(report: Synced) -> list[tuple[str, str, str]]:
    return [(str(one.source), str(one.version), one.outcome) for one in report.versions]


EVERY = ["m@1", "m@2", "m@2+int8-row", "m@3", "org/other@1"]


def test_a_store_is_brought_as_it_is(source: Store, target: Store) -> None:
    report = synced(source, target, aliases=True)
    assert {one.outcome for one in report.versions} <= {"copied", "there"}
    assert report.failed == []
    same(source, target, *EVERY)
    same(source, target, "m@prod")
    assert {str(one.version) for one in report.of("copied")} == {*EVERY, "both@1"}
    assert [str(one) for one in target.releases.get("both@prod").members.values()] == [
        "m@2", "org/other@1",
    ]  # fmt: skip


def test_a_second_sync_sends_what_changed(
    source: Store, target: Store, other: MemoryStore, cache: Path
) -> None:
    """And asks the target for no list of its models: what each costs does not grow with them."""
    synced(source, target, aliases=True)
    before = {info.key for info in other.list()}
    asked = FaultyStore(other)
    with opened(asked, cache / "again") as there:
        again = synced(source, there, aliases=True, delete=True)
        assert ("list_folders", REFS) not in asked.calls
    assert again.failed == []
    assert not again.of("copied")
    assert {one.outcome for one in again.aliases} == {"there"}
    assert {info.key for info in other.list()} == before
    stats = source.save("m", tuned(model(), 7)).stats
    assert stats is not None
    more = synced(source, target)
    assert [str(one.version) for one in more.of("copied")] == ["m@4"]
    assert more.sent_bytes <= 1.05 * stats.stored_bytes
    same(source, target, "m@4")


@pytest.fixture
def released(source: Store, target: Store) -> Store:
    """Two releases, of which the members have other numbers in the target."""
    target.save("x", model(5))
    source.save("x", tuned(model(), 3))
    source.releases.create("set", ["x@1"])
    source.save("x", tuned(model(), 4))
    source.releases.create("set", ["x@2"])
    assert not synced(source, target, models=["x", "set"]).failed
    return source


def test_releases_are_the_same_by_what_their_members_are_called_there(
    released: Store, target: Store
) -> None:
    names = [str(one) for one in target.releases.get("set@1").members.values()]
    assert names == ["x@2"]
    for dry_run in (True, False):
        report = synced(
            released, target, models=["set"], versions="last:1", delete=True, dry_run=dry_run
        )
        assert told(report) == [("set@2", "set@2", "there")]
        assert report.deleted == []
    target.remove("set@1")
    report = synced(released, target, models=["set"])
    assert [one.outcome for one in report.versions] == ["left", "there"]
    released.releases.create("set", ["x@2", "m@1"])
    report = synced(released, target)
    assert report.failed == []
    assert [str(one.version) for one in report.of("copied")] == [*EVERY, "both@1", "set@3"]
    released.remove("set@2")
    report = synced(released, target, models=["set"], delete=True)
    assert [str(one.version) for one in report.deleted] == ["set@2"]


def test_a_release_that_may_be_one_that_cannot_be_read_is_not_removed(
    released: Store, target: Store, blobs: MemoryStore, cache: Path
) -> None:
    blobs.delete([version_key(released.resolve("set@1").digest)])
    with opened(blobs, cache / "again") as again:
        report = synced(again, target, models=["set"], delete=True)
    assert report.is_damaged
    [kept] = report.deleted
    assert (str(kept.version), "may be set@1 of" in kept.why) == ("set@1", True)
    assert len(target.versions("set")) == 2


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_release_brings_no_member_that_a_sync_leaves(
    source: Store, target: Store, dry_run: bool
) -> None:
    """Neither one that was removed there, nor one that would be the newest there."""
    synced(source, target, models=["m"])
    target.fold("m@3")
    target.remove("m@2")
    source.releases.create("both", ["m@3"])
    report = synced(source, target, models=["both"], dry_run=dry_run)
    [failed] = report.of("failed")
    assert str(failed.source) == "both@1"
    assert "its member m@2 is left out: m@2 was removed" in failed.why
    assert [str(one.source) for one in report.of("copied")] == ["both@2"]
    assert [version.number for version in target.versions("m")] == [3, 1]
    source.releases.create("third", ["org/other@1"])
    source.save("org/other", model(4))
    report = synced(source, target, models=["org/*", "third"], versions="last:1", dry_run=dry_run)
    [why] = report.failed
    assert "it is older than org/other@2" in why


def test_entries_keep_times_and_authors_where_that_is_wanted(source: Store, target: Store) -> None:
    synced(source, target, history=True)
    for name in (*EVERY[:4],):
        one, two = source.resolve(name), target.resolve(name)
        assert (two.created, two.who, two.message) == (one.created, one.who, one.message)


def test_without_that_they_are_new(source: Store, target: Store) -> None:
    began = datetime.now(UTC)
    synced(source, target)
    assert target.resolve("m@1").created >= began
    assert target.resolve("m@1").message == "one"


def test_what_is_chosen_comes(source: Store, target: Store) -> None:
    report = synced(source, target, models=["org/*"])
    assert told(report) == [("org/other@1", "org/other@1", "copied")]
    assert target.models() == ["org/other"]
    report = synced(source, target, models=["m"], versions="last:1")
    assert told(report) == [("m@3", "m@3", "copied")]
    assert [str(version) for version in target.versions("m")] == ["m@3"]
    equal(target.load("m").load(), source.load("m@3").load())
    with pytest.raises(NotFound, match="no model x"):
        synced(source, target, models=["m", "x"])
    with pytest.raises(NotFound, match="org/other have no version 7; nothing was copied"):
        synced(source, target, models=["org/*"], versions="7")
    with pytest.raises(UsageError, match="make no sense"):
        synced(source, target, versions="x")


def test_an_older_version_is_not_put_behind_a_newer_one(source: Store, target: Store) -> None:
    synced(source, target, models=["m"], versions="3")
    report = synced(source, target, models=["m"])
    assert [one.outcome for one in report.versions] == ["left", "left", "there"]
    assert "'tierstore cp m@1'" in report.versions[0].why
    assert target.resolve("m").digest == source.resolve("m").digest


def test_what_is_removed_stays_so_on_either_side(source: Store, target: Store) -> None:
    source.save("m", model(8))
    source.save("m", model(9))
    source.remove("m@4")
    synced(source, target, models=["m"])
    assert [str(one) for one in target.versions("m")] == ["m@5", "m@3", "m@2", "m@1"]
    target.remove("m@3")
    report = synced(source, target, models=["m"])
    [left] = report.of("left")
    assert (str(left.source), left.version) == ("m@3", None)
    assert "removed" in left.why
    assert [version.number for version in target.versions("m")] == [5, 2, 1]


def test_numbers_are_kept_where_the_target_allows_removal(
    source: Store, target: Store, cache: Path
) -> None:
    """Also when the same content comes again later, and when what held numbers was not removed."""
    source.save("m", model(9))
    source.save("m", model(9))
    source.remove("m@4", "m@1")
    synced(source, target, models=["m"])
    assert [version.number for version in target.versions("m")] == [5, 3, 2]
    same(source, target, "m@2", "m@3", "m@5")
    source.save("m", tuned(model()))  # the content of m@2, which also held the number 1
    report = synced(source, target, models=["m"])
    assert [str(one.version) for one in report.of("copied")] == ["m@6"]
    assert not report.of("left")
    with created(MemoryStore("plain"), cache / "plain") as plain:
        synced(source, plain, models=["m"])
        assert [version.number for version in plain.versions("m")] == [4, 3, 2, 1]


def test_what_holds_numbers_is_removed_by_the_next_sync(
    source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.remove("m@1", force=True)
    with monkeypatch.context() as patched:
        patched.setattr(ModelCopy, "remove_holders", lambda self: None)
        synced(source, target, models=["m"])
        assert [version.number for version in target.versions("m")] == [3, 2, 1]
        equal(target.load("m@1").load(), target.load("m@2").load())
    synced(source, target, models=["m"])
    assert [version.number for version in target.versions("m")] == [3, 2]


def test_what_holds_numbers_is_removed_by_a_collection(
    source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy was killed; not so while it may go on, and what is named stays."""
    for value in (5, 6, 7):
        source.save("k", model(value))
    source.remove("k@1", "k@2")
    monkeypatch.setattr(ModelCopy, "remove_holders", lambda self: None)
    synced(source, target, models=["k"])
    target.alias("k", "own", "k@2")
    with WriterLease(target._parts.home.blobs):
        target.reclaim.run()
    assert [version.number for version in target.versions("k")] == [3, 2, 1]
    target.reclaim.run()
    assert [version.number for version in target.versions("k")] == [3, 2]


def test_no_message_makes_a_version_one_that_holds_a_number(source: Store, target: Store) -> None:
    held = "holds the number of a version that was not copied"
    source.save("m", model(9), message=held)
    for _ in range(2):
        synced(source, target, models=["m"])
        assert [version.number for version in target.versions("m")] == [4, 3, 2, 1]


def test_what_holds_numbers_goes_with_a_version_that_is_refused(
    source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: CopyWriter, below: object = frozenset()) -> None:
        raise Unreachable("the list cannot be asked")

    with monkeypatch.context() as patched:
        patched.setattr(CopyWriter, "look", refuse)
        with pytest.raises(Unreachable, match="is removed again"):
            synced(source, target, models=["m"], versions="2")
    assert target.models() == []
    synced(source, target, models=["m"], versions="3")
    assert [version.number for version in target.versions("m")] == [3]


def test_many_numbers_are_not_held(
    source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MOST_HELD", 1)
    synced(source, target, models=["m"], versions="3")
    assert [version.number for version in target.versions("m")] == [1]


def test_nothing_is_removed_unless_it_is_wanted(source: Store, target: Store) -> None:
    synced(source, target, models=["m"], aliases=True)
    target.alias("m", "own", "m@1")
    source.save("m", model(9))
    source.remove_alias("m", "prod")
    source.remove("m@1", "m@3")
    report = synced(source, target, models=["m"], aliases=True)
    assert report.deleted == []
    assert [version.number for version in target.versions("m")] == [4, 3, 2, 1]
    report = synced(source, target, models=["m"], aliases=True, delete=True)
    assert [(str(one.version), one.why) for one in report.deleted] == [("m@3", ""), ("m@1", "")]
    assert sorted(one.name for one in report.aliases if one.outcome == "removed") == ["own", "prod"]
    assert [version.number for version in target.versions("m")] == [4, 2]
    assert str(target.undelete("m@1")) == "m@1"


def test_the_newest_version_there_is_not_removed(source: Store, target: Store) -> None:
    source.save("m", model(8))
    synced(source, target, models=["m"])
    source.remove("m@4", "m@1", force=True)
    for dry_run in (True, False):
        report = synced(source, target, models=["m"], delete=True, dry_run=dry_run)
        newest, other = report.deleted
        assert (str(newest.version), str(other.version), other.why) == ("m@4", "m@1", "")
        assert "'tierstore rm m@4 --force --store memory://target' removes it" in newest.why
    assert [version.number for version in target.versions("m")] == [4, 3, 2]


def test_what_is_needed_there_is_not_removed(source: Store, target: Store) -> None:
    synced(source, target, models=["m"])
    target.alias("m", "own", "m@1")
    source.remove("m@1")
    report = synced(source, target, models=["m"], delete=True)
    [kept] = report.deleted
    assert "alias" in kept.why
    assert report.failed == [f"m@1: {kept.why}"]
    assert len(target.versions("m")) == 3


def test_what_another_sync_brought_meanwhile_is_not_removed(
    source: Store, target: Store, other: MemoryStore, cache: Path
) -> None:
    """Of a version that was saved since, the one that began first does not know."""
    synced(source, target, models=["m"])
    first = Sync(source, target, Wanted(models=["m"], delete=True), None)
    delete = first._delete

    def later(name: str, pairs: Pairs) -> None:
        source.save("m", model(8))
        source.save("m", model(9))
        with opened(other, cache / "second") as second:
            assert len(synced(source, second, models=["m"], delete=True).of("copied")) == 2
        delete(name, pairs)

    first._delete = later  # type: ignore[method-assign]
    assert first.run().deleted == []
    assert [version.number for version in target.versions("m")] == [5, 4, 3, 2, 1]


def test_removal_must_be_allowed_there(source: Store, cache: Path) -> None:
    with created(MemoryStore("plain"), cache / "plain") as plain:
        with pytest.raises(UsageError, match="gc --enable"):
            synced(source, plain, delete=True)
        assert plain.models() == []


def test_a_dry_run_changes_nothing_and_says_what_would_be_sent(
    source: Store, target: Store, other: MemoryStore
) -> None:
    before = {info.key for info in other.list()}
    plan = synced(source, target, aliases=True, delete=True, dry_run=True)
    assert {info.key for info in other.list()} == before
    assert {str(one.source) for one in plan.of("copied")} == {
        "m@1",
        "m@2",
        "m@3",
        "org/other@1",
        "both@1",
    }
    synced(source, target, models=["m", "org/*"])
    frames = size_of(other, "packs/")
    assert plan.sent_bytes <= frames


def test_one_that_is_lost_is_named_and_the_others_come(
    source: Store, target: Store, blobs: MemoryStore
) -> None:
    blobs.delete([version_key(source.resolve("org/other").digest)])
    report = synced(source, target, models=["m", "org/*"])
    [failed] = report.of("failed")
    assert str(failed.source) == "org/other@1"
    assert "versions/" in failed.why
    same(source, target, "m@1", "m@2", "m@3")


@pytest.mark.parametrize("entry", ["versions/000000/000000002", "versions/000000/000000003"])
def test_a_log_that_cannot_be_read_ends_the_copy_of_its_model_alone(
    source: Store, target: Store, blobs: MemoryStore, cache: Path, entry: str
) -> None:
    data = bytearray(blobs.get(f"refs/m/{entry}"))
    data[len(data) // 2] ^= 1
    blobs.put(f"refs/m/{entry}", bytes(data))
    with opened(blobs, cache / "again") as again:
        if entry.endswith("3"):  # the newest
            with pytest.raises(Damaged, match=entry):
                synced(again, target, delete=True)
        else:
            report = synced(again, target, delete=True)
            assert report.is_damaged
            assert any(entry in why for why in report.failed)
    equal(target.load("org/other").load(), source.load("org/other").load())


@pytest.mark.parametrize("name", ["%00", "a%2F..%2Fb", "a%0Ab"])
def test_a_name_that_no_model_may_have_is_not_copied(
    source: Store, target: Store, blobs: MemoryStore, other: MemoryStore, name: str, cache: Path
) -> None:
    for key in ("versions/000000/000000001", "versions/HEAD"):
        blobs.put(f"refs/{name}/{key}", bytes(blobs.get(f"refs/m/{key}")))
    with opened(blobs, cache / "again") as again, pytest.raises(InvalidName):
        synced(again, target)
    assert target.models() == ["both", "m", "org/other"]
    assert not [*other.list(f"refs/{name}/")]


def test_a_name_that_is_a_release_there_fails(source: Store, target: Store) -> None:
    target.save("x", model(1))
    target.releases.create("m", ["x@1"])
    report = synced(source, target, models=["m"])
    [failed] = report.versions
    assert failed.outcome == "failed"
    assert "release" in failed.why


def test_it_goes_on_where_it_was(source: Store, cache: Path) -> None:
    """A storage that fails ends it; nothing that was stored is sent again."""
    inner = MemoryStore("half")
    created(inner, cache / "half").close()
    packs = 0

    def plan(op: str, key: str, n: int) -> Fault:
        nonlocal packs
        packs += op == "put" and key.startswith("packs/")
        return Unreachable("gone") if packs > 2 else None

    with opened(FaultyStore(inner, plan), cache / "half") as target, pytest.raises(Unreachable):
        synced(source, target)
    before = {info.key for info in inner.list("packs/")}
    with opened(inner, cache / "anew") as target:
        synced(source, target, aliases=True)
        same(source, target, *EVERY)
        assert before <= {info.key for info in inner.list("packs/")}
        assert not [one for one in target.check().findings if one.key.startswith("packs/")]


def test_the_same_store_is_refused(source: Store) -> None:
    with pytest.raises(UsageError, match="twice"):
        synced(source, source)


def test_a_plain_copy_is_brought_up_to_date(source: Store, blobs: MemoryStore, cache: Path) -> None:
    """It has the id of its source, whose new packs it does not have: frames come as they are."""
    plain = MemoryStore("plain copy")
    for info in blobs.list():
        plain.put(info.key, blobs.get(info.key))
    stats = source.save("m", tuned(model(), 7)).stats
    assert stats is not None
    with opened(plain, cache) as target:
        report = synced(source, target)
        assert [str(one.version) for one in report.of("copied")] == ["m@4"]
        assert report.sent_bytes <= 1.05 * stats.stored_bytes
        same(source, target, *EVERY, "m@4")
