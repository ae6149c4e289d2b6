"""The public API is typed: mypy in strict mode accepts right uses of it and refuses wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

API = Path(__file__).with_name("api.py")


def test_the_api_is_typed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(API)],
        cwd=API.parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
