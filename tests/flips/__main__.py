"""Runs a campaign of flips: ``python -m tests.flips [--flips N] [--minutes N] [--json FILE]``.

``python -m tests.flips --sum FILE...`` adds up what campaigns have found.

With ``--servers`` the cold tier is in a simulated S3, and a Redis and a memcached are caches; their
programs must be installed. Ends with 1 if a flipped bit was returned as data, or an error came that
is none of tierstore's.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.flips.campaign import Campaign, Failure, Tally
from tests.flips.uploads import flip_uploads
from tests.flips.world import Servers, built
from tests.servers.memcached import memcached_running
from tests.servers.moto import moto_running
from tests.servers.redis import redis_running


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000, help="beside a hundredth of uploads")
    parser.add_argument("--minutes", type=float, help="stop after so many (default: never)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--servers", action="store_true")
    parser.add_argument("--sum", type=Path, nargs="+", metavar="FILE")
    asked = parser.parse_args()
    if asked.sum:
        return _told(_sum(asked.sum))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = stack.enter_context(running(Path(folder))) if asked.servers else Servers()
        world = built(Path(folder) / "world", servers)
        stack.enter_context(world.keep)
        campaign = Campaign(world, asked.seed)
        logging.getLogger("tierstore").propagate = False  # each flip is told

        def goes_on(number: int) -> bool:
            if not number % 500:
                failed = len(campaign.tally.failures)
                print(f"{number} of {asked.flips}, {failed} failed", file=sys.stderr, flush=True)
            return asked.minutes is None or time.monotonic() < began + 60 * asked.minutes

        began = time.monotonic()
        tally = campaign.run(asked.flips, goes_on)
        flip_uploads(Path(folder), asked.flips // 100, asked.seed, tally)
    if asked.json:
        found = {
            "flips": tally.counts.total(),
            "seed": asked.seed,
            "counts": [[*key, count] for key, count in sorted(tally.counts.items())],
            "ways": [[*key, count] for key, count in sorted(tally.ways.items())],
            "failures": [asdict(failure) for failure in tally.failures],
        }
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    return _told(tally)


def _told(tally: Tally) -> int:
    """Print what flips have found; return the exit code."""
    print(tally.table())
    for failure in tally.failures:
        print(failure)
    return 1 if tally.failures else 0


def _sum(paths: list[Path]) -> Tally:
    tally = Tally()
    for path in paths:
        found = json.loads(path.read_text())
        for place, kind, outcome, count in found["counts"]:
            tally.counts[place, kind, outcome] += count
        tally.failures += [Failure(**failure) for failure in found["failures"]]
    return tally


@contextmanager
def running(folder: Path) -> Iterator[Servers]:
    """A Redis, a memcached and a simulated S3."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("redis", "memcached", "s3"):
            (folder / name).mkdir()
        redis = stack.enter_context(redis_running(folder / "redis"))
        memcached = stack.enter_context(memcached_running(folder / "memcached", "-I", "16m"))
        moto = stack.enter_context(moto_running(folder / "s3"))
        for name, value in moto.environment.items():
            patch.setenv(name, value)
        moto.client().create_bucket(Bucket="flips")
        yield Servers(redis.url, f"memcached://{memcached.address}", "s3://flips/cold")


if __name__ == "__main__":
    sys.exit(main())
