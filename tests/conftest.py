"""What every test needs: a cache of its own, and how long Hypothesis may search."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# as plugins, each server starts once for the whole run, and not once for each module
pytest_plugins = ["tests.servers.ceph", "tests.servers.hdfs", "tests.servers.sftp"]

settings.register_profile("ci", deadline=None, max_examples=60, print_blob=True)
settings.register_profile(
    "thorough", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # started in the background of a shell, as CI may be: programs under test would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


_HERE = Path(__file__).parent
_WITH_SERVERS = (_HERE / "integration", _HERE / "contract")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests among real servers and processes may fail once for the machine's sake, and not twice.

    What the first run showed is printed all the same. All other tests have one run.
    """
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in _WITH_SERVERS):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"run again: {report.nodeid}", "_")
        terminalreporter.write_line(report.longreprtext)


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
