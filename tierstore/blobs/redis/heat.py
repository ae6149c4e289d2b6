"""Heat, time and news that the nodes of a store share through one Redis.

Heat is a sorted set for each period, a number by which the caller counts time. It has no time to
live, so that ``volatile-lfu`` never evicts it; ``trim`` and ``drop`` keep it bounded. Names of keys
and channels hold a ``~``, which is in no blob's key.

An ACL user needs, in addition to what blobs need, ``&<prefix>* +@pubsub +time``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tierstore.blobs.redis.connect import connect
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.blobs.redis.store import check_redis_prefix
from tierstore.blobs.shared import batches
from tierstore.errors import BackendError

if TYPE_CHECKING:
    from redis.connection import Connection

_BATCH = 1000
_BATCH_BYTES = 1 << 20


class RedisHeat:
    """Sums of heat by name, shared by all clients of one Redis with the same prefix.

    Args:
        endpoint: The Redis that keeps them.
        prefix: The beginning of the names of keys and channels, as in ``RedisStore``.

    Raises:
        ConfigError: An argument cannot be used, or the ``redis`` extra is not installed.
    """

    def __init__(self, endpoint: RedisEndpoint, *, prefix: str = "tier:") -> None:
        self._prefix = check_redis_prefix(prefix)
        self._client = connect(endpoint)

    def _heat(self, period: int) -> str:
        return f"{self._prefix}~heat:{period}"

    def add(self, increments: Mapping[str, float], period: int) -> None:
        """Add finite numbers to the heat of names.

        After an error some were added, and nobody knows which: adding them again counts double.
        """
        for name, by in increments.items():
            if not math.isfinite(by):
                raise ValueError(f"the heat of {name!r} cannot change by {by}")
        key = self._heat(period)
        sized = ((name, len(name) + 60) for name in increments)
        for batch in batches(sized, _BATCH_BYTES, _BATCH):
            commands = [("ZINCRBY", key, repr(increments[name]), name) for name in batch]
            self._client.run("adding heat", commands)

    def scores(self, names: Sequence[str], period: int) -> dict[str, float]:
        """Return the heat of those names that have any."""
        found = {}
        for batch in batches(((name, len(name)) for name in names), _BATCH_BYTES, _BATCH):
            [scores] = self._client.run("reading heat", [("ZMSCORE", self._heat(period), *batch)])
            pairs = zip(batch, map(_number, scores or ()), strict=False)
            found.update({name: score for name, score in pairs if score is not None})
        return found

    def top(self, count: int, period: int) -> list[tuple[str, float]]:
        """Return the ``count`` hottest names, the hottest first.

        Names that are no UTF-8 and heat that is not finite are left out: others put them there.
        """
        if count < 1:
            return []
        command = ("ZREVRANGE", self._heat(period), 0, count - 1, "WITHSCORES")
        [flat] = self._client.run("reading heat", [command])
        flat = flat or ()
        pairs = zip(map(_text, flat[::2]), map(_number, flat[1::2]), strict=False)
        return [(name, score) for name, score in pairs if name is not None and score is not None]

    def trim(self, keep: int, period: int) -> int:
        """Forget all but the ``keep`` hottest names; return how many were forgotten."""
        command = ("ZREMRANGEBYRANK", self._heat(period), 0, -keep - 1)
        [removed] = self._client.run("trimming heat", [command])
        return int(removed or 0)

    def drop(self, period: int) -> None:
        """Forget all heat of a period."""
        self._client.run("dropping heat", [("UNLINK", self._heat(period))])

    def time(self) -> float:
        """Return the seconds since the epoch by the server's clock."""
        [node, *_] = self._client.nodes("reading the time")
        [(seconds, micros)] = self._client.run_on(node, "reading the time", [("TIME",)])
        try:
            return int(seconds) + int(micros) / 1e6
        except (TypeError, ValueError):
            raise BackendError(f"{self._client.endpoint.url} tells no time") from None

    def publish(self, channel: str, text: str) -> None:
        """Send a text to all who listen now; nobody else will receive it."""
        self._client.run("publishing", [("PUBLISH", f"{self._prefix}~{channel}", text)])

    @contextmanager
    def listen(self, channel: str) -> Iterator[Listener]:
        """Yield a listener to what is published while the block runs; it holds one connection.

        Raises:
            Unreachable: The connection broke. Texts may have been missed; listen again.
        """
        name = f"{self._prefix}~{channel}"
        with self._client.connection("listening", name) as connection:
            connection.send_command("SUBSCRIBE", name)
            connection.read_response()
            yield Listener(connection)

    def close(self) -> None:
        """Close this process's connections."""
        self._client.close()


class Listener:
    """One subscription, for use by one thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, timeout_s: float) -> str | None:
        """Return the next text; ``None`` when none came in ``timeout_s`` seconds, or no UTF-8."""
        if not self._connection.can_read(timeout_s):
            return None
        match self._connection.read_response():
            case [b"message", _, bytes(text)]:
                return _text(text)
        return None  # of another subscription, or a server's own


def _text(given: object) -> str | None:
    try:
        return given.decode() if isinstance(given, bytes) else None
    except UnicodeDecodeError:
        return None


def _number(given: object) -> float | None:
    try:
        found = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
