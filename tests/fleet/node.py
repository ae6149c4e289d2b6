"""A serving process: follows a reference and answers requests; tells its parent what it serves.

``python -m tests.fleet.node STORE REF POLL_S`` prints one line of JSON for each version that came
to be served, and one more when its standard input ends.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import numpy as np

import tierstore
from tests.fleet.content import answer, sum_of
from tierstore.serving import follow
from tierstore.serving.update import Update

_THINK_S = 0.02


class _Requests:
    """What a thread asked, one request after the other, of the tensors that are served."""

    def __init__(self) -> None:
        self.update: Update | None = None
        self.count = self.mixed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        rng = np.random.default_rng()
        while not self._stop.wait(_THINK_S):
            update = self.update
            if update is not None:
                self.mixed += answer(update.tensors, rng) != {update.version.number}
                self.count += 1

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def _tell(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def main() -> None:
    url, ref, poll_s = sys.argv[1:]
    began = time.monotonic()
    requests = _Requests()
    with tierstore.open(url) as store:
        hot = store._parts.hot.local
        own = None if hot is None else hot.name

        def on_ready(update: Update) -> None:
            requests.update = update

        def told(update: Update) -> None:
            fetched = {tier: n for tier, n in update.stats.bytes_by_tier.items() if tier != own}
            status = follower.status
            _tell(
                "served", number=update.version.number, staleness_s=status.staleness_s,
                load_s=status.load_s, fetched=fetched, sum=sum_of(update.tensors),
                up_s=time.monotonic() - began,
            )  # fmt: skip

        ended = threading.Event()

        def watch() -> None:
            last = None
            while not ended.wait(0.02):
                update = follower.update
                if update is not None and update is not last:
                    last = update
                    told(update)

        with follow(ref, on_ready, store=store, poll_s=float(poll_s)) as follower:
            watching = threading.Thread(target=watch)
            watching.start()
            sys.stdin.read()
            ended.set()
            watching.join()
        requests.end()
        _tell("ended", requests=requests.count, mixed=requests.mixed,
              failures=follower.status.failures, error=follower.status.error)  # fmt: skip


if __name__ == "__main__":
    main()
