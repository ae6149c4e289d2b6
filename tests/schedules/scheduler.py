"""A deterministic scheduler: of several processes one thread runs, up to its next storage call.

Each process is one or more threads of this one, with a clock of its own, and sees the storage
through a ``Gate``. Before every call the scheduler chooses who goes on, by a seed. So a schedule
depends on its seed alone (with ``PYTHONHASHSEED=0``), and can be run again.

What would make it depend on anything else is replaced while it runs: the time, random bytes, pools
of threads (they work in their caller's thread) and the thread of a reader's leases (it is
scheduled as every other one). All else is the real code.
"""

from __future__ import annotations

import faulthandler
import os
import pkgutil
import queue
import random
import secrets
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from tierstore import modelstore
from tierstore.blobs.base import BlobInfo, BlobStore, Capabilities, RangeRead
from tierstore.errors import Unreachable
from tierstore.ids import Buffer, ByteRange
from tierstore.modelstore.home import readerlease
from tierstore.testing.faulty import Crashed

START_S = 1_800_000_000.0
"""When every schedule begins, in seconds since the epoch."""

_HANGS_S = 300
_MOST_STEPS = 20_000


class Hung(Exception):
    """A schedule does not come to an end."""


@dataclass(eq=False)
class Process:
    """A process: what it does, its clock, and what becomes of it.

    Attributes:
        name: How traces call it.
        pid: Its number.
        skew_s: Its clock minus that of the storage, in seconds.
        crash_at: The number of the call before which it ends and never goes on; ``None``: it lives.
        lost_at: The number of the call whose answer is lost, once.
        fault: Returns the error of a call by its number and name, which is then not carried out.
        drops_hints: Whether its hints of the last entries never arrive.
        calls: How many calls of the storage it made.
        is_dead: Whether it has crashed.
        had_faults: Whether any of its calls failed.
    """

    name: str
    pid: int = 1
    skew_s: float = 0.0
    crash_at: int | None = None
    lost_at: int | None = None
    fault: Callable[[int, str], Exception | None] = lambda call, op: None
    drops_hints: bool = False
    calls: int = 0
    is_dead: bool = False
    had_faults: bool = False


@dataclass(eq=False)
class Task:
    """One thread of a process."""

    process: Process
    run: Callable[[], object]
    priority: float
    baton: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    waits_for: Callable[[], bool] | None = None
    deadline_s: float | None = None
    is_done: bool = False
    error: BaseException | None = None

    def is_ready(self, now_s: float) -> bool:
        if self.is_done:
            return False
        if self.waits_for is None or self.process.is_dead:
            return True
        return self.waits_for() or (self.deadline_s is not None and self.deadline_s <= now_s)


