"""The feature ``reclaim``: whether versions of a store may be removed (SPEC.md 9.1 and 10)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tierstore.blobs.base import BlobStore
from tierstore.errors import UsageError
from tierstore.format.keys import CONFIG
from tierstore.format.storeconfig import (
    RECLAIM_FEATURE,
    StoreConfig,
    check_features,
    reclaims,
)
from tierstore.modelstore.home.features import add_features
from tierstore.modelstore.home.home import Home, read_config
from tierstore.modelstore.home.identity import asked
from tierstore.modelstore.home.leases import TTL_S, writers
from tierstore.modelstore.home.probe import home_now_s
from tierstore.modelstore.home.reserve import keep_reserve
from tierstore.modelstore.names.history import whole_history
from tierstore.modelstore.version import when
from tierstore.shown import time_text

_LATELY = 100
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

    Returns once no save can be running that began before; until then nothing is removed.
    Interrupted, it goes on when it is called again.

    Args:
        home: The store's home.
        wait_s: Seconds for which the lease of a writer lasts.
        sleep: Waits for so many seconds.
        waiting: Called with the seconds that are left, before each part of the wait.

    Raises:
        UnsupportedFormat: The store needs a newer version to be written to.
        Conflict: Others change the features of the store all the time.
        OtherHome: Another home of the store deletes in one of its tiers; nothing was changed.
    """
    home.packs.refresh()
    home.identity.confirm(asked(home.packs.tiers))
    blobs, name = home.blobs, [RECLAIM_FEATURE]
    while not reclaims(add_features(blobs, write=name)):
        left_s = wait_s - _unchanged_for_s(blobs)  # again each time: somebody may write it over
        if left_s > 0:
            waiting(left_s)
            sleep(min(left_s, _STEP_S))
        elif is_waited_for(read_config(blobs)):
            add_features(blobs, write=name, gc=name)
    keep_reserve(blobs)
    keep_enabled(home)


def keep_enabled(home: Home) -> None:
    """Set the feature again if it was lost: another may have written over it what it read before.

    Whoever makes the first object that shows the feature calls this behind it. From then on whoever
    writes config.json sees that object.
    """
    name = [RECLAIM_FEATURE]
    home.config = add_features(home.blobs, write=name, gc=name)


def is_waited_for(config: StoreConfig) -> bool:
    """Return whether removal is allowed once saves have ended that began before."""
    return RECLAIM_FEATURE in config.features.write and not reclaims(config)


def _unchanged_for_s(home_blobs: BlobStore) -> float:
    """Return since how many seconds the features are what they are, by the storage's clock."""
    return max(0.0, home_now_s(home_blobs) - home_blobs.info(CONFIG).mtime)


def _text(time_s: float) -> str:
    return time_text(datetime.fromtimestamp(time_s, UTC))


def is_enabled(home: Home) -> bool:
    """Return whether versions of a store may be removed; asks home until they may."""
    if not reclaims(home.config):
        home.config = read_config(home.blobs)
    return reclaims(home.config)


def check_enabled(home: Home) -> None:
    """Raise ``UsageError`` unless versions of a store may be removed."""
    if not is_enabled(home):
        if is_waited_for(home.config):
            since_s = home.blobs.info(CONFIG).mtime
            raise UsageError(
                f"nothing can be removed from {home.blobs.url} yet: saves that began before it was "
                f"allowed, at {_text(since_s)}, may be running until {_text(since_s + TTL_S)}; "
                "'tierstore gc --enable' waits for the rest of their time, or for its --wait"
            )
        raise UsageError(
            f"nothing can be removed from {home.blobs.url} yet: 'tierstore gc --enable' allows it, "
            "once for all; versions of tierstore that know no removal cannot write to it then"
        )
    check_features(home.config, "write", home.blobs.url)
    check_features(home.config, "gc", home.blobs.url)
