"""As ``tests/unit/test_guards.py``, in what needs Redis, Memcached, the hub or metrics."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.guards import EXTRAS, OURS, PASSES, Case, check, places
from tierstore.blobs.memcached.client import MemcachedClient, _Socket
from tierstore.blobs.redis.client import RedisClient
from tierstore.blobs.redis.endpoint import RedisEndpoint
from tierstore.errors import ConfigError, UsageError
from tierstore.modelstore.chunks.local import FilePart
from tierstore.serving import metrics
from tierstore.serving.hub import files, rights, server
from tierstore.serving.hub.answers import HubError
from tierstore.serving.hub.connections import _Open
from tierstore.serving.hub.memory import few_arenas
from tierstore.serving.hub.spool import UploadSpool
from tierstore.serving.hub.zerocopy import ZeroCopyProtocol
from tierstore.tiers.stats import TierStats

NOWHERE = ("127.0.0.1", 9)


def redis() -> RedisClient:
    return RedisClient(RedisEndpoint("redis+cluster://127.0.0.1:9"))


def listening(_: Path) -> None:
    with redis().connection("listening", "key"):
        pass


def stale(_: Path) -> bool:
    with _Socket() as client:
        return client.is_stale()


def sent(folder: Path) -> list[object]:
    """What the tier is told that a file came from."""
    told: list[object] = []
    path = folder / "chunk"
    path.write_bytes(b"123")

    async def send(message: object) -> None:
        """Take it all."""

    with io.FileIO(path) as file:
        try:
            asyncio.run(files._send_file(FilePart(file, 0, 3, told.append), 0, 3, send))
        finally:
            assert told == []
    return told


def known(folder: Path) -> bool:
    path = folder / "tokens.toml"
    path.write_text("[anonymous]\nread = ['*']\n")
    return rights.Tokens(path).caller(None).may_read("m")


async def _coming(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def received(folder: Path) -> object:
    return asyncio.run(UploadSpool(folder).receive("m", "0" * 64, 3, 1, _coming([b"123"])))


def swept(folder: Path) -> bool:
    (folder / "repository").mkdir()
    UploadSpool(folder).sweep(-3600)
    return (folder / "repository").exists()


def cut(_: Path) -> bool:
    """A connection that is still in its handshake."""
    with socket.socket() as conn:
        _Open(conn, "192.0.2.1").cut()
    return True


def sent_by_kernel(_: Path) -> None:
    """Sends nothing: neither end of it is open."""

    async def drain() -> None:
        """Nothing waits to be sent."""

    connection: Any = SimpleNamespace(
        conn=SimpleNamespace(send_with_data_passthrough=lambda data: [b""]),
        flow=SimpleNamespace(drain=drain),
        transport=SimpleNamespace(
            is_closing=lambda: False,
            get_extra_info=lambda name: SimpleNamespace(fileno=lambda: -1),
        ),
        _still_open=lambda: None,
    )
    asyncio.run(ZeroCopyProtocol._send_file(connection, -1, 0, 1))


def served(_: Path) -> None:
    collector = metrics.TierCollector(lambda: [metrics.TierSample("hot", "hot", TierStats())])
    metrics.serve(collector, "127.0.0.1", 0)


CASES = {
    "blobs.memcached.client:_Socket.is_stale#1": Case(stale, True),
    "blobs.memcached.client:MemcachedClient._errors#1": Case(
        lambda _: MemcachedClient([NOWHERE], "memcached://", 1.0, 1).call(
            NOWHERE, "asking", lambda client: client.stats()
        ),
        PASSES,
    ),
    "blobs.redis.client:RedisClient._asked_for_slots#1": Case(listening, PASSES),
    "blobs.redis.client:RedisClient._exchange#1": Case(listening, PASSES),
    "blobs.redis.client:RedisClient._errors#1": Case(listening, PASSES),
    "serving.hub.connections:_Open.cut#1": Case(cut, True),
    "serving.hub.files:_send_file#1": Case(sent, PASSES),
    "serving.hub.memory:few_arenas#1": Case(lambda _: few_arenas(), None),
    "serving.hub.rights:Tokens._refresh#1": Case(known, True),
    "serving.hub.rights:Tokens._read_again#1": Case(known, ConfigError),
    "serving.hub.server:listen#1": Case(lambda _: server.listen("127.0.0.1", 0), UsageError),
    "serving.hub.spool:UploadSpool.__init__#1": Case(UploadSpool, ConfigError),
    "serving.hub.spool:UploadSpool._arriving#1": Case(received, PASSES),
    "serving.hub.spool:UploadSpool.join#1": Case(
        lambda folder: UploadSpool(folder).join("m", "0" * 64, 3, 2), HubError
    ),
    "serving.hub.spool:UploadSpool.keep#1": Case(
        lambda folder: UploadSpool(folder).keep("m", []), PASSES
    ),
    "serving.hub.spool:UploadSpool.sweep#1": Case(swept, True),
    "serving.hub.zerocopy:ZeroCopyProtocol._send_file#1": Case(
        sent_by_kernel, ConnectionAbortedError
    ),
    "serving.metrics:serve#1": Case(served, UsageError),
}


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", CASES)
def test_an_error_of_ours_in_a_guarded_place(
    place: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(place, CASES[place], kind, tmp_path, monkeypatch)


def test_every_guarded_place_has_a_case() -> None:
    assert set(CASES) == {place for place in places() if place.startswith(EXTRAS)}


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_a_store_that_fails_while_a_file_is_kept_is_no_full_disk(
    kind: type[Exception], tmp_path: Path
) -> None:
    def parts() -> Iterator[bytes]:
        yield b"123"
        raise kind("what 'happened'")

    spool = UploadSpool(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind, match="what 'happened'"):
        spool.keep("m", parts())
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert [path.is_dir() for path in left] == [True], "the repository's folder alone"
