"""A fleet in small: eight serving processes, a real Redis, a real S3, and what befalls them.

The story of ``tests/fleet``: a patch of 1 % of the rows rolled out to 1, 50 and 100 % of the nodes;
a whole new version that is rolled out to half of them and taken back; a patch for all at once.
Seven nodes are killed (SIGKILL) and started again on the way, and Redis is killed in the middle of
the first rollout and comes back before its end. Every node must come to serve the version that is
meant for it, bit for bit, after each step, and no request may see two versions.

Every node has a hot tier of its own; home and packs lie in a bucket of a Ceph radosgw, frames that
nodes share in Redis. Bytes are of weights, as they came over the network; beside them stands what
loading the whole file for each version that a node served would have fetched.

Run: ``python -m benchmarks.fleet [--mib 128] [--poll 1]``
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.common import HERE, MIB, show, write_results
from tests.fleet.content import Content
from tests.fleet.fleet import Phase, Told, fleet, play, summed_up
from tests.servers.ceph import ceph_cluster
from tests.servers.redis import redis_running


def table(told: dict[str, Told], content: Content) -> None:
    rows = []
    for name, node in told.items():
        fetched = sum(node.fetched.values())
        whole = len(node.served) * content.nbytes
        rows.append([
            name, " ".join(map(str, node.served)), node.kills,
            f"{statistics.median(node.staleness):.2f} / {max(node.staleness):.2f}",
            f"{max(node.starts):.2f}", f"{node.fetched.get('home', 0) / MIB:.1f}",
            f"{node.fetched.get('redis', 0) / MIB:.1f}", f"{fetched / content.nbytes:.2f}",
            f"{fetched / whole:.3f}", node.requests, node.mixed,
        ])  # fmt: skip
    show(
        f"{len(told)} nodes, a model of {content.nbytes / MIB:.0f} MiB",
        ["node", "served", "killed", "stale s, median / most", "start s, most", "S3 MiB",
         "Redis MiB", "of one model", "of whole files", "requests", "mixed"],
        rows,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=128, help="size of the model")
    parser.add_argument("--poll", type=float, default=1.0, help="seconds between two looks")
    options = parser.parse_args()
    content = Content(options.mib)
    phases: list[Phase] = []
    with tempfile.TemporaryDirectory(dir=HERE / ".data") as place:
        folder = Path(place)
        (folder / "redis").mkdir()
        (folder / "ceph").mkdir()
        os.environ["TIERSTORE_CACHE_DIR"] = str(folder / "cache")
        with ceph_cluster(folder / "ceph") as ceph, redis_running(folder / "redis") as redis:
            os.environ.update(ceph.environment)
            url = f"s3://{ceph.bucket()}/fleet"
            with fleet(folder, url, redis, content, poll_s=options.poll) as one:
                play(one, redis, phases.append)
                told = {node.name: summed_up(node, node.end()) for node in one.nodes}
    show(
        "until every node served what was meant for it",
        ["step", "s", "nodes by version"],
        [
            (
                phase.name,
                phase.seconds,
                ", ".join(
                    f"{list(phase.versions.values()).count(n)} on {n}"
                    for n in sorted(set(phase.versions.values()))
                ),
            )
            for phase in phases
        ],
    )
    table(told, content)
    write_results("fleet", {"mib": options.mib, "poll_s": options.poll, "phases": phases,
                            "nodes": told})  # fmt: skip


if __name__ == "__main__":
    main()
