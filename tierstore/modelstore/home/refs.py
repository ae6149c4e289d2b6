"""The ref log: which version a name means, and who said so when (format/SPEC.md section 9)."""

from __future__ import annotations

import getpass
import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import msgspec

from tierstore.arguments import as_message
from tierstore.blobs.base import BlobStore
from tierstore.errors import (
    BackendError,
    Conflict,
    Damaged,
    NotDurable,
    NotFound,
    OutOfSpace,
    TierstoreError,
    Unreachable,
    UnsupportedFormat,
)
from tierstore.format.keys import CONFIG, HEAD, entry_key, ref_prefix
from tierstore.format.reflog import Action, Hint, RefEntry, Rollout, Summary, parse_entry
from tierstore.format.sealed import Kind, seal_body, unseal_body
from tierstore.format.storeconfig import StoreConfig, parse_config
from tierstore.modelstore.home.news import News
from tierstore.modelstore.home.once import create_once
from tierstore.modelstore.home.probe import probe

_log = logging.getLogger("tierstore.refs")
_ATTEMPTS = 1000
_PAGE = 64
MOST_MISSING = 1000
"""What more missing entries lie before is no part of a log."""


def whoami() -> str:
    """Return ``user@host`` of this process, as recorded in every entry."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user id in this container
        user = "unknown"
    # of bytes that are no UTF-8 Python makes surrogates, which no entry can hold
    return f"{user}@{socket.gethostname()}".encode(errors="backslashreplace").decode()


class RefTarget(NamedTuple):
    """The version that a new entry makes its ref point to.

    Attributes:
        version: Number of the version; 0 for the entry's own number, ``None`` for no version.
        manifest: Hex digest of the version's manifest.
        previous: Number of the entry that a rollback goes back to.
        rollout: The rollout under way, when an alias is moving to another version.
        summary: How large the version is, where the entry publishes it.
    """

    version: int | None
    manifest: str | None
    previous: int | None = None
    rollout: Rollout | None = None
    summary: Summary | None = None


NOWHERE = RefTarget(None, None)
"""The target of entries that point to no version: those of a log of removals."""


class RefLog:
    """One ref of one model: an append-only log in home.

    Args:
        home_blobs: Where the store's metadata lies.
        model: Name of the model.
        name: Name of the ref: ``versions`` or ``alias/<alias>``.
        news: Channel that is told of every entry appended here.
        store_id: Id of the store, which home must still have when an entry is appended; ``None``
            where it is not looked at.
        config_seen: Told of the store's config as it is when an entry is appended.
    """

    def __init__(
        self,
        home_blobs: BlobStore,
        model: str,
        name: str,
        news: News | None = None,
        store_id: str | None = None,
        config_seen: Callable[[StoreConfig], None] = lambda config: None,
    ) -> None:
        self._home_blobs, self._model, self._news = home_blobs, model, news
        self._store_id, self._config_seen = store_id, config_seen
        self._prefix = ref_prefix(model, name)
        self.title = f"{model}@{name.removeprefix('alias/')}"

    def key_of(self, seq: int) -> str:
        """Return the key of one entry in home."""
        return entry_key(self._prefix, seq)

    def last(self) -> RefEntry | None:
        """Return the current entry, or ``None`` when the log is empty.

        The search begins at the hint, gallops up and then bisects: a hint that is missing, stale or
        damaged costs 2 log2(n) reads and changes no result.
        """
        return self._last({})

    def last_and(self, key: str) -> tuple[RefEntry | None, memoryview | None]:
        """Return the current entry and, read with it, another object of home if it exists."""
        beside: dict[str, memoryview | None] = {key: None}
        return self._last(beside), beside[key]

    def _last(
        self, beside: dict[str, memoryview | None], seen: RefEntry | None = None
    ) -> RefEntry | None:
        """Return the current entry, and read objects of home in the same request.

        Args:
            beside: The keys of these objects; what exists is put there.
            seen: An entry with which the search begins, instead of with the hint. It is read again:
                where a copy of home was put back it may be gone, and its number must not be left
                out.
        """
        low = self.hinted() if seen is None else seen.seq
        near = [low, low + 1] if low else []  # as a rule there is nothing behind it
        known = self._read(near, beside) if near or beside else {}
        best = known.get(low)
        if best and low + 1 not in known:
            return best
        low, step = low if best else 0, 1
        while (entry := known.get(low + step) or self._find(low + step)) is not None:
            low, best, step = low + step, entry, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            entry = self._find(middle)
            if entry is None:
                high = middle
            else:
                low, best = middle, entry
        return best

    def hinted(self) -> int:
        """Return the number in the hint, which may be outdated; 0 when it cannot be read."""
        try:
            data = self._home_blobs.get(self._prefix + HEAD)
            return max(0, unseal_body(Kind.HINT, data, Hint, self._prefix + HEAD).seq)
        except (NotFound, Damaged, UnsupportedFormat):
            return 0

    def _find(self, seq: int) -> RefEntry | None:
        key = entry_key(self._prefix, seq)
        try:
            return parse_entry(self._home_blobs.get(key), seq, f"ref entry {key}")
        except NotFound:
            return None

    def _read(
        self, seqs: Sequence[int], beside: dict[str, memoryview | None]
    ) -> dict[int, RefEntry]:
        """Return those of the entries that exist, by number; for ``beside`` see ``_last``."""
        keys = {entry_key(self._prefix, seq): seq for seq in seqs}
        found = self._home_blobs.get_many([*beside, *keys])
        for key in beside:
            beside[key] = found.pop(key, None)
        return {
            keys[key]: parse_entry(data, keys[key], f"ref entry {key}")
            for key, data in found.items()
        }

    def _current(self, seen: RefEntry | None) -> RefEntry | None:
        """Return the current entry behind which another one is to be written; see ``_last``.

        Raises ``Unreachable`` unless home is still the store's: below a mount point that is empty
        now, an entry would be written where nobody finds it once home is mounted again.
        """
        beside: dict[str, memoryview | None] = {} if self._store_id is None else {CONFIG: None}
        last = self._last(beside, seen)
        if beside:
            self._check_store(beside[CONFIG])
        return last

    def _check_store(self, config: memoryview | None) -> None:
        url = self._home_blobs.url
        if config is None:
            raise Unreachable(
                f"{url} is no store any more: see that its file system is mounted. Nothing was "
                "published"
            )
        found = parse_config(config, f"{url}/{CONFIG}")
        if found.store_id != self._store_id:
            raise Unreachable(
                f"{url} is another store now, {found.store_id} instead of {self._store_id}: is the "
                "right file system mounted? Nothing was published"
            )
        self._config_seen(found)

    def entry(self, seq: int) -> RefEntry:
        """Return the entry with this sequence number; ``NotFound`` when there is none."""
        entry = self._find(seq)
        if entry is None:
            raise NotFound(f"{self.title} has no entry {seq}; 'tierstore log' lists them")
        return entry

    def entry_and(self, seq: int, key: str) -> tuple[RefEntry | None, memoryview | None]:
        """Return the entry with this number and, read with it, another object of home.

        Either is ``None`` when there is none.
        """
        beside: dict[str, memoryview | None] = {key: None}
        return self._read([seq], beside).get(seq), beside[key]

    def entries(self, limit: int | None = None) -> Iterator[RefEntry]:
        """Yield the entries, newest first, at most ``limit`` of them."""
        last = self.last()
        if last is not None:
            lowest = 1 if limit is None else max(1, last.seq - limit + 1)
            yield from self.numbered(range(last.seq, lowest - 1, -1))

    def numbered(self, seqs: Sequence[int]) -> Iterator[RefEntry]:
        """Yield the entries with these numbers, in this order; they are known to be there.

        Raises ``NotFound`` for one that is lost.
        """
        with ThreadPoolExecutor(8, "tierstore-refs") as pool:
            for at in range(0, len(seqs), _PAGE):
                yield from pool.map(self._known_entry, seqs[at : at + _PAGE])

    def _known_entry(self, seq: int) -> RefEntry:
        entry = self._find(seq)
        if entry is None:
            raise NotFound(self.lost(seq))
        return entry

    def lost(self, seq: int) -> str:
        """Return what is said of an entry that is not there though the log had it."""
        return (
            f"entry {seq} of {self.title}, {self.key_of(seq)}, is lost: 'tierstore repair' makes "
            "it anew where another object says what it was, and else says what to do"
        )

    def append(
        self,
        action: Action,
        target: Callable[[RefEntry | None], RefTarget | tuple[int | None, str | None, int | None]],
        message: str | None = None,
        versions: Sequence[int] = (),
        origin: RefEntry | None = None,
        seen: RefEntry | None = None,
        mark: str = "",
    ) -> RefEntry:
        """Append one entry and return it; concurrent writers each get a number of their own.

        Args:
            action: What is done to the ref.
            target: Called with the current entry, returns what the new one says; called again when
                another writer came first.
            message: Note for the log: why this is done; ``None`` for no note.
            versions: Numbers of the versions that are removed or brought back, rising.
            origin: The entry of another store that this one is a copy of: it keeps the time and who
                wrote it.
            seen: An entry that was the last one a while ago: what came behind it is looked for from
                there, however long that was.
            mark: What the name of this tool in the entry ends in.

        Raises:
            Conflict: Other writers came first a thousand times.
            NotDurable: It is there, but a power loss may take it back.
            UsageError: The message is no text.
        """
        from importlib.metadata import version as package_version  # slow, and only writers need it

        note, skew_s = as_message(message), self._skew_s(action)
        for _ in range(_ATTEMPTS):
            # the end as it is now, whatever was seen: the hint says it once that was not enough
            last, seen = self._current(seen), None
            seq = last.seq + 1 if last else 1
            goal = RefTarget(*target(last))
            entry = RefEntry(
                seq=seq,
                write_id=uuid.uuid4().hex,
                action=action,
                version=seq if goal.version == 0 else goal.version,
                manifest=goal.manifest,
                previous=goal.previous,
                rollout=goal.rollout,
                time_us=origin.time_us if origin else time.time_ns() // 1000 + int(skew_s * 1e6),
                who=origin.who if origin else whoami(),
                message=note,
                tool=f"tierstore {package_version('tierstore')}{mark}",
                versions=list(versions),
                summary=goal.summary or msgspec.UNSET,
            )
            if self._create(entry):
                self._tell(seq)
                return entry
        raise Conflict(f"{self.title}: other writers came first {_ATTEMPTS} times; try again later")

    def _create(self, entry: RefEntry) -> bool:
        """Create an entry; return whether it is this writer's, also where the answer was lost.

        An error has it as ``unanswered``: it may be there all the same.
        """
        try:
            data = seal_body(Kind.REF, entry)
            return create_once(self._home_blobs, self.key_of(entry.seq), data)
        except BackendError as error:
            error.unanswered = entry
            if not isinstance(error, NotDurable):
                with suppress(TierstoreError):
                    if self._is_own(entry):
                        return True
            raise

    def _is_own(self, entry: RefEntry) -> bool:
        there = self._find(entry.seq)
        return there is not None and there.write_id == entry.write_id

    def _skew_s(self, action: Action) -> float:
        """Return by how many seconds the clock of an entry is ahead of this machine's.

        The time of a removal is by home's clock, as collectors count its window by that.
        """
        if action in ("forget", "purge"):
            try:
                return probe(self._home_blobs).clock_skew_s
            except OutOfSpace:  # the entry would not fit either
                raise
            except BackendError as error:
                _log.warning("the window is counted by the clock of this machine: %s", error)
        return 0.0

    def own(self, error: BaseException) -> RefEntry | None:
        """Return the entry that ``append`` has written all the same, though it ended with an error.

        It is this writer's own if and only if its ``write_id`` is; ``None``: it is not there.

        Raises:
            BackendError: Home cannot be asked.
        """
        entry = error.unanswered if isinstance(error, BackendError) else None
        if not isinstance(entry, RefEntry) or not self._is_own(entry):
            return None
        self._tell(entry.seq)
        return entry

    def _tell(self, seq: int) -> None:
        """Let readers find an entry that was appended."""
        self._hint(seq)
        if self._news is not None:
            self._news.tell(self._model)

    def point_at(self, seq: int) -> None:
        """Let the search for the current entry begin at this one from now on."""
        self._hint(seq)

    def _hint(self, seq: int) -> None:
        try:
            self._home_blobs.put(self._prefix + HEAD, seal_body(Kind.HINT, Hint(seq=seq)))
        except TierstoreError as error:  # the entry stands; a stale hint costs some reads
            _log.warning("the hint of %s was not written: %s", self.title, error)


def highest_of(found: Iterable[int]) -> int:
    """Return the number of the last entry of a log, of those that are there or are said to be.

    What more than 1,000 missing entries lie before is no part of a log. 0 if there is none.
    """
    highest = 0
    for seq in sorted(found):
        if not follows(seq, highest):
            break
        highest = seq
    return highest


def follows(seq: int, highest: int) -> bool:
    """Return whether an entry belongs to a log whose last entry before it has number ``highest``.

    More than 1,000 missing entries between them say that it is no part of that log.
    """
    return seq <= highest + MOST_MISSING + 1
