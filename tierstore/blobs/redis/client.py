"""Commands to a Redis server or cluster, bounded in time and in connections.

redis-py gives the protocol, the connections and their pool; what goes to which node, and for how
long, is decided here:

* redis-py's own cluster client asks again, command by command and a timeout each, when a node does
  not answer. Here the commands of one call share one limit, and nothing is sent twice except what
  a node of a cluster refused because another one has the key.
* redis-py's timeout is that of one ``recv``. A server that sends a byte now and then would hold a
  caller for ever, so the parser looks at the call's limit, too.

A client may be used by many threads, and a forked process makes connections of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import hiredis  # noqa: F401 - redis-py would quietly use its own parser, 3 to 5 times slower
from redis._parsers import _HiredisParser
from redis.backoff import NoBackoff
from redis.connection import (
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from tierstore.blobs.redis.endpoint import Address, RedisEndpoint
from tierstore.errors import (
    BackendError,
    OutOfSpace,
    PermissionDenied,
    TierstoreError,
    Unreachable,
)
from tierstore.forks import begin

Command: TypeAlias = tuple[str | bytes | int | float, ...]
"""A command's name and its arguments; where a key decides the node, it is the first of them."""

_REDIRECTS = 5
_SLOTS = 16384
_DENIED = (
    AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError,
    NoPermissionError, ReadOnlyError,
)  # fmt: skip
_SILENT = (RedisTimeoutError, RedisConnectionError, ClusterDownError, OSError)

_limit = threading.local()


class _Parser(_HiredisParser):
    def read_from_socket(self, *args: Any, **kwargs: Any) -> Any:
        _check_limit()
        return super().read_from_socket(*args, **kwargs)  # type: ignore[no-untyped-call]


