"""Following a reference: keeps a serving process on the version that it points to.

::

    with tierstore.serving.follow("ranker@prod", on_ready=swap) as follower:
        ...

A thread of its own is told of changes through Redis, where the store has one, and looks by itself
every few seconds anyway. A new version is read and verified while the old one serves; then
``on_ready`` is called once, and when it returns the new version is the current one. If anything
fails on the way, the old version stays, and the reason is logged. A version that failed is tried
again after 1, 2, 4 … 60 seconds, unless the reference points to another one by then.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from tierstore.arguments import as_function, as_number, wrong
from tierstore.errors import TierstoreError, Unreachable, UsageError
from tierstore.forks import begin
from tierstore.format.keys import ALIASES
from tierstore.ids import ModelRef
from tierstore.modelstore.store import Store
from tierstore.modelstore.version import Version
from tierstore.serving.update import Update, read_update
from tierstore.serving.watched import Watched

_log = logging.getLogger("tierstore.follow")
_RETRY_S, _LONGEST_S = 1.0, 60.0
_LISTEN_S = 0.5
_LOOK_UP_S = 300.0
"""Seconds after which a reference is looked up though nothing has moved, in case a log was lost."""


@dataclass(frozen=True, slots=True)
class FollowerStatus:
    """The state of a follower.

    Attributes:
        ref: Reference that is followed.
        version: Version that is served; ``None`` until the first one is ready.
        staleness_s: Seconds from the moment at which the reference was pointed to this version, by
            the clock of whoever did that, to the moment at which it was served.
        load_s: Seconds that reading it took.
        swaps: Number of versions served so far.
        failures: Attempts that failed since the last one that succeeded.
        error: Reason of the last failure; empty without one.
    """

    ref: str
    version: Version | None = None
    staleness_s: float = 0.0
    load_s: float = 0.0
    swaps: int = 0
    failures: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Refused:
    """A version that could not be served, and when it is tried again: reading it is costly."""

    version: str
    pause_s: float
    due: float

    @classmethod
    def again(cls, last: _Refused | None, version: str) -> _Refused:
        same = last is not None and last.version == version
        pause = min(2 * last.pause_s, _LONGEST_S) if last is not None and same else _RETRY_S
        return cls(version, pause, time.monotonic() + pause)

    def waits(self, version: str) -> bool:
        return version == self.version and time.monotonic() < self.due


class _Ended(Exception):
    """Ends a read: the follower was closed."""


@dataclass(slots=True)
class _Current:
    update: Update | None = None
    status: FollowerStatus = field(default_factory=lambda: FollowerStatus(""))


class Follower:
    """Keeps a process on the version that a reference points to, until its ``with`` block ends.

    A process that is forked from it is not kept there: ``update``, ``wait`` and ``look`` raise
    ``UsageError`` in it.

    Args:
        store: Store to read from; it must stay open while the follower runs.
        ref: Reference or version to follow, such as ``ranker@prod``.
        on_ready: Called with each version that is ready, in the follower's thread; if it raises,
            the old version stays and the new one is tried again later.
        profile: Variants to prefer, as for ``Store.load``.
        poll_s: Seconds between two looks, on average; each pause is drawn from half to one and a
            half of it, so that the processes of a fleet do not ask at once.
        warm: Whether to load a version into this node's hot tier first, for other processes too.
        read: Whether to read the tensors; otherwise ``Update.tensors`` is empty.

    Raises:
        UsageError: An argument is wrong.
    """

    def __init__(
        self,
        store: Store,
        ref: str | Version,
        on_ready: Callable[[Update], None],
        *,
        profile: str | None = None,
        poll_s: float = 5.0,
        warm: bool = True,
        read: bool = True,
    ) -> None:
        if not isinstance(store, Store):
            raise wrong("store", "an open store, such as tierstore.open(url)", store)
        self._store, self._ref = store, str(ref) if isinstance(ref, Version) else ref
        self._parsed = ModelRef.parse(self._ref)
        self._on_ready = as_function(
            "on_ready", on_ready, "a function that is called with each update, or an InPlace"
        )
        self._poll_s = as_number("poll_s", poll_s, "seconds, more than 0", 0, above=True)
        self._profile = profile
        self._order = store._parts.settings.preference(profile)
        self._warm = warm and store._parts.hot.local is not None
        self._reads = read
        self._current = _Current(status=FollowerStatus(self._ref))
        self._refused: _Refused | None = None
        self._served_since: tuple[Watched, float] | None = None
        """What is to move before another version than the one that is served can be meant, and when
        the reference is looked up anyway."""
        self._looked = time.monotonic()
        self._process = os.getpid()
        self._threads: list[threading.Thread] = []
        begin(self._begin)
        self._threads = [threading.Thread(target=self._run, name="tierstore-follow", daemon=True)]
        if store._parts.home.news is not None:
            self._threads.append(
                threading.Thread(target=self._listen, name="tierstore-listen", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        status = self.status
        serves = f"serves {status.version}" if status.version else "serves nothing yet"
        failed = f", failed: {status.error[:200]}" if status.error else ""
        return f"<Follower of {self._ref}: {'closed, ' * self.closed}{serves}{failed}>"

    def _begin(self) -> None:
        # the threads are the parent's, and so is the task: a child says so when it is asked
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._threads = []
        if self._process != os.getpid():
            self._stopped.set()

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise UsageError(
                f"{self._ref} is followed by the process that this one was forked from: follow it "
                "in each process, or ask that one"
            )

    @property
    def update(self) -> Update | None:
        """The update that is served now; ``None`` before the first."""
        self._check_process()
        return self._current.update

    @property
    def status(self) -> FollowerStatus:
        """The state of the follower."""
        return self._current.status

    @property
    def closed(self) -> bool:
        """Whether the follower was closed, or is another process's."""
        return self._stopped.is_set()

    @property
    def silent_s(self) -> float:
        """Seconds since it last looked up the reference successfully, or since it began."""
        return time.monotonic() - self._looked

    def wait(self, timeout_s: float | None = None, *, number: int | None = None) -> bool:
        """Wait until a version, or version ``number``, is served; ``False`` when time is up."""
        self._check_process()

        def there() -> bool:
            found = self._current.status.version
            return found is not None and number in (None, found.number)

        with self._changed:
            return self._changed.wait_for(there, timeout_s)

    def settle(self, timeout_s: float) -> None:
        """Wait until the first attempt has succeeded or failed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.status.swaps or self.status.failures or self._stopped.is_set(),
                timeout_s,
            )

    def look(self) -> None:
        """Look at the reference now instead of at the next time."""
        self._check_process()
        self._wake.set()

    def close(self) -> None:
        """Stop following. A read is given up; a call of ``on_ready`` is waited for."""
        self._stopped.set()
        self._wake.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # The follower's own thread

    def _run(self) -> None:
        pause = _RETRY_S
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                self._round()
            except _Ended:
                return
            except Exception as error:
                self._failed(error)
                self._wake.wait(min(pause, self._poll_s))
                pause = min(pause * 2, _LONGEST_S)
            else:
                pause = _RETRY_S
                self._wake.wait(self._until_next())

    def _until_next(self) -> float:
        """Return the seconds to wait until the next look."""
        look = random.uniform(0.5, 1.5) * self._poll_s
        if self._refused is None:
            return look
        return min(look, max(0.0, self._refused.due - time.monotonic()))

    def _round(self) -> None:
        if self._is_served_still():
            self._looked = time.monotonic()
            self._cleared()
            return
        self._served_since = None
        watched = self._watched()
        wanted = self._store.choose(self._ref, profile=self._profile)
        self._looked = time.monotonic()
        served = self._current.status.version
        if served is not None and str(served) == str(wanted):
            self._refused = None
            self._served_since = watched
            self._cleared()
            return
        if self._refused is not None and self._refused.waits(str(wanted)):
            return
        _log.info("%s now points to %s", self._ref, wanted)
        try:
            update = read_update(
                self._store,
                wanted,
                self._current.update,
                warm=self._warm,
                read=self._reads,
                progress=self._go_on,
            )
            since = self._meant_since(wanted)
            if self._stopped.is_set():
                return
            self._on_ready(update)
        except (Unreachable, _Ended):  # not for what the version is
            raise
        except Exception:
            self._refused = _Refused.again(self._refused, str(wanted))
            raise
        self._refused = None
        self._served_since = watched
        self._served(update, max(0.0, time.time() - since))

    def _watched(self) -> tuple[Watched, float] | None:
        if self._parsed.release is not None:
            return None
        until = time.monotonic() + _LOOK_UP_S
        return Watched(self._store._parts.home, self._parsed, self._order), until

    def _is_served_still(self) -> bool:
        if self._served_since is None:
            return False
        watched, until = self._served_since
        return time.monotonic() < until and not watched.has_moved()

    def _go_on(self, done: int, total: int) -> None:
        if self._stopped.is_set():
            raise _Ended

    def _served(self, update: Update, staleness_s: float) -> None:
        with self._changed:
            self._current.update = update
            self._current.status = FollowerStatus(
                self._ref, update.version, staleness_s, update.load_s, self.status.swaps + 1
            )
            self._changed.notify_all()
        _log.info(
            "%s serves %s: %d of %d tensors changed, read in %.3f s, %.3f s after the switch",
            self._ref,
            update.version,
            len(update.changed),
            len(update.model),
            update.load_s,
            staleness_s,
        )

    def _meant_since(self, version: Version) -> float:
        """Return when the reference was pointed to a version, in seconds since the epoch."""
        model, alias = self._parsed.model, self._parsed.alias
        entry = None
        if alias is not None:
            entry = self._store._parts.home.log(model, ALIASES + alias).last()
        return version.created.timestamp() if entry is None else entry.time_us / 1e6

    def _failed(self, error: Exception) -> None:
        status = self.status
        told = str(error) or type(error).__name__
        serves = f"{status.version} stays in service" if status.version else "nothing is served yet"
        unexpected = not isinstance(error, TierstoreError)
        if told != status.error:  # one that lasts is told once
            _log.warning(
                "following %s failed, %s: %s", self._ref, serves, told, exc_info=unexpected
            )
        with self._changed:
            self._current.status = replace(status, failures=status.failures + 1, error=told)
            self._changed.notify_all()

    def _cleared(self) -> None:
        if self.status.failures:
            with self._changed:
                self._current.status = replace(self.status, failures=0, error="")
                self._changed.notify_all()

    # News

    def _listen(self) -> None:
        news = self._store._parts.home.news
        assert news is not None
        pause = _RETRY_S
        while not self._stopped.is_set():
            try:
                with news.listen() as heard:
                    self.look()  # what was told before is not heard any more
                    pause = _RETRY_S
                    while not self._stopped.is_set():
                        model = heard.get(_LISTEN_S)
                        # a release's switch is told under its own name
                        if model is not None and (
                            self._parsed.release is not None or model == self._parsed.model
                        ):
                            self.look()
            except TierstoreError as error:
                _log.info("news of changes are interrupted: %s", error)
                self._stopped.wait(pause)
                pause = min(pause * 2, _LONGEST_S)
