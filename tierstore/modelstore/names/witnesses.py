"""What the objects of a store say of its versions, as far as they can be read.

Unlike a collector, which stops where it cannot read, this leaves out what is damaged: it is for
those who mend a store, or give up what is lost of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
from tierstore.format.reflog import LOST_MANIFEST, RefEntry, parse_entry
from tierstore.ids import Digest
from tierstore.modelstore.home.home import Home
from tierstore.modelstore.home.loglengths import lengths_before
from tierstore.modelstore.home.pins import Pins
from tierstore.modelstore.home.refs import highest_of
from tierstore.modelstore.names.claims import Claim, claims, pinned
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
        self._least: dict[tuple[str, str], Claim] = {}
        self._is_read = False

    def manifests(self, model: str, number: int) -> set[str]:
        """Return the manifests that aliases, rollouts, releases and variants give to a version."""
        self._read()
        return self._manifests.get((model, number), set())

    def least(self, model: str, name: str) -> Claim:
        """Return how many entries a log must have, and what says so; the number may be 0."""
        self._read()
        return self._least.get((model, name), Claim(0, ""))

    def logs(self) -> list[tuple[str, str]]:
        """Return the model and the name of each log that must have entries."""
        self._read()
        return list(self._least)

    def lost(self, model: str) -> list[int]:
        """Return which versions of a model have entries that are missing or damaged, rising.

        What is there is listed behind all that says what there must be: an entry that is published
        meanwhile, or that a listing left out though it saw a later one, is not missing.
        """
        there = numbers(self._home, model, VERSION_LOG)
        hinted = self._home.log(model).hinted()
        last = max(highest_of(there), hinted, self.least(model, VERSION_LOG).number)
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

    def _read(self) -> None:
        if self._is_read:
            return
        self._is_read = True
        for key, count in lengths_before(self._home.blobs).items():
            segment_, _, name = key.partition("/")
            with suppress(UnicodeDecodeError):
                why = f"there were {count} at the last collection"
                self._take_in(unsegment(segment_), _unsegmented(name), Claim(count, why))
        for model in self._home.models():
            self._of_model(model)
        for pin in Pins(self._home.blobs).active():
            if (found := pinned(pin.ref)) is not None:
                self._take_in(found[0], VERSION_LOG, Claim(found[1], f"pin of {pin.who}"))

    def _take_in(self, model: str, name: str, one: Claim) -> None:
        known = self._least.get((model, name))
        if known is None or one.number > known.number:
            self._least[model, name] = one

    def _say(self, model: str, number: int, manifest: str, why: str) -> None:
        if manifest != LOST_MANIFEST:
            self._manifests.setdefault((model, number), set()).add(manifest)
        self._take_in(model, VERSION_LOG, Claim(number, why))

    def _of_model(self, model: str) -> None:
        logs = [REMOVED_LOG]
        logs += [ALIASES + alias for alias in self._home.aliases(model)]
        logs += [VARIANTS + variant for variant in self._home.variants(model)]
        for name in logs:
            entries = list(readable_entries(self._home, model, name))
            if entries:
                self._take_in(model, VERSION_LOG, Claim(1, "another log of it"))
            for one in claims(_segmented(name), entries):
                self._take_in(model, VERSION_LOG, one)
            for entry in entries:
                self._of_entry(model, name, entry)
        if self._has_releases(model):
            for entry in readable_entries(self._home, model, VERSION_LOG):
                if entry.manifest is not None:
                    release = f"release {model}@{entry.seq}"
                    self._of_release(release, Digest.from_hex(entry.manifest))

    def _has_releases(self, model: str) -> bool:
        """Return whether a name is that of releases: none ever holds versions of both kinds."""
        for number in sorted(numbers(self._home, model, VERSION_LOG)):
            with suppress(*_Unread):
                return self._home.log(model).entry(number).action == RELEASED
        return False

    def _of_entry(self, model: str, name: str, entry: RefEntry) -> None:
        if name.startswith(ALIASES):
            if entry.version is not None and entry.manifest is not None:
                self._say(model, entry.version, entry.manifest, name)
            if entry.rollout is not None:
                self._say(model, entry.rollout.version, entry.rollout.manifest, name)
        elif name.startswith(VARIANTS) and entry.version is not None and entry.manifest is not None:
            with suppress(*_Unread, InvalidName):
                for one in self._home.manifest(Digest.from_hex(entry.manifest)).lineage:
                    if one.relation == DERIVED_FROM:
                        self._say(model, entry.version, one.digest.hex(), name)

    def _of_release(self, release: str, digest: Digest) -> None:
        with suppress(*_Unread):
            for member in self._home.manifest(digest).members or ():
                self._say(member.model, member.version, member.manifest.hex(), release)


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