class Scheduler:
    """Runs the threads of several processes, one at a time.

    Args:
        seed: What decides.
        changes: At how many calls, of those that are expected, another thread takes over for good,
            until it is done or the next change.
        within: How many calls are expected.
        burst: Beside these, any thread goes on after so many calls on average; 0: none does.
        jumps: By how many seconds the time may go on at a change.
    """

    def __init__(
        self,
        seed: int,
        *,
        changes: int = 0,
        within: int = 200,
        burst: int = 0,
        jumps: Sequence[float] = (),
    ) -> None:
        self.rng = random.Random(seed)
        self.now_s = START_S
        self.storage_skew_s = 0.0
        self.steps = 0
        self.trace: list[tuple[str, str, str]] | None = None
        self.on_jump: Callable[[], None] = lambda: None
        self.down: dict[str, tuple[int, int]] = {}
        self.changes = {self.rng.randint(1, within) for _ in range(changes)}
        """At which calls another thread takes over."""
        self._burst, self._jumps = burst, jumps
        self._tasks: list[Task] = []
        self._current: Task | None = None
        self._in_storage = False
        self._over = threading.Event()
        self._ids = random.Random(seed)

    # What parties ask

    @property
    def process(self) -> Process | None:
        """The process that runs; ``None`` outside of all."""
        return None if self._current is None else self._current.process

    def time(self) -> float:
        """The time by the clock of whoever asks: of the storage, of a process, or the real one."""
        if self._in_storage:
            return self.now_s + self.storage_skew_s
        return self.now_s + (self.process.skew_s if self.process is not None else 0.0)

    def running_s(self) -> float:
        """Seconds since some moment."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let others go on for so long."""
        if self._current is None:
            self.now_s += seconds
        else:
            self._wait(lambda: False, self.now_s + seconds)

    def random_bytes(self, count: int) -> bytes:
        """Return what ``os.urandom`` would."""
        return self._ids.randbytes(count)

    @contextmanager
    def storage(self) -> Iterator[None]:
        """What is done within is done by the storage, at once and by its clock."""
        self._in_storage = True
        try:
            yield
        finally:
            self._in_storage = False

    # The parties

    def start(
        self, process: Process, run: Callable[[], object], priority: float | None = None
    ) -> Task:
        """Add a thread to a process; it runs when it is chosen, the highest priority first."""
        task = Task(process, run, self.rng.random() if priority is None else priority)
        self._tasks.append(task)
        thread = threading.Thread(target=self._thread, args=(task,), daemon=True)
        thread.start()
        return task

    def run(self) -> None:
        """Run all threads to their ends; what a thread raised is in its task.

        Raises:
            Hung: They do not come to an end.
        """
        if not self._tasks:
            return
        faulthandler.dump_traceback_later(_HANGS_S, exit=True)
        try:
            self._over.clear()
            self._hand_over(self._choose())
            self._over.wait()
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._current = None
        failed = [task.error for task in self._tasks if isinstance(task.error, Hung)]
        self._tasks.clear()
        if failed:
            raise failed[0]

    def _thread(self, task: Task) -> None:
        task.baton.acquire()
        try:
            if not task.process.is_dead:
                task.run()
        except BaseException as error:
            task.error = error
        task.is_done = True
        if all(one.is_done for one in self._tasks):
            self._over.set()
        else:
            self._hand_over(self._choose())

    def before_call(self, op: str, key: str, tier: str) -> None:
        """Note a call of the storage, and let others go on before it.

        Raises:
            Crashed: The process has crashed.
        """
        task = self._current
        if task is None:
            return
        self.steps += 1
        task.process.calls += 1
        if self.steps > _MOST_STEPS:
            raise Hung(f"{self.steps} calls")
        if task.process.crash_at is not None and task.process.calls >= task.process.crash_at:
            task.process.is_dead = True
        self._maybe_switch(task)
        if task.process.is_dead:
            raise Crashed(f"{task.process.name} before {op} {key}")
        if self.trace is not None:
            self.trace.append((task.process.name, op, f"{tier}:{key}"))

    def _maybe_switch(self, task: Task) -> None:
        if self.steps in self.changes:
            task.priority = -self.steps
            self.jump()
        elif self._burst and self.rng.randrange(self._burst) == 0:
            for one in self._tasks:
                one.priority = self.rng.random()
        chosen = self._choose()
        if chosen is not task:
            self._hand_over(chosen)
            task.baton.acquire()

    def jump(self) -> None:
        """Let time pass, or not."""
        if self._jumps:
            self.now_s += self.rng.choice(self._jumps)
            self.on_jump()

    def _choose(self) -> Task:
        while True:
            ready = [task for task in self._tasks if task.is_ready(self.now_s)]
            if ready:
                return max(ready, key=lambda task: task.priority)
            deadlines = [
                one.deadline_s for one in self._tasks if not one.is_done and one.deadline_s
            ]
            if not deadlines:  # all that is left waits for ever, as threads of a daemon do
                waiting = next(task for task in self._tasks if not task.is_done)
                waiting.process.is_dead = True
                continue
            self.now_s = max(self.now_s, min(deadlines))

    def _hand_over(self, task: Task) -> None:
        self._current = task
        task.baton.release()

    def _wait(self, until: Callable[[], bool], deadline_s: float | None) -> None:
        """Let others go on until something holds, or the time is over."""
        task = self._current
        assert task is not None
        task.waits_for, task.deadline_s = until, deadline_s
        chosen = self._choose()
        if chosen is not task:
            self._hand_over(chosen)
            task.baton.acquire()
        task.waits_for = task.deadline_s = None
        if task.process.is_dead:
            raise Crashed(task.process.name)

    # What the real code uses instead of threads and queues

    def queue(self) -> _Queue:
        """Return what ``queue.SimpleQueue()`` would."""
        return _Queue(self)

    def thread(self, target: Callable[[], object], name: str, daemon: bool) -> _Thread:
        """Return what ``threading.Thread(...)`` would."""
        return _Thread(self, target)


class _Queue:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._items: deque[Any] = deque()

    def put(self, item: object) -> None:
        self._items.append(item)

    def empty(self) -> bool:
        return not self._items

    def get(self, timeout: float) -> Any:
        if not self._items:
            now_s = self._scheduler.running_s()
            self._scheduler._wait(lambda: bool(self._items), now_s + timeout)
        return self.get_nowait()

    def get_nowait(self) -> Any:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


