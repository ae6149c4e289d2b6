"""Benchmarks run rarely, and by hand: each at least imports what there is, and shows its help."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("bench_*.py"))


def test_there_are_benchmarks() -> None:
    assert {"bench_save", "bench_load", "bench_hot", "bench_startup"} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_it_imports_and_shows_its_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name}")
