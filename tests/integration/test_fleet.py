"""Eight nodes, Redis and S3: a rollout, a rollback, nodes killed, and all on the right version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.content import Content
from tests.fleet.fleet import fleet, play, summed_up
from tests.servers.ceph import Ceph
from tests.servers.redis import RedisServer, redis_running

pytestmark = pytest.mark.server

MIB = 8


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with redis_running(tmp_path / "redis") as server:
        yield server


def test_every_node_ends_on_the_right_version(
    tmp_path: Path, ceph: Ceph, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    content = Content(MIB)
    url = f"s3://{ceph.bucket()}/fleet"
    with fleet(tmp_path, url, redis, content, chunk_size=1 << 20) as one:
        play(one, redis)
        told = [summed_up(node, node.end()) for node in one.nodes]
    for node in told:
        assert node.served[-1] == 4
        assert node.mixed == 0
        assert node.requests > 0
        # what changed, and no more: far from the whole model for each version
        assert sum(node.fetched.values()) < 2.5 * content.nbytes, node