class _Thread:
    def __init__(self, scheduler: Scheduler, target: Callable[[], object]) -> None:
        self._scheduler, self._target = scheduler, target
        self._task: Task | None = None

    def start(self) -> None:
        process = self._scheduler.process
        assert process is not None, "a reader outside of all processes"
        self._task = self._scheduler.start(process, self._target)

    def join(self, timeout: float) -> None:
        task = self._task
        if task is not None and self._scheduler.process is not None:
            self._scheduler._wait(lambda: task.is_done, self._scheduler.running_s() + timeout)


class Inline(Executor):
    """A pool that does everything at once, in the thread of whoever asks."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@contextmanager
def installed(scheduler: Scheduler) -> Iterator[None]:
    """Let the code take time, randomness and threads from a scheduler."""
    undo: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, value: object) -> None:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    put(time, "time", scheduler.time)
    put(time, "time_ns", lambda: int(scheduler.time() * 1e9))
    put(time, "monotonic", scheduler.running_s)
    put(time, "clock_gettime", lambda clock: scheduler.running_s())
    put(time, "sleep", scheduler.sleep)
    put(os, "urandom", scheduler.random_bytes)
    put(os, "getpid", lambda: scheduler.process.pid if scheduler.process else 1)
    put(secrets, "token_bytes", scheduler.random_bytes)
    put(uuid, "uuid4", lambda: uuid.UUID(bytes=scheduler.random_bytes(16), version=4))
    threads = SimpleNamespace(Lock=threading.Lock, Thread=scheduler.thread)
    put(readerlease, "threading", threads)
    put(readerlease, "queue", SimpleNamespace(SimpleQueue=scheduler.queue, Empty=queue.Empty))
    for one in pkgutil.walk_packages(modelstore.__path__, "tierstore.modelstore."):
        import_module(one.name)  # rooms that a call would import later, with real threads
    for name, module in list(sys.modules.items()):
        if name.startswith("tierstore.") and hasattr(module, "ThreadPoolExecutor"):
            put(module, "ThreadPoolExecutor", Inline)
    try:
        yield
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)
        readerlease._held.clear()


class Gate(BlobStore):
    """A storage as one process sees it; other threads go on before each call.

    Args:
        inner: The storage.
        process: The process.
        scheduler: Decides who goes on.
        tier: The name of the tier.
    """

    def __init__(
        self, inner: BlobStore, process: Process, scheduler: Scheduler, tier: str = "home"
    ) -> None:
        self._inner, self._process, self._scheduler, self._tier = inner, process, scheduler, tier

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    @property
    def local(self) -> bool:
        return self._inner.local

    @contextmanager
    def _call(self, op: str, key: str) -> Iterator[None]:
        scheduler, process = self._scheduler, self._process
        scheduler.before_call(op, key, self._tier)
        first, last = scheduler.down.get(self._tier, (1, 0))
        if first <= scheduler.steps <= last:
            process.had_faults = True
            raise Unreachable(f"{op} {key!r} in {self.url}: it is down")
        error = process.fault(process.calls, op)
        if error is not None:
            process.had_faults = True
            raise error
        with scheduler.storage():
            yield
        if (
            process.lost_at is not None
            and process.calls >= process.lost_at
            and op in ("put", "put_if_absent", "delete")
        ):
            process.lost_at, process.had_faults = None, True
            raise Unreachable(f"{op} {key!r} in {self.url}: the answer was lost")

    def put(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        with self._call("put", key):
            if not (self._process.drops_hints and key.endswith("/HEAD")):
                self._inner.put(key, data)

    def put_if_absent(self, key: str, data: Buffer | Sequence[Buffer]) -> bool:
        with self._call("put_if_absent", key):
            return self._inner.put_if_absent(key, data)

    def get(self, key: str, byte_range: ByteRange | None = None) -> memoryview:
        with self._call("get", key):
            return self._inner.get(key, byte_range)

    def get_ranges(self, reads: Sequence[RangeRead]) -> None:
        with self._call("get_ranges", reads[0].key if reads else ""):
            self._inner.get_ranges(reads)

    def info(self, key: str) -> BlobInfo:
        with self._call("info", key):
            return self._inner.info(key)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._call("delete", key):
                self._inner.delete([key])

    def list(self, prefix: str = "") -> Iterator[BlobInfo]:
        with self._call("list", prefix):
            return self._inner.list(prefix)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        with self._call("list_folders", prefix):
            return self._inner.list_folders(prefix)
