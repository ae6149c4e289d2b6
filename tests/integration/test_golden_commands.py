"""Commands that need optional packages print with ``--json`` what was recorded of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.scenarios import WITH_EXTRAS
from tests.golden.test_commands import check_scenario


@pytest.mark.parametrize("name", WITH_EXTRAS)
def test_a_scenario(name: str, tmp_path: Path) -> None:
    check_scenario(name, tmp_path)
