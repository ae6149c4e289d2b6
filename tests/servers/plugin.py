"""Servers of a test run: a fixture for each, which tests use one, and which worker runs those.

A server starts when the first test asks for it, and serves the whole run. What it needs is imported
then, so tests without it need neither its program nor its client.

All tests that use a server of one group run on one worker. So there is one set of servers however
many workers there are, and a test that pauses or kills a server disturbs no other.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers import process

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import Scheduling
    from xdist.workermanage import WorkerController

    from tests.servers.ceph import Ceph, CephFs
    from tests.servers.hdfs import Hdfs
    from tests.servers.memcached import MemcachedServer
    from tests.servers.moto import Moto
    from tests.servers.redis import RedisCluster, RedisServer
    from tests.servers.sftp import Sftp

GROUPS = {
    "ceph": "storage", "cephfs": "storage", "hdfs": "storage", "sftp": "storage",
    "redis_plain": "caches", "redis_tls": "caches", "redis_acl": "caches",
    "redis_cluster": "caches", "memcached_pair": "caches", "moto_server": "caches",
}  # fmt: skip
"""By fixture: the tests that one worker runs. A test uses fixtures of one group."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--second-run", action="store_true",
        help="run a test that is marked 'server' again when it fails; what it showed is printed",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses the servers of the run, and put first what takes longest: that, ``alone``."""
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        if group is not None:
            item.add_marker(pytest.mark.server)
        if config.getoption("second_run") and item.get_closest_marker("server"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(key=lambda item: (groups[item] is None, not _is_alone(item)))
    told = getattr(config, "workerinput", {}).get("tierstore_scopes")
    if told and os.environ["PYTEST_XDIST_WORKER"] == "gw0":
        Path(told).write_text(json.dumps({i.nodeid: _scope(i, g) for i, g in groups.items()}))


def _scope(item: pytest.Item, group: str | None) -> str:
    """What one worker runs whole: a group, a module, or a test that is longer than most modules."""
    return group or (item.nodeid if _is_alone(item) else item.nodeid.partition("::")[0])


def _is_alone(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("soak", "alone"))


def _group(item: pytest.Item) -> str | None:
    """The group of the servers that a test uses."""
    names: list[str] = getattr(item, "fixturenames", [])
    found = {GROUPS[name] for name in names if name in GROUPS}
    if len(found) > 1:
        raise pytest.UsageError(f"{item.nodeid} uses servers of more than one group: {found}")
    return found.pop() if found else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput["tierstore_scopes"] = str(_scopes_file(node.config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Gives a worker all tests of one group of servers, or else of one module: they share its
    fixtures. The controller knows a test by its name alone, so the first worker tells the scopes.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        @functools.cached_property
        def _scopes(self) -> dict[str, str]:
            found: dict[str, str] = json.loads(_scopes_file(config).read_text())
            return found

        def _split_scope(self, nodeid: str) -> str:
            return self._scopes[nodeid]

    config.option.loadscopereorder = False
    return ByServer(config, log)


@functools.cache
def _scopes_file(config: pytest.Config) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tierstore-scopes-"))
    config.add_cleanup(lambda: shutil.rmtree(folder))
    return folder / "scopes.json"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    process.Marked.now = item.get_closest_marker("server") is not None
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"failed at first: {report.nodeid}", "_")
        terminalreporter.write_line(report.longreprtext)


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """One cluster with radosgw for the whole run: a test makes a bucket of its own."""
    from tests.servers.ceph import ceph_cluster

    with ceph_cluster(tmp_path_factory.mktemp("ceph")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cephfs(ceph: Ceph) -> Iterator[CephFs]:
    """CephFS, mounted: a test makes a directory of its own."""
    from tests.servers.ceph import cephfs_mounted
    from tests.servers.machine import need_fuse

    need_fuse("CephFS")
    with cephfs_mounted(ceph) as mounted:
        yield mounted


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    """One HDFS for the whole run: a test makes a directory of its own."""
    from tests.servers.hdfs import hdfs_running

    with hdfs_running(tmp_path_factory.mktemp("hdfs")) as server:
        yield server


@pytest.fixture(scope="session")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sftp]:
    """One server for the whole run: a test makes a directory of its own."""
    from tests.servers.sftp import sftp_running

    with sftp_running(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that anybody may use, by TCP or its Unix socket."""
    from tests.servers.redis import redis_running

    with redis_running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that speaks TLS and wants a password; also at 127.0.0.2, unlike its certificate."""
    from tests.servers.redis import tls_running

    with tls_running(tmp_path_factory.mktemp("redis-tls")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_acl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server with the users ``USER`` and ``READER``, who may do what their names say."""
    from tests.servers.redis import acl_running

    with acl_running(tmp_path_factory.mktemp("redis-acl")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster of three nodes."""
    from tests.servers.redis import cluster_running

    with cluster_running(tmp_path_factory.mktemp("redis-cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def memcached_pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[MemcachedServer, MemcachedServer]]:
    """Two servers; the second takes larger items than the first."""
    from tests.servers.memcached import memcached_running

    folder = tmp_path_factory.mktemp("memcached")
    with (
        memcached_running(folder, "-m", "256") as first,
        memcached_running(folder, "-m", "512", "-I", "24m") as second,
    ):
        yield first, second


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """One server for the whole run: a test makes a bucket of its own."""
    from tests.servers.moto import moto_running

    with moto_running(tmp_path_factory.mktemp("moto")) as moto:
        yield moto
