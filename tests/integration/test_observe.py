"""A program that loads serves its metrics and writes JSON logs, when its environment says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tierstore
from tests.integration.kit import MIB, ROOT, tensors
from tierstore import config
from tierstore.errors import ConfigError
from tierstore.format.tiers import TierSpec

_PROGRAM = """
import sys, urllib.request
import tierstore
from tierstore.serving.observe import OBSERVED
with tierstore.open(sys.argv[1]) as store:
    store.load("m").load()
    store._parts.hot.flush()
    store.load("m").load()
    store._parts.recorder.flush()
    host, port = OBSERVED.address
    with urllib.request.urlopen(f"http://{host}:{port}/metrics") as page:
        print(page.read().decode())
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    hot = TierSpec(name="nvme", role="hot", url=str(tmp_path / "hot"), size=64 * MIB)
    with tierstore.init(tmp_path / "store", tiers=[hot]) as opened:
        opened.save("m", tensors(1))
    return tmp_path / "store"


def run(program: str, store: Path, **env: str) -> subprocess.CompletedProcess[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        return subprocess.run(
            [sys.executable, "-c", program, store], cwd=ROOT, text=True, capture_output=True,
            timeout=120, check=False,
        )  # fmt: skip


def test_metrics_and_logs_of_a_program_that_loads(store: Path) -> None:
    done = run(_PROGRAM, store, TIERSTORE_METRICS="127.0.0.1:0", TIERSTORE_LOG="json")
    assert done.returncode == 0, done.stderr
    page = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines() if line and line[0] != "#")
    assert float(page['tierstore_tier_hits_total{role="hot",tier="nvme"}']) >= 3
    assert float(page['tierstore_tier_admitted_total{role="hot",tier="nvme"}']) == 3
    assert float(page['tierstore_tier_hits_total{role="cold",tier="home"}']) >= 1
    assert float(page["tierstore_heat_flushes_total"]) == 1
    assert float(page["tierstore_heat_keys_total"]) >= 4
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert any("metrics at http://127.0.0.1:" in line["message"] for line in lines)
    loads = [line for line in lines if line["message"].startswith("read 3 tensors of m@1")]
    assert [one["full_bytes"] > 0 for one in loads] == [True, False]
    assert [one["reused_bytes"] > 0 for one in loads] == [False, True]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)


_FOLLOWS = """
import sys, urllib.request
import tierstore
from tierstore.serving import follow
from tierstore.serving.observe import OBSERVED
def page():
    host, port = OBSERVED.address
    with urllib.request.urlopen(f"http://{host}:{port}/metrics") as answer:
        return [line for line in answer.read().decode().splitlines() if "{ref=" in line]
with tierstore.open(sys.argv[1]) as store:
    with follow("m", lambda update: None, store=store) as follower:
        assert follower.wait(60)
        print(*page(), sep="\\n")
    assert page() == []
"""


def test_metrics_of_a_program_that_follows(store: Path) -> None:
    done = run(_FOLLOWS, store, TIERSTORE_METRICS="127.0.0.1:0")
    assert done.returncode == 0, done.stderr
    page = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    names = ("version", "staleness_seconds", "load_seconds", "failing", "silent_seconds")
    assert list(page) == [f'tierstore_follow_{name}{{ref="m"}}' for name in names]
    assert float(page['tierstore_follow_version{ref="m"}']) == 1
    assert 0 <= float(page['tierstore_follow_silent_seconds{ref="m"}']) < 60


def test_an_address_that_is_taken_fails_no_load(store: Path) -> None:
    program = (
        "import socket, sys\n"
        "taken = socket.socket(); taken.bind(('127.0.0.1', 0)); taken.listen()\n"
        "import os; os.environ['TIERSTORE_METRICS'] = str(taken.getsockname()[1])\n"
        "import tierstore\n"
        "with tierstore.open(sys.argv[1]) as store: print(len(store.load('m').load()))\n"
    )
    done = run(program, store, TIERSTORE_LOG="json")
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
    line, *_ = map(json.loads, done.stderr.splitlines())
    assert (line["level"], "choose another address" in line["message"]) == ("warning", True)


def test_nothing_is_imported_or_written_unless_it_is_asked_for(store: Path) -> None:
    program = (
        "import sys, threading, tierstore\n"
        "with tierstore.open(sys.argv[1]) as store: store.load('m').load()\n"
        "print([m for m in ('prometheus_client', 'tierstore.serving.agent') if m in sys.modules])\n"
    )
    done = run(program, store)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [("TIERSTORE_METRICS", "here"), ("TIERSTORE_METRICS", "h:99999"), ("TIERSTORE_LOG", "xml")],
)
def test_what_means_nothing_is_refused(store: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        config.observing({name: value})


def test_addresses() -> None:
    assert config.observing({}) == config.Observing(None, None)
    for text, found in (
        ("9100", ("127.0.0.1", 9100)), ("0.0.0.0:0", ("0.0.0.0", 0)), ("[::1]:80", ("::1", 80)),
    ):  # fmt: skip
        assert config.observing({"TIERSTORE_METRICS": text}).metrics == found
