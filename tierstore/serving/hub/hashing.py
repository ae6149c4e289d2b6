"""SHA-256s of files that lie on patches, computed in memory: reading a model stores nothing.

What this gateway says of a file begins with its SHA-256, and a version that lies on patches has
none for the files that these change, until an agent folds it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tierstore.forks import begin
from tierstore.ids import Digest
from tierstore.modelstore.loading.fileview import FileView
from tierstore.modelstore.loading.model import Model

_KNOWN_VERSIONS = 4096
_WINDOW_BYTES = 32 << 20


class Hashing:
    """Computes each version's missing SHA-256s once, for all who ask, one version at a time."""

    def __init__(self) -> None:
        self._known: OrderedDict[Digest, Mapping[str, bytes]] = OrderedDict()
        begin(self._begin)

    def _begin(self) -> None:
        self._thread = ThreadPoolExecutor(1, "tierstore-hub-sha256")
        self._turn = asyncio.Lock()
        self._running: dict[Digest, asyncio.Task[None]] = {}

    async def complete(self, model: Model) -> None:
        """Give every file of an opened version its SHA-256, if it has none."""
        if not model._opened.lacks_sha256s:
            return
        digest = model.version.digest
        if digest not in self._known:
            running = self._running.get(digest)
            if running is None:
                running = asyncio.create_task(self._compute(model))
                self._running[digest] = running
                running.add_done_callback(lambda _: self._running.pop(digest))
            await asyncio.shield(running)  # a client that goes away stops it for nobody else
        model._opened = model._opened.with_sha256s(self._known[digest])

    async def _compute(self, model: Model) -> None:
        loop, found = asyncio.get_running_loop(), {}
        async with self._turn:
            opened = model._opened.verified()  # a fold will have to say the same
            for file in opened.manifest.files:
                if file.path not in opened.patched:
                    continue
                view, sha = opened.view(file), hashlib.sha256()
                window = memoryview(bytearray(min(_WINDOW_BYTES, view.size)))
                # window by window, so that the gateway can end meanwhile
                for start in range(0, view.size, _WINDOW_BYTES):
                    await loop.run_in_executor(self._thread, _add, sha, view, start, window)
                found[file.path] = sha.digest()
        self._known[model.version.digest] = found
        while len(self._known) > _KNOWN_VERSIONS:
            self._known.popitem(last=False)


def _add(sha: hashlib._Hash, view: FileView, start: int, window: memoryview) -> None:
    sha.update(window[: view.read_into(start, window)])
