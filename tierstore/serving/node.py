"""The references that a node keeps warm, and the versions that it served last."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tierstore.folders import ALONE
from tierstore.modelstore.store import Store
from tierstore.serving.follower import Follower, FollowerStatus
from tierstore.serving.update import Update
from tierstore.unfinished import written_beside

_log = logging.getLogger("tierstore.follow")
_FIRST_S = 3600.0
_FORMAT = 1

Value = tuple[str, str, dict[str, Any], float]


class Served:
    """A file of the references that a node follows, with the versions that it served last.

    Args:
        path: File on a local disk. If it cannot be read or written, it is done without.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def refs(self) -> dict[str, str]:
        """Return the versions by reference, the most important first; empty without a file."""
        try:
            found = json.loads(self._path.read_text("utf-8"))
            if found["format"] != _FORMAT:
                return {}
            return {str(one["ref"]): str(one["version"]) for one in found["served"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def note(self, order: Sequence[str], ref: str, version: str) -> None:
        """Record the version that is served, and drop references that are no longer followed."""
        with self._lock:
            known = self.refs() | {ref: version}
            served = [{"ref": one, "version": known[one]} for one in order if one in known]
            text = json.dumps({"format": _FORMAT, "served": served})
            try:
                ALONE.make(self._path.parent, above=1)
                with (
                    written_beside(self._path, durable=False) as fd,
                    open(fd, "w", encoding="utf-8", closefd=False) as file,
                ):
                    file.write(text)
            except OSError as error:
                _log.info("the versions in service could not be recorded: %s", error)


class Following:
    """Follows references: one after the other until each was warm once, then all at a time.

    It runs in a ``with`` block, whose end stops it.

    Args:
        store: Open store with a hot tier on this node; without one nothing is kept warm.
        refs: References in order of priority.
        served: File that records the versions in service.
        poll_s: Seconds between two looks at each reference, on average.
    """

    def __init__(
        self, store: Store, refs: Sequence[str], served: Served, *, poll_s: float = 5.0
    ) -> None:
        self._store, self._served, self._poll_s = store, served, poll_s
        self.refs = tuple(dict.fromkeys(refs))
        self._followers: list[Follower] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._start, name="tierstore-warm", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for follower in list(self._followers):
            follower.close()
        self._thread.join()

    @property
    def statuses(self) -> list[FollowerStatus]:
        """The states of all followers."""
        return [follower.status for follower in list(self._followers)]

    def _start(self) -> None:
        for ref in self.refs:
            if self._stop.is_set():
                return

            def ready(update: Update, ref: str = ref) -> None:
                self._served.note(self.refs, ref, str(update.version))

            follower = Follower(self._store, ref, ready, poll_s=self._poll_s, read=False)
            self._followers.append(follower)
            if self._stop.is_set():
                follower.close()
                return
            follower.settle(_FIRST_S)

    def counters(self) -> dict[str, float]:
        """Return totals for the page of metrics, by name."""
        return {
            "follow_swaps": sum(status.swaps for status in self.statuses),
        }

    def values(self) -> list[Value]:
        """Return the gauges for the page of metrics."""
        return follow_values(list(self._followers))


def follow_values(followers: Iterable[Follower]) -> list[Value]:
    """Return name, text, labels and value of each gauge that followers add to a page of metrics.

    Of several followers of one reference the last one counts.
    """
    found = []
    running = [follower for follower in followers if not follower.closed]
    for follower in {follower.status.ref: follower for follower in running}.values():
        status = follower.status
        labels = {"ref": status.ref}
        number = status.version.number if status.version else 0
        for name, text, value in (
            ("version", "Number of the version in service.", number),
            (
                "staleness_seconds",
                "Seconds from the switch of the reference to service.",
                status.staleness_s,
            ),
            ("load_seconds", "Seconds that reading the version took.", status.load_s),
            ("failing", "Attempts that failed since the last success.", status.failures),
            (
                "silent_seconds",
                "Seconds since the reference was last looked up.",
                follower.silent_s,
            ),
        ):
            found.append((f"follow_{name}", text, labels, float(value)))
    return found
