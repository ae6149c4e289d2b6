"""What a node keeps warm: the references that it follows, and what it served last."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tierstore.modelstore.store import Store
from tierstore.serving.follower import Follower, Status
from tierstore.serving.update import Update

_log = logging.getLogger("tierstore.follow")
_FIRST_S = 3600.0
_FORMAT = 1

Value = tuple[str, str, dict[str, Any], float]


class Served:
    """The references that a node follows, in order of priority, with the versions it served last.

    Args:
        path: of the file, on a local disk; what cannot be read or written there is done without.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def refs(self) -> dict[str, str]:
        """The version by reference, the most important first; empty without a file."""
        try:
            found = json.loads(self._path.read_text("utf-8"))
            if found["format"] != _FORMAT:
                return {}
            return {str(one["ref"]): str(one["version"]) for one in found["served"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def note(self, order: Sequence[str], ref: str, version: str) -> None:
        """Write down what is served now; references that are not followed any more go."""
        with self._lock:
            known = self.refs() | {ref: version}
            served = [{"ref": one, "version": known[one]} for one in order if one in known]
            text = json.dumps({"format": _FORMAT, "served": served})
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                fd, partial = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
                with os.fdopen(fd, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(partial, self._path)  # noqa: PTH105
            except OSError as error:
                _log.info("what is served was not written down: %s", error)


class Following:
    """Follows references one after the other until each is warm once, then all at a time.

    A context manager that stops them.

    Args:
        store: with a hot tier on this node, or this brings nothing.
        refs: in order of priority.
        served: written down there.
        poll_s: as for ``Follower``.
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
    def statuses(self) -> list[Status]:
        """Where each is."""
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
        """Totals for a page of metrics."""
        return {
            "follow_swaps": sum(status.swaps for status in self.statuses),
        }

    def values(self) -> list[Value]:
        """What goes up and down, for a page of metrics."""
        return follow_values(list(self._followers))


def follow_values(followers: Iterable[Follower]) -> list[Value]:
    """Name, text, labels and value of what followers tell on a page of metrics.

    Of several that follow the same reference the last one counts.
    """
    found = []
    running = [follower for follower in followers if not follower.closed]
    for follower in {follower.status.ref: follower for follower in running}.values():
        status = follower.status
        labels = {"ref": status.ref}
        number = status.version.number if status.version else 0
        for name, text, value in (
            ("version", "Number of the version that is served.", number),
            ("staleness_seconds", "From meant to served, of that version.", status.staleness_s),
            ("load_seconds", "What reading it took.", status.load_s),
            ("failing", "Attempts that failed since the last that did not.", status.failures),
            ("silent_seconds", "Since it last learned what is meant.", follower.silent_s),
        ):
            found.append((f"follow_{name}", text, labels, float(value)))
    return found
