"""What the objects of a store say of its versions, as far as they can be read.

Unlike a collector, which stops where it cannot read, this leaves out what is damaged: it is for
those who mend a store, or give up what is lost of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

from tierstore.errors import Damaged, InvalidName, NotFound, UnsupportedFormat
from tierstore.format.keys import (
    ALIASES,
    REMOVED_LOG,
    VARIANTS,
    VERSION_LOG,
    entry_key,
    ref_prefix,
    segment,
    seq_of,
    unsegment,
)
from tierstore.format.manifest import Member
from tierstore.format.reflog import LOST_MANIFEST, RefEntry, parse_entry
from tierstore.ids import Digest
from tierstore.modelstore.home.collected import lengths_before
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.refs import highest_of
from tierstore.modelstore.names.claims import Claim, LogName, least_lengths
from tierstore.modelstore.version import DERIVED_FROM, RELEASED

_PAGE = 256
_Unread = (Damaged, NotFound, UnsupportedFormat)
_log = logging.getLogger("tierstore.repair")


class Witnesses:
    """What other objects say of versions and logs. What they say is read once, when it is asked.

    Args:
        home: The store's home.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._manifests: dict[tuple[str, int], set[str]] = {}
        self._least: dict[LogName, Claim] | None = None

    def manifests(self, model: str, number: int) -> set[str]:
        """Return the manifests that aliases, rollouts, releases and variants give to a version."""
        self._read()
        return self._manifests.get((model, number), set())

    def least(self, model: str, name: str) -> int:
        """Return how many entries a log must have; it may be 0."""
        found = self._read().get((segment(model), _segmented(name)))
        return 0 if found is None else found.number

    def logs(self) -> list[tuple[str, str]]:
        """Return the model and the name of each log that must have entries."""
        found = []
        for model, name in self._read():
            with suppress(UnicodeDecodeError):  # of no model of ours
                found.append((unsegment(model), _unsegmented(name)))
        return found

    def lost(self, model: str) -> list[int]:
        """Return which versions of a model have entries that are missing or damaged, rising.

        What is there is listed behind all that says what there must be: an entry that is published
        meanwhile, or that a listing left out though it saw a later one, is not missing.
        """
        there = numbers(self._home, model, VERSION_LOG)
        hinted = self._home.log(model).hinted()
        last = max(highest_of(there), hinted, self.least(model, VERSION_LOG))
        there = numbers(self._home, model, VERSION_LOG)
        missing = set(range(1, last + 1)) - there
        return sorted(missing | {one for one in there if one <= last and self._is_bad(model, one)})

    def _is_bad(self, model: str, number: int) -> bool:
        try:
            self._home.log(model).entry(number)
        except Damaged:
            return True
        except (NotFound, UnsupportedFormat):  # written while this listed, or by a newer version
            return False
        return False

    def _read(self) -> dict[LogName, Claim]:
        if self._least is None:
            blobs, models = self._home.blobs, self._home.models()
            before, pins = lengths_before(blobs), Pins(blobs).active()
            self._least = least_lengths(before, self._logs(models), self._members(models), pins)
        return self._least

    def _say(self, model: str, number: int, manifest: str) -> None:
        if manifest != LOST_MANIFEST:
            self._manifests.setdefault((model, number), set()).add(manifest)

    def _logs(self, models: Sequence[str]) -> Iterator[tuple[LogName, Sequence[RefEntry]]]:
        """Yield all logs but those of versions, and take note of the manifests that they name."""
        for model in models:
            names = [REMOVED_LOG]
            names += [ALIASES + alias for alias in self._home.aliases(model)]
            names += [VARIANTS + variant for variant in self._home.variants(model)]
            for name in names:
                entries = list(readable_entries(self._home, model, name))
                for entry in entries:
                    self._of_entry(model, name, entry)
                yield (segment(model), _segmented(name)), entries

    def _has_releases(self, model: str) -> bool:
        """Return whether a name is that of releases: none ever holds versions of both kinds."""
        for number in sorted(numbers(self._home, model, VERSION_LOG)):
            with suppress(*_Unread):
                return self._home.log(model).entry(number).action == RELEASED
        return False

    def _of_entry(self, model: str, name: str, entry: RefEntry) -> None:
        if name.startswith(ALIASES):
            if entry.version is not None and entry.manifest is not None:
                self._say(model, entry.version, entry.manifest)
            if entry.rollout is not None:
                self._say(model, entry.rollout.version, entry.rollout.manifest)
        elif name.startswith(VARIANTS) and entry.version is not None and entry.manifest is not None:
            with suppress(*_Unread, InvalidName):
                for one in self._home.manifest(Digest.from_hex(entry.manifest)).lineage:
                    if one.relation == DERIVED_FROM:
                        self._say(model, entry.version, one.digest.hex())

    def _members(self, models: Sequence[str]) -> Iterator[Member]:
        """Yield the members of all releases, and take note of their manifests."""
        for model in models:
            if not self._has_releases(model):
                continue
            for entry in readable_entries(self._home, model, VERSION_LOG):
                found: Sequence[Member] = ()
                if entry.manifest is not None:
                    with suppress(*_Unread):
                        found = self._home.manifest(Digest.from_hex(entry.manifest)).members or ()
                for member in found:
                    self._say(member.model, member.version, member.manifest.hex())
                    yield member


def readable_entries(
    home: Home, model: str, name: str, known: dict[str, RefEntry] | None = None
) -> Iterator[RefEntry]:
    """Yield the entries of a ref log that can be read, the oldest first.

    Args:
        home: The store's home.
        model: Name of the model.
        name: Name of the ref.
        known: Entries that were read before, by key: they never change. New ones are put there.
    """
    known = {} if known is None else known
    prefix = ref_prefix(model, name)
    left = ((entry_key(prefix, seq), seq) for seq in sorted(numbers(home, model, name)))
    while page := dict(islice(left, _PAGE)):
        found = home.blobs.get_many([key for key in page if key not in known])
        for key, seq in page.items():
            if key in found:
                try:
                    known[key] = parse_entry(found[key], seq, f"ref entry {key}")
                except (Damaged, UnsupportedFormat) as error:
                    _log.debug("left out: %s", error)
            if key in known:
                yield known[key]


def numbers(home: Home, model: str, name: str) -> set[int]:
    """Return the numbers of the entries of a ref log that are there, whatever is in them."""
    prefix = ref_prefix(model, name)
    found = (seq_of(info.key, prefix) for info in home.blobs.list(prefix))
    return {seq for seq in found if seq is not None}


def _segmented(name: str) -> str:
    """Return the name of a log as in its key."""
    kind, _, last = name.partition("/")
    return f"{kind}/{segment(last)}" if last else name


def _unsegmented(name: str) -> str:
    kind, _, last = name.partition("/")
    return f"{kind}/{unsegment(last)}" if last else name
