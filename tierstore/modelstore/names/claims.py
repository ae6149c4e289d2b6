"""Versions that there must be, by what other objects say than the log of versions (SPEC.md 9).

An entry of a version is written before anything names the version, and none is ever deleted: who
finds a name of a version without an entry, or a log that was longer before, knows that it was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tierstore.errors import InvalidName
from tierstore.format.keys import ALIASES, REFS, REMOVED_LOG, VARIANTS, unsegment
from tierstore.format.reflog import RefEntry
from tierstore.ids import ModelRef

NO_VERSION = 999_999_999
"""A number that no version has: what an entry is about that changes nothing."""


class Claim(NamedTuple):
    """A version that there was.

    Attributes:
        number: Its number; with lower numbers, as a log has no gaps.
        why: What says so, such as ``alias prod``.
    """

    number: int
    why: str


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
