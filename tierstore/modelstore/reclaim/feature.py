"""The feature ``reclaim``: whether versions of a store may be removed (SPEC.md 9.1 and 10)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from tierstore.blobs.base import BlobStore
from tierstore.errors import Conflict, UsageError
from tierstore.format.keys import CONFIG
from tierstore.format.storeconfig import (
    RECLAIM_FEATURE,
    Features,
    StoreConfig,
    check_features,
    encode_config,
    reclaims,
)
from tierstore.modelstore.home.home import Home, read_config
from tierstore.modelstore.home.leases import TTL_S, writers
from tierstore.modelstore.home.probe import probe
from tierstore.modelstore.names.history import whole_history
from tierstore.modelstore.reclaim.reserve import keep_reserve
from tierstore.modelstore.version import when

_LATELY = 100
_ATTEMPTS = 5
_STEP_S = 10.0


@dataclass(frozen=True, slots=True)
class SeenWriter:
    """Somebody who wrote to the store lately, and with what.

    Attributes:
        who: ``user@host``.
        tool: The program and its version; ``None`` for a save that is running, which says that in
            its entry only.
        last: When it last wrote an entry; ``None`` for a save that is running.
    """

    who: str
    tool: str | None
    last: datetime | None


def writers_seen(home: Home) -> list[SeenWriter]:
    """Return who wrote lately, the last one first; running saves come before all others.

    These are the writers of the newest hundred entries of the store's logs.
    """
    running = sorted({lease.who for lease in writers(home.blobs).values()})
    found: dict[tuple[str, str], datetime] = {}
    for logged in whole_history(home, _LATELY):
        entry = logged.entry
        found.setdefault((entry.who, entry.tool), when(entry))
    return [
        *(SeenWriter(who, None, None) for who in running),
        *(SeenWriter(who, tool, last) for (who, tool), last in found.items()),
    ]


def enable(
    home: Home,
    wait_s: float = TTL_S,
    sleep: Callable[[float], None] = time.sleep,
    waiting: Callable[[float], None] = lambda left_s: None,
) -> None:
    """Allow for good that versions of a store are removed; older versions cannot write to it then.

    Returns once no save can be running that began before. Interrupted, it goes on when it is
    called again.

    Args:
        home: The store's home.
        wait_s: Seconds for which the lease of a writer lasts.
        sleep: Waits for so many seconds.
        waiting: Called with the seconds that are left, before each part of the wait.

    Raises:
        Conflict: Others change the features of the store all the time.
    """
    for _ in range(_ATTEMPTS):
        home.config = read_config(home.blobs)
        if reclaims(home.config):
            break
        check_features(home.config, "write", home.blobs.url)
        home.blobs.put(CONFIG, encode_config(_with_feature(home.config)))
    else:
        raise Conflict(
            f"others change the features of {home.blobs.url} at the same time; try again"
        )
    keep_reserve(home.blobs)
    left_s = wait_s - _enabled_for_s(home.blobs)
    while left_s > 0:
        waiting(left_s)
        sleep(min(left_s, _STEP_S))
        left_s -= _STEP_S


def _with_feature(config: StoreConfig) -> StoreConfig:
    features = Features(
        read=config.features.read,
        write=sorted({*config.features.write, RECLAIM_FEATURE}),
        gc=sorted({*config.features.gc, RECLAIM_FEATURE}),
    )
    return msgspec.structs.replace(config, features=features)


def _enabled_for_s(home_blobs: BlobStore) -> float:
    """Return since how many seconds the features are what they are, by the storage's clock."""
    now_s = time.time() + probe(home_blobs).clock_skew_s
    return now_s - home_blobs.info(CONFIG).mtime


def is_enabled(home: Home) -> bool:
    """Return whether versions of a store may be removed; asks home until they may."""
    if not home.reclaims:
        home.config = read_config(home.blobs)  # it may have been enabled since it was opened
    return home.reclaims


def check_enabled(home: Home) -> None:
    """Raise ``UsageError`` unless versions of a store may be removed."""
    if not is_enabled(home):
        raise UsageError(
            f"nothing can be removed from {home.blobs.url} yet: 'tierstore gc --enable' allows it, "
            "once for all; versions of tierstore that know no removal cannot write to it then"
        )
    check_features(home.config, "write", home.blobs.url)
    check_features(home.config, "gc", home.blobs.url)
