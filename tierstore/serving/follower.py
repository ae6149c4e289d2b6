"""Following a reference: a serving process that always has the version that is meant now.

::

    with tierstore.serving.follow("ranker@prod", on_ready=swap) as follower:
        ...

A thread of its own hears of changes through Redis where the store has one, and looks by itself
every few seconds anyway. What is new is read and verified while the old version serves; then
``on_ready`` is called once, and only when it returned is the new version the current one. Whatever
fails on the way, the old one stays, and the reason is told.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy.typing as npt

from tierstore.errors import TierstoreError
from tierstore.format.keys import ALIASES
from tierstore.ids import ModelRef
from tierstore.modelstore.model import LoadStats, Model
from tierstore.modelstore.store import Store
from tierstore.modelstore.tensor import Tensor
from tierstore.modelstore.version import Version

_log = logging.getLogger("tierstore.follow")
_RETRY_S, _LONGEST_S = 1.0, 60.0
_LISTEN_S = 0.5

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Update:
    """A version that is ready to serve.

    Attributes:
        model: the version, opened.
        tensors: all of its tensors, read and verified; what did not change are the very arrays of
            the update before, so treat them as read-only.
        changed: names of the tensors that differ from the update before; all of them in the first.
        previous: the version that serves now; ``None`` for the first.
        load_s: seconds that reading took.
        stats: what reading cost.
    """

    model: Model
    tensors: Arrays
    changed: tuple[str, ...]
    previous: Version | None
    load_s: float
    stats: LoadStats

    @property
    def version(self) -> Version:
        """Which version it is."""
        return self.model.version


@dataclass(frozen=True, slots=True)
class Status:
    """Where a follower is.

    Attributes:
        ref: what it follows.
        version: what it serves; ``None`` until the first is ready.
        staleness_s: seconds from the moment when the reference began to mean that version, by the
            clock of whoever moved it, to the moment when it was served.
        load_s: seconds that reading it took.
        swaps: versions served so far.
        failures: attempts that failed since the last one that did not.
        error: why the last of them did; empty without one.
    """

    ref: str
    version: Version | None = None
    staleness_s: float = 0.0
    load_s: float = 0.0
    swaps: int = 0
    failures: int = 0
    error: str = ""


@dataclass(slots=True)
class _Current:
    update: Update | None = None
    status: Status = field(default_factory=lambda: Status(""))


class Follower:
    """Keeps a process on the version that a reference means; a context manager that stops it.

    Args:
        store: stays open as long as it follows.
        ref: such as ``ranker@prod``.
        on_ready: told each version that is ready, in the follower's thread; if it raises, the old
            one stays and the new one is tried again later.
        profile: as for ``Store.load``.
        poll_s: seconds between two looks, on average; each is drawn from half to one and a half of
            it, so that a fleet does not ask at once.
        warm: bring the version into this node's hot tier first, for the other processes too.
        read: read the tensors; without it ``Update.tensors`` is empty, for whoever only warms.
    """

    def __init__(
        self,
        store: Store,
        ref: str,
        on_ready: Callable[[Update], None],
        *,
        profile: str | None = None,
        poll_s: float = 5.0,
        warm: bool = True,
        read: bool = True,
    ) -> None:
        self._store, self._ref, self._on_ready = store, ref, on_ready
        self._model_name = ModelRef.parse(ref).model
        self._profile, self._poll_s = profile, poll_s
        self._warm = warm and store.hot.local is not None
        self._reads = read
        self._current = _Current(status=Status(ref))
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="tierstore-follow", daemon=True)]
        if store.home.news is not None:
            self._threads.append(
                threading.Thread(target=self._listen, name="tierstore-listen", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    @property
    def update(self) -> Update | None:
        """What is served now."""
        return self._current.update

    @property
    def status(self) -> Status:
        """Where it is, for reports."""
        return self._current.status

    def wait(self, timeout_s: float | None = None, *, number: int | None = None) -> bool:
        """Wait until a version is served, or version ``number``; ``False`` when time is up."""

        def there() -> bool:
            found = self._current.status.version
            return found is not None and number in (None, found.number)

        with self._changed:
            return self._changed.wait_for(there, timeout_s)

    def settle(self, timeout_s: float) -> None:
        """Wait until the first attempt is over, whether it worked or not."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.status.swaps or self.status.failures or self._stopped.is_set(),
                timeout_s,
            )

    def look(self) -> None:
        """Look now, without waiting for the next time."""
        self._wake.set()

    def close(self) -> None:
        """Stop following; a swap that is under way is finished first."""
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
        retry = _RETRY_S
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                self._round()
            except Exception as error:
                self._failed(error)
                self._wake.wait(min(retry, self._poll_s))
                retry = min(retry * 2, _LONGEST_S)
            else:
                retry = _RETRY_S
                self._wake.wait(random.uniform(0.5, 1.5) * self._poll_s)

    def _round(self) -> None:
        wanted = self._store.choose(self._ref, profile=self._profile)
        served = self._current.status.version
        if served is not None and str(served) == str(wanted):
            self._cleared()
            return
        _log.info("%s means %s now", self._ref, wanted)
        update = self._read(wanted)
        if self._stopped.is_set():
            return
        self._on_ready(update)
        self._served(update)

    def _read(self, wanted: Version) -> Update:
        began = time.perf_counter()
        if self._warm:
            self._store.warmup(str(wanted))
        model = self._store.load(str(wanted))
        before = self._current.update
        same = () if before is None else _unchanged(before.model, model)
        changed = tuple(name for name in model if name not in same)
        tensors: dict[str, npt.NDArray[Any]] = {}
        if self._reads:
            tensors |= model.load(changed)
            if before is not None:
                tensors |= {name: before.tensors[name] for name in same}
        return Update(
            model=model,
            tensors=MappingProxyType({name: tensors[name] for name in model if name in tensors}),
            changed=changed,
            previous=None if before is None else before.version,
            load_s=time.perf_counter() - began,
            stats=model.stats,
        )

    def _served(self, update: Update) -> None:
        staleness = max(0.0, time.time() - self._meant_since(update.version))
        with self._changed:
            self._current.update = update
            self._current.status = Status(
                self._ref, update.version, staleness, update.load_s, self.status.swaps + 1
            )
            self._changed.notify_all()
        _log.info(
            "%s serves %s: %d of %d tensors changed, read in %.3f s, %.3f s after it was meant",
            self._ref, update.version, len(update.changed), len(update.tensors), update.load_s,
            staleness,
        )  # fmt: skip

    def _meant_since(self, version: Version) -> float:
        """When the reference began to mean a version: seconds since the epoch."""
        alias = ModelRef.parse(self._ref).alias
        entry = None
        if alias is not None:
            entry = self._store.home.log(self._model_name, ALIASES + alias).last()
        return version.created.timestamp() if entry is None else entry.time_us / 1e6

    def _failed(self, error: Exception) -> None:
        status = self.status
        told = str(error) or type(error).__name__
        serves = f"{status.version} is served on" if status.version else "nothing is served yet"
        unexpected = not isinstance(error, TierstoreError)
        if told != status.error:  # one that lasts is told once
            _log.warning(
                "following %s failed, and %s: %s", self._ref, serves, told, exc_info=unexpected
            )
        with self._changed:
            self._current.status = Status(
                self._ref, status.version, status.staleness_s, status.load_s, status.swaps,
                status.failures + 1, told,
            )  # fmt: skip
            self._changed.notify_all()

    def _cleared(self) -> None:
        status = self.status
        if status.failures:
            with self._changed:
                self._current.status = Status(
                    self._ref, status.version, status.staleness_s, status.load_s, status.swaps
                )
                self._changed.notify_all()

    # News

    def _listen(self) -> None:
        news = self._store.home.news
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
                        if model is not None:
                            self.look()
            except TierstoreError as error:
                _log.info("not told of changes for a while: %s", error)
                self._stopped.wait(pause)
                pause = min(pause * 2, _LONGEST_S)


def _unchanged(old: Model, new: Model) -> frozenset[str]:
    """Names of the tensors that are the same in both, bit for bit."""
    before = {name: _content(old.tensor(name)) for name in old}
    return frozenset(name for name in new if before.get(name) == _content(new.tensor(name)))


def _content(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.dtype, tensor.shape, tensor.signature)