class RedisClient:
    """Commands to one endpoint; it connects at the first command."""

    def __init__(self, endpoint: RedisEndpoint) -> None:
        self.endpoint = endpoint
        begin(self._begin)

    def _begin(self) -> None:
        self._pools: dict[Address, BlockingConnectionPool] = {}
        self._known_slots: list[Address | None] | None = None
        self._silent: set[Address] = set()  # nodes that did not answer when they were last asked

    def run(self, doing: str, commands: Sequence[Command]) -> list[Any]:
        """Send the commands, each to the node that has its key, and return their raw replies.

        Args:
            doing: A phrase for messages, such as ``reading 'key'``.
            commands: The commands; those for one node are sent in one go, together at most a batch.

        Raises:
            Unreachable: There was no answer in time; some of the commands may have been carried
                out.
            PermissionDenied, OutOfSpace, BackendError: The first command that was refused; those
                after it were carried out all the same.
        """
        with self._errors(doing), _time_limit(self.endpoint.timeout_s):
            replies: dict[int, Any] = {}
            for _ in range(_REDIRECTS):
                left = [n for n in range(len(commands)) if n not in replies]
                for address, numbers in self._by_node(commands, left).items():
                    sent = [commands[n] for n in numbers]
                    for n, reply in zip(numbers, self._exchange(address, sent), strict=True):
                        if isinstance(reply, MovedError):
                            self._moved(address, reply)  # it is sent again in the next round
                        elif isinstance(reply, AskError):
                            node = (reply.host or address[0], reply.port)
                            replies[n] = self._exchange(node, [("ASKING",), commands[n]])[1]
                        else:
                            replies[n] = reply
                if len(replies) == len(commands):
                    return [_raised(replies[n]) for n in range(len(commands))]
            raise Unreachable(f"{doing} in {self.endpoint.url}: the key moves from node to node")

    def run_on(self, address: Address, doing: str, commands: Sequence[Command]) -> list[Any]:
        """Send the commands to one node and return their replies; otherwise the same as ``run``."""
        with self._errors(doing), _time_limit(self.endpoint.timeout_s):
            return [_raised(reply) for reply in self._exchange(address, commands)]

    def nodes(self, doing: str) -> Sequence[Address]:
        """Return the address of the server, or of every node of the cluster that has slots."""
        with self._errors(doing), _time_limit(self.endpoint.timeout_s):
            if not self.endpoint.cluster:
                return self.endpoint.addresses
            return sorted({address for address in self._slots() if address is not None})

    @contextmanager
    def connection(self, doing: str, key: str) -> Iterator[Connection]:
        """Yield a connection to the node that has ``key``, for a caller that keeps it to listen."""
        with self._errors(doing):
            with _time_limit(self.endpoint.timeout_s):
                [address] = self._by_node([("", key)], [0])
                pool = self._pool(address)
                connection = pool.get_connection()
            try:
                yield connection
            finally:
                connection.disconnect()
                pool.release(connection)

    def close(self) -> None:
        """Close this process's connections; another call opens new ones."""
        for pool in list(self._pools.values()):
            pool.disconnect()

    # Nodes

    def _by_node(self, commands: Sequence[Command], which: list[int]) -> dict[Address, list[int]]:
        if not self.endpoint.cluster:
            return {self.endpoint.addresses[0]: which}
        slots = self._slots()
        groups: dict[Address, list[int]] = {}
        for n in which:
            key = commands[n][1]
            address = slots[key_slot(key if isinstance(key, bytes) else str(key).encode())]
            if address is None:
                self._known_slots = None
                raise ClusterDownError("CLUSTERDOWN no node has the key's slot")
            groups.setdefault(address, []).append(n)
        return groups

    def _slots(self) -> list[Address | None]:
        slots = self._known_slots
        if slots is None:
            self._known_slots = slots = self._asked_for_slots()
        return slots

    def _asked_for_slots(self) -> list[Address | None]:
        known = {*self.endpoint.addresses, *self._pools}
        failure: Exception | None = None
        for asked in sorted(known, key=lambda address: (address in self._silent, address)):
            try:
                [ranges] = self._exchange(asked, [("CLUSTER", "SLOTS")])
            except _SILENT as error:
                failure = error
                _check_limit()
                continue
            slots: list[Address | None] = [None] * _SLOTS
            for first, last, (host, port, *_), *_ in _raised(ranges):
                address = (bytes(host or b"").decode() or asked[0], int(port))
                slots[first : last + 1] = [address] * (last + 1 - first)
            return slots
        assert failure is not None
        raise failure

    def _moved(self, asked: Address, error: MovedError) -> None:
        if not self.endpoint.cluster:
            raise ResponseError("it is a node of a cluster: write redis+cluster:// in its URL")
        self._slots()[error.slot_id] = (error.host or asked[0], error.port)

    # Connections

    def _pool(self, address: Address) -> BlockingConnectionPool:
        return self._pools.get(address) or self._pools.setdefault(address, self._new_pool(address))

    def _new_pool(self, address: Address) -> BlockingConnectionPool:
        endpoint = self.endpoint
        kind: type[Connection | UnixDomainSocketConnection] = Connection
        options: dict[str, Any] = {"host": address[0], "port": address[1]}
        if endpoint.scheme == "unix":
            kind, options = UnixDomainSocketConnection, {"path": address[0]}
        elif endpoint.tls:
            kind = SSLConnection
            options |= {"ssl_ca_certs": endpoint.ca, "ssl_cert_reqs": "required"}
            options |= {"ssl_check_hostname": True}
        return BlockingConnectionPool(
            max_connections=endpoint.connections,
            timeout=endpoint.timeout_s,
            connection_class=kind,
            username=endpoint.username,
            password=endpoint.password,
            db=endpoint.db,
            protocol=2,
            socket_timeout=endpoint.timeout_s,
            socket_connect_timeout=endpoint.timeout_s,
            retry=Retry(NoBackoff(), 0),
            parser_class=_Parser,
            **options,
        )

    def _exchange(self, address: Address, commands: Sequence[Command]) -> list[Any]:
        """Return the replies to the commands; that of a refused one is its ``ResponseError``."""
        pool = self._pool(address)
        try:
            connection = pool.get_connection()
            try:
                for piece in connection.pack_commands(commands):
                    _check_limit()
                    connection.send_packed_command([piece])
                replies = [_reply(connection) for _ in commands]
                self._silent.discard(address)
                return replies
            except BaseException:
                connection.disconnect()  # replies may still come: nobody else may read them
                raise
            finally:
                pool.release(connection)
        except _SILENT:
            if self.endpoint.cluster:  # another node may have taken over
                self._known_slots = None
                self._silent.add(address)
            raise

    # Errors

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except TierstoreError:
            raise
        except (RedisError, OSError) as error:
            raise _translated(error, doing, self.endpoint.url) from None


def _reply(connection: Connection) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        # a value of another kind is somebody else's: to whoever asks there is none of ours
        return None if str(error).startswith("WRONGTYPE") else error


def _raised(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    _limit.until = time.monotonic() + seconds
    try:
        yield
    finally:
        _limit.until = None


def _check_limit() -> None:
    until = getattr(_limit, "until", None)
    if until is not None and time.monotonic() > until:
        raise RedisTimeoutError("it took too long")


def _translated(error: Exception, doing: str, url: str) -> TierstoreError:
    what = f"{doing} in {url} failed: {str(error)[:200]}"
    if isinstance(error, ReadOnlyError):
        return PermissionDenied(f"{what}; give the address of the primary")
    if isinstance(error, _DENIED):
        return PermissionDenied(f"{what}; check the user, the password and what its ACL allows")
    if isinstance(error, OutOfMemoryError):
        return OutOfSpace(f"{what}; raise its maxmemory, or set maxmemory-policy volatile-lfu")
    if isinstance(error, BusyLoadingError):
        return BackendError(f"{what}; try again when it has loaded its data")
    if isinstance(error, _SILENT):
        return Unreachable(f"{what}; check that it runs and that the network reaches it")
    return BackendError(what)
