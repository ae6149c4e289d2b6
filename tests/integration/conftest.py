"""Places for stores and their caches; a failing check of the kit shows its values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tierstore import codecs

pytest.register_assert_rewrite("tests.integration.kit")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of this test, also for the processes it starts."""
    path = tmp_path / "cache"
    monkeypatch.setenv("TIERSTORE_CACHE_DIR", str(path))
    return path


@pytest.fixture(params=["native", "numpy"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with each of the two ways to encode and decode."""
    before = codecs.native_info().in_use
    assert codecs.use_native(request.param == "native") == (request.param == "native")
    yield request.param
    codecs.use_native(before)
