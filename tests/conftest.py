"""What every test needs: a cache of its own, a worker to run on, how long Hypothesis searches."""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.between import close_stores, give_back, open_stores, stores_noted
from tierstore.serving.hub.memory import few_arenas

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

pytest_plugins = ["tests.servers.plugin"]
few_arenas()

_LARGEST_BYTES = int(os.environ.get("LARGEST_MIB", "1792")) << 20
"""What one process of a run may take: 1.75 GiB, more where a run says so (``tests/soak.sh``).

A worker of the integration tests has 750 MiB of imports, torch among them, before its first test.
"""
_WORKER = os.environ.get("PYTEST_XDIST_WORKER")
_large: list[str] = []
"""Tests after which this process had once been larger: it was the first one."""

# a worker keeps no examples for the next run: what fails prints how to make it fail again
_KEPT = {"database": None} if _WORKER else {}
settings.register_profile("ci", deadline=None, max_examples=60, print_blob=True, **_KEPT)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=10)
settings.register_profile(  # one counterexample is enough: "tests/mutations.py"
    "unshrunk", settings.get_profile("ci"),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # fmt: skip
settings.register_profile(
    "thorough", settings.get_profile("ci"), max_examples=600,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # started in the background of a shell, as CI may be: programs under test would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported stays until the end: no garbage collection looks at it again."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    give_back()
    if _largest_bytes() > _LARGEST_BYTES:
        _large.append(item.nodeid)


def _largest_bytes() -> int:
    """The most memory that this process had at once, or one that it has started and waited for."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * max(resource.getrusage(one).ru_maxrss for one in who)


class _Memory:
    """Adds up what the workers tell, and fails a run with a process that is too large."""

    def __init__(self) -> None:
        self.largest_bytes = 0
        self.tests: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: WorkerController) -> None:
        told = getattr(node, "workeroutput", {})
        self.largest_bytes = max(self.largest_bytes, told.get("largest_bytes", 0))
        self.tests += told.get("large", [])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.largest_bytes = max(self.largest_bytes, _largest_bytes())
        self.tests += _large[:1]
        if self.largest_bytes > _LARGEST_BYTES and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        line = f"largest process: {self.largest_bytes >> 20} MiB"
        if large := self.largest_bytes > _LARGEST_BYTES:
            line += f", more than the {_LARGEST_BYTES >> 20} that one may need, first in "
            line += ", ".join(self.tests) or "a process that no test has started"
        terminalreporter.write_line(line, red=large)


class _Worker:
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        told = {"largest_bytes": _largest_bytes(), "large": _large[:1]}
        session.config.workeroutput.update(told)  # type: ignore[attr-defined]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Worker() if _WORKER else _Memory())


@pytest.fixture(autouse=True, scope="session")
def _noted() -> Iterator[None]:
    with stores_noted():
        yield


@pytest.fixture(autouse=True)
def _closed(_noted: None) -> Iterator[None]:
    before = open_stores()
    yield
    close_stores(before)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes that they start, never touch the user's cache or store."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TIERSTORE_")]:
            # the run itself may choose the kernels and the limits, never a store
            if name not in {"TIERSTORE_NATIVE", "TIERSTORE_THREADS", "TIERSTORE_MEMORY_LIMIT"}:
                patch.delenv(name)
        patch.setenv("TIERSTORE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
