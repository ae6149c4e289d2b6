"""How long logs must be, by what other objects say than these logs themselves (SPEC.md 10.1).

An entry of a version is written before anything names the version, and none is ever deleted: who
finds a name of a version without an entry, or a log that was longer before, knows that it was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from tierstore.errors import InvalidName
from tierstore.format.keys import (
    ALIASES,
    REFS,
    REMOVED_LOG,
    VARIANTS,
    VERSION_LOG,
    segment,
    unsegment,
)
from tierstore.format.manifest import Member
from tierstore.format.reflog import RefEntry
from tierstore.ids import ModelRef
from tierstore.modelstore.home.pins import PinnedVersion

NO_VERSION = 999_999_999
"""A number that no version has: what an entry is about that changes nothing."""


LogName = tuple[str, str]
"""The model of a log, as one segment of a key, and what it is, as in its key."""


class Claim(NamedTuple):
    """What says that a log had an entry.

    Attributes:
        number: Its number; there were all lower ones, too, as a log has no gaps.
        why: What says so, such as ``alias prod``.
    """

    number: int
    why: str


def least_lengths(
    before: Mapping[str, int],
    logs: Iterable[tuple[LogName, Sequence[RefEntry]]],
    members: Iterable[Member],
    pins: Iterable[PinnedVersion],
) -> dict[LogName, Claim]:
    """Return how many entries logs must have, each with what says so.

    Args:
        before: How many each log had for the last collection, by ``<model>/<name>``.
        logs: The logs of the store.
        members: Members of releases.
        pins: What is pinned.
    """
    found: dict[LogName, Claim] = {}
    for log, one in _every(before, logs, members, pins):
        known = found.get(log)
        if known is None or one.number > known.number:
            found[log] = one
    return found


def _every(
    before: Mapping[str, int],
    logs: Iterable[tuple[LogName, Sequence[RefEntry]]],
    members: Iterable[Member],
    pins: Iterable[PinnedVersion],
) -> Iterator[tuple[LogName, Claim]]:
    for key, count in before.items():
        model, _, name = key.partition("/")
        yield (model, name), Claim(count, f"there were {count} at the last collection")
    for (model, name), entries in logs:
        if name != VERSION_LOG and entries:
            yield (model, VERSION_LOG), Claim(1, f"there is a {log_title(name)} of it")
            for one in claims(name, entries):
                yield _version(model, one)
    named = [(one.model, one.version, "a release") for one in members]
    named += [(*version, f"pin of {pin.who}") for pin in pins if (version := pinned(pin.ref))]
    for model, number, why in named:
        with suppress(InvalidName):  # of no model that a store can have
            yield _version(segment(model), Claim(number, why))


def _version(model: str, one: Claim) -> tuple[LogName, Claim]:
    return (model, VERSION_LOG), Claim(one.number, f"{one.why} names version {one.number}")


def claims(name: str, entries: Iterable[RefEntry]) -> Iterator[Claim]:
    """Yield the versions of a model that entries of another log of it name.

    Args:
        name: What the log is, as in its key: ``alias/<segment>``, ``variant/<segment>``,
            ``removed``.
        entries: Entries of it.
    """
    if name == REMOVED_LOG:
        for entry in entries:
            last = max((one for one in entry.versions if one != NO_VERSION), default=0)
            if last:
                yield Claim(last, log_title(name))
    elif name.startswith((ALIASES, VARIANTS)):
        why = log_title(name)
        for entry in entries:
            if entry.version is not None and entry.version != NO_VERSION:
                yield Claim(entry.version, why)
            if entry.rollout is not None:
                yield Claim(entry.rollout.version, f"rollout of {why}")


def pinned(ref: str) -> tuple[str, int] | None:
    """Return the model and the number of the version that a pin names; ``None`` without any."""
    try:
        parsed = ModelRef.parse(ref)
    except InvalidName:
        return None
    return None if parsed.number is None else (parsed.model, parsed.number)


def split_log(prefix: str) -> tuple[str, str]:
    """Return the model and the name of a log by the prefix of its entries; see ``ref_prefix``."""
    model, _, name = prefix.removeprefix(REFS).removesuffix("/").partition("/")
    kind, _, last = name.partition("/")
    return unsegment(model), f"{kind}/{unsegment(last)}" if last else name


def log_title(name: str) -> str:
    """Return what a log is called, by its name as in its key: ``alias prod``."""
    if name == REMOVED_LOG:
        return "log of removals"
    kind, _, last = name.partition("/")
    try:
        return f"{kind} {unsegment(last)}" if last else f"log of {kind}"
    except UnicodeDecodeError:  # of no name of ours
        return name
