"""``tierstore agent --follow``: a node is warm before anybody asks, and after a restart."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tierstore
from tests.integration.kit import MIB, tensors
from tierstore.format.tiers import TierSpec
from tierstore.serving.node import Served


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tierstore.Store]:
    hot = TierSpec(name="hot", role="hot", url=str(tmp_path / "hot"), size=64 * MIB)
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "cache"))
    with tierstore.init(tmp_path / "store", tiers=[hot]) as one:
        for name in ("first", "second"):
            one.save(name, tensors(1), alias="prod", base=None)
        yield one


@contextmanager
def agent(store: tierstore.Store, *argv: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The agent and the address of its metrics."""
    command = [
        sys.executable, "-m", "tierstore", "--store", store.url, "agent", "--log", "json",
        "--metrics", "127.0.0.1:0", *argv,
    ]  # fmt: skip
    with subprocess.Popen(command, text=True, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                message = json.loads(line)["message"]
                if "metrics at" in message:
                    break
            yield process, message.split()[-1]
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()


def gauges(address: str) -> dict[str, float]:
    with urllib.request.urlopen(address, timeout=10) as page:
        text = page.read().decode()
    lines = [line for line in text.splitlines() if line.startswith("tierstore_follow_")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def until(address: str, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    deadline = time.monotonic() + 60
    while not holds(found := gauges(address)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def number(ref: str) -> str:
    return f'tierstore_follow_version{{ref="{ref}"}}'


def test_versions_are_hot_before_they_are_asked_for(store: tierstore.Store) -> None:
    with agent(store, "--follow", "first@prod", "--follow", "second@prod") as (_, address):
        until(address, lambda found: found.get(number("second@prod")) == 1)
        assert store.warming.look(store.resolve("first@prod"), "hot").resident
        store.save("first", tensors(2), alias="prod", base=None)
        found = until(address, lambda found: found.get(number("first@prod")) == 2)
        assert store.warming.look(store.resolve("first@2"), "hot").resident
    assert found['tierstore_follow_staleness_seconds{ref="first@prod"}'] < 60
    assert found['tierstore_follow_failing{ref="first@prod"}'] == 0


def test_what_was_followed_is_followed_again(store: tierstore.Store, tmp_path: Path) -> None:
    with agent(store, "--follow", "second@prod", "--follow", "first@prod") as (_, address):
        until(address, lambda found: found.get(number("first@prod")) == 1)
    [path] = (tmp_path / "cache").rglob("served.json")
    assert Served(path).refs() == {"second@prod": "second@1", "first@prod": "first@1"}
    store.evict()
    with agent(store, "--resume") as (_, address):
        until(address, lambda found: found.get(number("first@prod")) == 1)
        assert store.warming.look(store.resolve("second@prod"), "hot").resident
    path.write_text("{broken")
    assert Served(path).refs() == {}


def test_a_node_that_followed_nothing_resumes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So one unit serves nodes with and without a hot tier."""
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path / "cache"))
    with tierstore.init(tmp_path / "plain") as plain, agent(plain, "--resume") as (_, address):
        assert not any("follow_version" in name for name in gauges(address))


def test_a_node_without_a_hot_tier_is_told(tmp_path: Path) -> None:
    tierstore.init(tmp_path / "plain").close()
    done = subprocess.run(
        [sys.executable, "-m", "tierstore", "--store", str(tmp_path / "plain"), "agent",
         "--follow", "m@prod"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "has no hot tier to keep m@prod in" in done.stderr
